//! A layer that finds handlers which block the event loop.
//!
//! [`BlockingDetectorLayer`] measures how long the inner service's `call`, and each poll of its
//! future, occupies the thread. If that takes longer than a
//! [threshold](BlockingDetectorLayer::threshold), it reports the name of the route. It changes
//! nothing else: readiness, response, error, body and panics pass through.
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
//! It is not a profiler: it reports a route and a duration, not a position in the code. It measures
//! wall-clock time, so on a machine that is short of processor time it also reports polls during
//! which the operating system ran another thread. Look for routes that are reported repeatedly.
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
//! Feature `tracing` emits one event for each report: `thread blocked`, level warn, with the fields
//! `route`, `method` (HTTP only), `duration_seconds` and `poll` (0 for `call`, then 1, 2, ..).
//! Feature `metrics` records two metrics with the label `route`, a unit and a help text:
//!
//! | metric | kind | value |
//! |---|---|---|
//! | `offload_blocking_total` | counter | reports |
//! | `offload_blocking_seconds` | histogram | duration of each report |
//!
//! [`on_blocking`](BlockingDetectorLayer::on_blocking) needs neither feature.
//!
//! # Cost
//!
//! The clock is read twice for `call` and for each poll, and each request clones two
//! reference-counted pointers (the layer's settings and the name of the route). The layer allocates
//! only to report, and to copy a method that is not one of the standard methods. A closure given to
//! [`route`](BlockingDetectorLayer::route) may allocate for each request.

mod blocked;
mod future;
#[cfg(feature = "metrics")]
mod labels;
mod layer;
mod naming;
mod service;
mod watch;

pub use self::{
    blocked::{Blocked, Step},
    future::ResponseFuture,
    layer::BlockingDetectorLayer,
    naming::{ByPath, FixedName, Name, Naming, RouteFn, RouteOf, RouteOfHead},
    service::BlockingDetector,
};
