//! The layer that runs a service on a [pool](crate::pool).
//!
//! [`OffloadLayer`] moves the inner service's `call` *and every poll of its future* to the pool, and the future's drop as
//! well. A poll that is pending gives the thread back; the wake brings the next poll to the pool. So a handler that awaits
//! I/O holds no thread, and a handler that blocks in the middle of an `async fn` blocks nobody.
//!
//! ```
//! use tower::{Service, ServiceBuilder, ServiceExt};
//! use tower_offload::{OffloadLayer, ThreadPool, offload::{Typed, sync_fn}};
//!
//! # #[tokio::main]
//! # async fn main() {
//! let mut service = ServiceBuilder::new()
//!     .layer(OffloadLayer::new(ThreadPool::cpu()).reject(Typed)) // `Typed`: this is not HTTP
//!     .service(sync_fn(|text: String| Ok::<_, std::convert::Infallible>(text.to_uppercase())));
//! assert_eq!(service.ready().await.unwrap().call("hop".to_owned()).await.unwrap(), "HOP");
//! # }
//! ```
//!
//! With options, on axum:
//!
//! ```
//! use std::time::Duration;
//! use axum::{Router, routing::{get, post}};
//! use tower_offload::{OffloadLayer, ThreadPool, offload::Problem};
//!
//! let layer = OffloadLayer::new(ThreadPool::blocking(64))
//!     .filter(|head| head.uri().path() != "/ping") // the rest stays where it is
//!     .max_in_flight(256)                          // queued, running or awaiting
//!     .wait(Duration::from_millis(500))            // for room, then 503
//!     .reject(Problem);                            // with an application/problem+json body
//! let app: Router = Router::new()
//!     .route("/ping", get(async || "pong"))
//!     .route("/report", post(async || "rows"))
//!     .layer(layer);
//! # let _ = app;
//! ```
//!
//! # When not to use it
//!
//! Around handlers that only await: they block nobody, and each hop costs tens of microseconds. Around a service that
//! exists once and cannot be cloned: put tower's `Buffer` in between.
//!
//! # When there is no room
//!
//! A call needs a slot in the pool's queue until its first poll, and a place of the layer
//! ([`max_in_flight`](OffloadLayer::max_in_flight)) until its work ends. Without room a call is
//!
//! * refused at once: the default. `poll_ready` is the inner service's alone, since hyper and axum ready a clone for each
//!   request, and a reservation there would make requests wait without bound;
//! * held for at most a duration: [`wait`](OffloadLayer::wait);
//! * not made: [`backpressure`](OffloadLayer::backpressure) reserves in `poll_ready`.
//!
//! Which calls wait and for how long is for the pool's [policy](crate::pool#overload) and for
//! [`priority`](OffloadLayer::priority) to say.
//!
//! # CallError
//!
//! A [`CallError`] is a value; the layer's strategy turns it into an answer. [`Http`], the default, serves every HTTP
//! stack without changing its types: 503 with `Retry-After`, or a gRPC status. [`Problem`] adds a body, [`Typed`] gives
//! other stacks an error to match on, [`reject_with`](OffloadLayer::reject_with) takes a closure. A stack that none fits
//! is told so by the compiler:
//!
//! ```compile_fail
//! use tower::{Service, ServiceBuilder, service_fn};
//! use tower_offload::{OffloadLayer, ThreadPool};
//!
//! fn serve(_: impl Service<u32>) {}
//!
//! // error: `Http` cannot answer for a service with request `u32`, response `u32` and error `Infallible`
//! // note: use `.reject(Typed)` or `.reject_with(|rejection| ..)` on the layer
//! serve(
//!     ServiceBuilder::new()
//!         .layer(OffloadLayer::new(ThreadPool::cpu()))
//!         .service(service_fn(async |number: u32| Ok::<_, std::convert::Infallible>(number))),
//! );
//! ```
//!
//! A method that needs the service, such as `ready` or `oneshot`, only says that its trait bounds were not satisfied
//! (E0599). Then it is one of these: the strategy does not fit (`.reject(Typed)` outside of HTTP), a filter looks at a head
//! where there is none (`.filter_request(..)`), or the inner service is not `Clone`, `Send` and `'static`. Hand the service
//! to a function like `serve` above, or call `ServiceBuilder::check_service`, to be told which.
//!
//! # Cancel safety
//!
//! Dropping the response future cancels the call. Work that was not started never is: it is dropped at once, with its
//! caller, and its request with it; only its slot is taken until its turn would have come. Work that awaits is dropped on the pool, at once. Work that runs can ask [`cancelled`],
//! or take a [`cancellation`] token to other threads. In any case the place stays taken until the work has ended: a client
//! that hangs up frees no thread that is still busy. [`detached`](OffloadLayer::detached) lets the work go on.
//!
//! # Observability
//!
//! [`Stats`](crate::pool::Stats) has all counters, without any feature. Feature `metrics` records through the [`metrics`]
//! crate, each with the label `pool`; install the recorder before the first call.
//!
//! | metric | kind | what it counts |
//! |---|---|---|
//! | `offload_queue_depth` | gauge | calls that wait for their first poll |
//! | `offload_active` | gauge | threads that poll a call |
//! | `offload_queue_wait_seconds` | histogram | from `call` to the first poll |
//! | `offload_run_seconds` | histogram | sum of a call's polls |
//! | `offload_resume_wait_seconds` | histogram | from a wake to the poll it leads to, one for each |
//! | `offload_rejected_total` | counter | calls refused; label `reason`: `closed`, `expired`, `no_runtime`, `overloaded` |
//! | `offload_abandoned_total` | counter | calls whose caller left before they ended |
//! | `offload_panicked_total` | counter | panics of work, whoever saw them |
//!
//! Feature `tracing` runs the work in the caller's span, with its dispatcher, and emits these events with the field `pool`:
//!
//! | event | level | fields |
//! |---|---|---|
//! | `call rejected` | debug | `reason` |
//! | `call abandoned by its caller` | debug | `detached` |
//! | `call panicked` | error | `message`, `caller_present` |
//! | `detached call ended` | info | `run_seconds`; only if the caller had left |
//! | `thread did not get its nice value` | warn | `niceness`, `error`; see [`niceness`](crate::pool::ThreadPoolBuilder::niceness) |
//! | `thread hook panicked` | error | |
//!
//! [`metrics`]: https://docs.rs/metrics

mod admission;
mod backpressure;
mod future;
mod inspect;
mod invoke;
mod layer;
mod reject;
mod service;
mod sync_body;
mod sync_fn;

pub use self::{
    future::ResponseFuture,
    inspect::{Carry, CarryRequest, Everything, Filter, FilterRequest, Inspect, Prioritize, PrioritizeRequest},
    layer::OffloadLayer,
    reject::{Http, Problem, Protocol, Reject, Typed, With},
    service::Offload,
    sync_body::SyncBody,
    sync_fn::{SyncFn, sync_fn},
};
pub use crate::{
    head::Head,
    pool::{CallError, CancellationToken, Priority, cancellation_token, cancelled},
};
