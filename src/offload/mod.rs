//! A layer that runs a service on a [pool](crate::pool).
//!
//! [`OffloadLayer`] moves the inner service's `call`, every poll of its future, and the drop of
//! that future to the pool. A poll that returns pending releases the thread, and the wake schedules
//! the next poll on the pool. A handler that awaits I/O therefore occupies no thread, and a handler
//! that blocks in the middle of an `async fn` does not block the event loop.
//!
//! ```
//! use std::convert::Infallible;
//! use tower::{Service, ServiceBuilder, ServiceExt};
//! use tower_offload::{OffloadLayer, ThreadPool, offload::{RejectWithError, service_fn_blocking}};
//!
//! # #[tokio::main]
//! # async fn main() {
//! let mut service = ServiceBuilder::new()
//!     .layer(OffloadLayer::new(ThreadPool::cpu()).reject(RejectWithError)) // this is not HTTP
//!     .service(service_fn_blocking(|text: String| Ok::<_, Infallible>(text.to_uppercase())));
//! assert_eq!(service.ready().await.unwrap().call("hop".to_owned()).await.unwrap(), "HOP");
//! # }
//! ```
//!
//! With options, on axum:
//!
//! ```
//! use std::time::Duration;
//! use axum::{Router, routing::{get, post}};
//! use tower_offload::{OffloadLayer, ThreadPool, offload::ProblemJson};
//!
//! let layer = OffloadLayer::new(ThreadPool::blocking(64))
//!     .filter(|head| head.uri().path() != "/ping") // `/ping` runs inline
//!     .max_in_flight(256)                          // queued, running or awaiting
//!     .wait(Duration::from_millis(500))            // for capacity, then 503
//!     .reject(ProblemJson);                        // with an application/problem+json body
//! let app: Router = Router::new()
//!     .route("/ping", get(async || "pong"))
//!     .route("/report", post(async || "rows"))
//!     .layer(layer);
//! # let _ = app;
//! ```
//!
//! # When not to use it
//!
//! Do not offload handlers that only await: they block no thread, and a hop to the pool costs tens
//! of microseconds. A service that cannot be cloned needs tower's `Buffer` between it and the
//! layer.
//!
//! Handlers that take a few microseconds cost less where they are made. An
//! [`adaptive`](OffloadLayer::adaptive) layer measures them and runs them there.
//!
//! # When there is no capacity
//!
//! A call needs a permit of the pool's queue until its first poll, and a permit of the layer
//! ([`max_in_flight`](OffloadLayer::max_in_flight)) until its work ends. If one of them is not
//! available, the call
//!
//! * is rejected at once. This is the default. `poll_ready` only polls the inner service, because
//!   hyper and axum poll a clone for each request, and a reservation there would let requests wait
//!   without a bound;
//! * waits up to a timeout, with [`wait`](OffloadLayer::wait);
//! * is not made, with [`backpressure`](OffloadLayer::backpressure), which reserves both permits in
//!   `poll_ready`.
//!
//! The pool's [queue policy](crate::pool#overload), [`priority`](OffloadLayer::priority) and
//! [`fair_by`](OffloadLayer::fair_by) decide which calls wait, and for how long.
//!
//! With `fair_by`, the bounds are shared among [keys](crate::pool#keys):
//!
//! | bound | a key may use | order of calls that [`wait`](OffloadLayer::wait) for it |
//! |---|---|---|
//! | queue of the pool | half of what others leave free | keys take turns |
//! | [`max_in_flight`](OffloadLayer::max_in_flight) | all of it | keys take turns |
//! | [`max_in_flight_per_key`](OffloadLayer::max_in_flight_per_key) | that number | arrival |
//! | [`max_waiting`](OffloadLayer::max_waiting) | half of what others leave free | |
//!
//! One key can therefore use up `max_in_flight`. If calls do not wait for it, set
//! `max_in_flight_per_key` as well. With [`backpressure`](OffloadLayer::backpressure) capacity is
//! reserved before the key is known: the key orders only the pool's queue, and a call of a key at
//! its limit is rejected.
//!
//! # Rejection
//!
//! The layer's [`Reject`] strategy turns a [`CallError`](crate::CallError) into an answer:
//!
//! | strategy | answer |
//! |---|---|
//! | [`HttpReject`] (default) | 503 with `Retry-After`, or a gRPC status; for every HTTP stack |
//! | [`ProblemJson`] | the same, with a body |
//! | [`RejectWithError`] | an error, for services other than HTTP |
//! | [`reject_with`](OffloadLayer::reject_with) | the result of a closure |
//!
//! If the strategy does not fit the service, the compiler names the alternatives:
//!
//! ```compile_fail
//! use tower::{Service, ServiceBuilder, service_fn};
//! use tower_offload::{OffloadLayer, ThreadPool};
//!
//! fn serve(_: impl Service<u32>) {}
//!
//! // error: `HttpReject` cannot answer for a service with request `u32`, response `u32`
//! //        and error `Infallible`
//! // note: use `.reject(RejectWithError)` or `.reject_with(|error| ..)` on the layer
//! serve(
//!     ServiceBuilder::new()
//!         .layer(OffloadLayer::new(ThreadPool::cpu()))
//!         .service(service_fn(async |number: u32| Ok::<_, std::convert::Infallible>(number))),
//! );
//! ```
//!
//! For a method that needs the service, such as `ready` or `oneshot`, the compiler only reports
//! unsatisfied trait bounds (E0599). The cause is that the strategy does not fit (use
//! `.reject(RejectWithError)` outside of HTTP) or that a filter reads the head of a request that
//! has none (use `.filter_request(..)`). To find out which, pass the service to a function like
//! `serve` above, or call `ServiceBuilder::check_service`.
//!
//! | the compiler reports that .. is not satisfied | remedy |
//! |---|---|
//! | `MyService: Clone` | put tower's `Buffer` between the service and the layer |
//! | `Infallible: From<Box<dyn Error + Send + Sync>>` | on axum use a strategy that responds |
//!
//! # Cancel safety
//!
//! Dropping the response future cancels the call:
//!
//! * Work that has not started never runs. It is dropped at once, together with the request, in the
//!   caller's task. Its permit of the queue is released when its entry reaches the head of the
//!   queue.
//! * Work that awaits is dropped on the pool, at once.
//! * Work that is running can check [`cancelled`](crate::cancelled), or pass a
//!   [`cancellation_token`](crate::pool::cancellation_token) to other threads.
//!
//! The permit of the layer is released when the work has ended, so a client that hangs up does not
//! make room for another call while its own still occupies a thread. With
//! [`detached`](OffloadLayer::detached) the work continues.
//!
//! # Deadlines
//!
//! [`timeout`](OffloadLayer::timeout) gives requests a [deadline](crate::pool#deadlines), and
//! [`grpc_timeout`](OffloadLayer::grpc_timeout) reads it from the header of gRPC. The layer's calls
//! also inherit the deadline of offloaded work that makes them, and of an enclosing
//! [`Deadline::scope`](crate::pool::Deadline::scope). The earliest one applies, so a client cannot
//! extend a timeout of the server.
//!
//! ```
//! use std::time::Duration;
//! use axum::{Router, http::StatusCode, routing::get};
//! use tower_offload::{OffloadLayer, ThreadPool, cancelled, remaining};
//!
//! async fn search() -> Result<&'static str, StatusCode> {
//!     if remaining().is_some_and(|left| left < Duration::from_millis(100)) {
//!         return Ok("rows of the cache");
//!     }
//!     for _step in 0..10 {
//!         if cancelled() {
//!             return Err(StatusCode::GATEWAY_TIMEOUT); // the layer has sent the response
//!         }
//!     }
//!     Ok("rows")
//! }
//!
//! let app: Router = Router::new()
//!     .route("/search", get(search))
//!     .layer(OffloadLayer::new(ThreadPool::cpu()).timeout(|_head| Some(Duration::from_secs(2))));
//! # let _ = app;
//! ```
//!
//! | with | effect of a deadline |
//! |---|---|
//! | `max_in_flight` | work that runs keeps its permit until it ends |
//! | `wait` | ends the wait: `DeadlineExceeded`, or `Overloaded` if the wait's timeout is earlier |
//! | `backpressure` | none in `poll_ready`, which knows no request; an expired one frees its permits |
//! | `detached` | answers the caller; an expired call never starts, started work has no deadline |
//! | `filter` | none on inline requests; that of an outer `scope` is visible to them |
//! | `adaptive` | that of an offloaded call, but work on the caller's thread delays its answer |
//! | `catch_panics` | a panic after the deadline is counted and logged, and not resumed |
//! | an overload | a call that expires before its admission is no arrival |
//! | shutdown | queued calls are `Closed` after its timeout; work sees the reason that is first |
//! | an outer timeout | drops the call; at or after the deadline, the reason is the deadline |
//!
//! # Observability
//!
//! [`PoolStats`](crate::pool::PoolStats) has all counters and needs no feature. Feature `metrics`
//! records through the [`metrics`] crate, each metric with the label `pool`, a unit and a help
//! text. Counters are registered when a pool is created, so that they are 0 before their first
//! event. Install the recorder before the first call.
//!
//! | metric | kind | value |
//! |---|---|---|
//! | `offload_queue_depth` | gauge | calls that wait for capacity or for their first poll |
//! | `offload_active` | gauge | threads that poll a call |
//! | `offload_queue_wait_seconds` | histogram | time from `call` to the first poll |
//! | `offload_run_seconds` | histogram | total time of a call's polls |
//! | `offload_busy_microseconds_total` | counter | time that threads ran calls; see below |
//! | `offload_max_threads` | gauge | threads that may run calls at the same time; 0 until the pool's first call |
//! | `offload_cancelled_run_microseconds_total` | counter | run time without a caller; label `reason` |
//! | `offload_resume_wait_seconds` | histogram | time from each wake to the poll that follows it |
//! | `offload_rejected_total` | counter | rejected calls; label `reason` |
//! | `offload_abandoned_total` | counter | calls whose caller left before they ended |
//! | `offload_panicked_total` | counter | panics of work |
//! | `offload_misplaced_total` | counter | calls of an [adaptive](OffloadLayer::adaptive) layer that blocked their caller's thread |
//! | `offload_stalls_total` | counter | times that the pool was [stalled] |
//! | `offload_stalled` | gauge | 1 while the pool is stalled, otherwise 0 |
//! | `offload_overloaded` | gauge | 1 while calls are rejected because the queue does not drain |
//!
//! In PromQL, the utilization of a pool is `rate(offload_busy_microseconds_total[1m]) / 1e6 /
//! offload_max_threads`. A poll is added to the counter when it ends, so polls of minutes show
//! late; [`busy_time`](crate::pool::PoolStats::busy_time) includes those that have not ended.
//! Counters of the [`metrics`] crate are integers, hence the unit.
//!
//! Feature `tracing` runs the work in the caller's span, with its dispatcher, and emits these
//! events with the field `pool`:
//!
//! | event | level | fields |
//! |---|---|---|
//! | `call rejected` | debug | `reason` |
//! | `pool overloaded: ..` | warn | `reason`, `rejected`: total; at most once in 10 s |
//! | `call abandoned by its caller` | debug | `detached`; not if it was answered at its deadline |
//! | `call panicked` | error | `message`, `caller_present` |
//! | `call blocked its caller's thread: ..` | warn | `run_seconds` |
//! | `detached call ended` | info | `run_seconds`; only if the caller had left |
//! | `pool stalled: ..` | warn | `stalled_seconds`, `queued`, `active`, `nested` |
//! | `pool deadlocked: ..` | error | `waits` |
//! | `pool recovered` | info | `stalled_seconds` |
//! | `thread did not get its nice value` | warn | `niceness`, `error` |
//! | `thread hook panicked` | error | |
//!
//! `nested` is the number of threads whose call waits for another call of the pool, and `waits` the
//! number of such waits that are ended. The values of `reason` are the names that
//! [`CallError::as_str`](crate::CallError::as_str) returns: a full pool rejects with `overloaded`,
//! the limit or the share of a key with `key_limited`, and a deadline with `deadline_exceeded`. For
//! the run time without a caller they are the names of [`CancelReason`](crate::pool::CancelReason).
//!
//! [`metrics`]: https://docs.rs/metrics
//! [stalled]: crate::pool#stalled-pools

mod adaptive;
mod admission;
mod blocking_body;
mod future;
mod inspect;
mod key_limit;
mod layer;
mod reject;
mod service;
mod service_fn;

pub use self::{
    blocking_body::BlockingBody,
    future::ResponseFuture,
    inspect::{FairBy, FairByGroup, Filter, Inspect, OffloadAll, Prioritize, Propagate, Timeout},
    layer::OffloadLayer,
    reject::{HttpReject, ProblemJson, Protocol, Reject, RejectFn, RejectWithError, Watch},
    service::Offload,
    service_fn::{ServiceFnBlocking, service_fn_blocking},
};
pub use crate::request_head::{OfHead, OfRequest, RequestHead};
