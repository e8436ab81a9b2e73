//! A layer that finds handlers which block the event loop.
//!
//! [`BlockingDetectorLayer`] measures how long the inner service's `call`, and each poll of its
//! future, occupies the thread. If that takes longer than a
//! [threshold](BlockingDetectorLayer::threshold), it reports the name of the route when the step
//! ends, and also [while it lasts](#while-it-lasts) if it is long or never ends. It changes nothing
//! else: readiness, response, error, body and panics pass through.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_offload::blocking_detector::BlockingDetectorLayer;
//!
//! // Emits a warning with feature `tracing`, a counter and a histogram with feature `metrics`.
//! let app: Router = Router::new()
//!     .route("/users/{id}", get(async || "a user"))
//!     .layer(BlockingDetectorLayer::new());
//! # let _ = app;
//! ```
//!
//! With options, around a service that is not HTTP:
//!
//! ```
//! use std::{convert::Infallible, sync::mpsc, thread, time::Duration};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_offload::blocking_detector::BlockingDetectorLayer;
//!
//! # #[tokio::main]
//! # async fn main() {
//! let (reports, reported) = mpsc::channel();
//! let service = ServiceBuilder::new()
//!     .layer(
//!         BlockingDetectorLayer::new()
//!             .threshold(Duration::from_millis(1))
//!             .named("resize")
//!             .on_blocking(move |blocked| {
//!                 let report = (blocked.route().to_owned(), blocked.duration());
//!                 reports.send(report).unwrap_or_default();
//!             }),
//!     )
//!     .service(service_fn(async |()| {
//!         thread::sleep(Duration::from_millis(2)); // in place of work that blocks
//!         Ok::<_, Infallible>(())
//!     }));
//! service.oneshot(()).await.unwrap();
//! let (route, duration) = reported.try_recv().unwrap();
//! assert!(route == "resize" && duration >= Duration::from_millis(2));
//! # }
//! ```
//!
//! # While it lasts
//!
//! A step that never ends, such as a deadlock or an endless loop, is reported too. A watchdog
//! thread looks every 50 ms at the steps that run now. It reports a step that has lasted for 100 ms
//! (or for the threshold, if that is longer), at most one period late, and again each time the
//! duration has doubled. The report has the name of the route, the duration so far and the thread.
//! When the step ends, it is reported as usual, with its total duration.
//!
//! There is one watchdog for all layers and runtimes of the process, named `offload-detector`. It
//! is started by the first step and exits when no step has run for 10 seconds. It uses the real
//! clock, also if tokio's clock is paused, and its durations are up to one period shorter than the
//! real ones. It runs outside of your runtimes and threads, so its events and metrics reach the
//! global subscriber and the global recorder. If no thread can be spawned, and in a process that
//! was forked from one with a watchdog, steps are reported only when they end.
//!
//! A step within [`block_in_place`] is reported as well: it blocks its task, although tokio has
//! moved the other tasks to another thread.
//!
//! [`block_in_place`]: https://docs.rs/tokio/latest/tokio/task/fn.block_in_place.html
//!
//! ## Find the position in the code
//!
//! On Linux a report has the [id of the thread](Blocked::thread_id). While the thread is blocked, a
//! debugger shows its stack, as that of `LWP <id>`:
//!
//! ```text
//! gdb -p "$(pidof server)" -batch -ex "thread apply all bt"
//! ```
//!
//! The detector takes no stack traces. It would have to interrupt the blocked thread with a signal,
//! and unwinding allocates and acquires locks, so it could deadlock a thread that was interrupted
//! within the allocator or the dynamic loader.
//!
//! # What to do with a report
//!
//! Offload the route: with [`OffloadLayer::filter`](crate::OffloadLayer::filter), with
//! `Router::route_layer` on a router of such routes, or as a blocking function with
//! [`axum::blocking`](https://docs.rs/tower-offload/latest/tower_offload/axum/fn.blocking.html).
//! Put the detector outside of the [`OffloadLayer`](crate::OffloadLayer), where it measures the
//! event loop. Inside, it would measure the threads of the pool, which may be blocked.
//!
//! # When not to use it
//!
//! It is not a profiler: it reports a route, a duration and a thread, not a position in the code.
//! It measures wall-clock time, so on a machine that is short of processor time it also reports
//! polls during which the operating system ran another thread. Look for routes that are reported
//! repeatedly.
//!
//! It does not measure
//!
//! * response bodies, which the HTTP implementation polls, and request bodies that the handler does
//!   not read;
//! * tasks that the handler spawns, and work that it moves to other threads;
//! * `poll_ready`, and the drop of the future;
//! * the sum of many short polls: each poll is measured alone, since other tasks can run between
//!   two of them.
//!
//! # The name of a route
//!
//! | layer or stack | route | label |
//! |---|---|---|
//! | axum, with feature `axum` | `MatchedPath`, such as `/users/{id}` | the route |
//! | other HTTP, and axum's fallback | the path, without the query | limited |
//! | tonic | the path: `/package.Service/Method` | limited |
//! | [`route`], [`route_request`] | the result of the closure | limited |
//! | [`named`] | the given name | the route |
//!
//! A limited label of a metric is the route for the first 100 routes that a layer sees, up to 256
//! bytes each, and `other` for all later ones.
//!
//! [`named`]: BlockingDetectorLayer::named
//! [`route`]: BlockingDetectorLayer::route
//! [`route_request`]: BlockingDetectorLayer::route_request
//!
//! `Router::layer` and `Router::route_layer` both see the matched path, also that of nested
//! routers, except for requests that match no route (only `Router::layer` sees those). A layer
//! around a whole router, such as `ServiceBuilder::new().layer(..).service(router)` or one outside
//! of `nest_service`, runs before the router matches, so it sees the path.
//!
//! # Observability
//!
//! Feature `tracing` emits one event for each report, level warn, with the fields `route`, `method`
//! (HTTP only), `duration_seconds` and `poll` (0 for `call`, then 1, 2, ..): `thread blocked` when
//! the step has ended, and `thread still blocked` while it lasts, with the fields `thread` (its
//! name) and `thread_id` (Linux) in addition.
//!
//! Feature `metrics` records three metrics with a unit and a help text:
//!
//! | metric | kind | label | value |
//! |---|---|---|---|
//! | `offload_blocking_total` | counter | `route` | steps above the threshold that have ended |
//! | `offload_blocking_seconds` | histogram | `route` | their duration |
//! | `offload_blocked_threads` | gauge | | threads whose step was reported and has not ended |
//!
//! The series of a route begins with its first report, because a series for each route that never
//! blocks would be of no use.
//!
//! The callbacks [`on_blocking`](BlockingDetectorLayer::on_blocking) and
//! [`on_still_blocking`](BlockingDetectorLayer::on_still_blocking) need neither feature.
//!
//! # Cost
//!
//! The clock is read twice for `call` and for each poll, and each request clones two
//! reference-counted pointers (the layer's settings and the name of the route). To show a step to
//! the watchdog takes two atomic operations on memory that only the thread itself writes, without a
//! lock. The layer allocates only to report, in the first step of a thread, and to copy a method
//! that is not one of the standard methods. A closure given to
//! [`route`](BlockingDetectorLayer::route) may allocate for each request.

mod blocked;
mod future;
#[cfg(feature = "metrics")]
mod labels;
mod layer;
mod naming;
mod service;
mod slot;
mod watch;
mod watchdog;

pub use self::{
    blocked::{Blocked, Step},
    future::ResponseFuture,
    layer::BlockingDetectorLayer,
    naming::{ByPath, FixedName, Name, Naming, RouteFn, RouteOf, RouteOfHead},
    service::BlockingDetector,
};
