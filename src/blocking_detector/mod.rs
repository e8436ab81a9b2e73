//! Finds the handlers that block the event loop.
//!
//! [`BlockingDetectorLayer`] measures how long the inner service's `call`, and each single poll of its future, held the
//! thread. When one of them took longer than a [threshold](BlockingDetectorLayer::threshold) it says so, and names the
//! route. It changes nothing else: readiness, response, error, body and panics pass through.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_offload::blocking_detector::BlockingDetectorLayer;
//!
//! let app: Router = Router::new()
//!     .route("/users/{id}", get(async || "a user"))
//!     .layer(BlockingDetectorLayer::new()); // features `tracing` and `metrics`: a warning, a counter, a histogram
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
//!             .on_blocking(move |blocked| drop(reports.send((blocked.route().to_owned(), blocked.held())))),
//!     )
//!     .service(service_fn(async |()| {
//!         thread::sleep(Duration::from_millis(2)); // stands for work that blocks
//!         Ok::<_, Infallible>(())
//!     }));
//! service.oneshot(()).await.unwrap();
//! let (route, held) = reported.try_recv().unwrap();
//! assert!(route == "resize" && held >= Duration::from_millis(2));
//! # }
//! ```
//!
//! # What to do with a report
//!
//! Offload what it names: that route alone, with [`OffloadLayer::filter`](crate::OffloadLayer::filter), with a
//! `Router::route_layer` on a router of such routes, or as a sync function with
//! [`axum::blocking`](https://docs.rs/tower-offload/latest/tower_offload/axum/fn.blocking.html). The detector goes outside
//! of the [`OffloadLayer`](crate::OffloadLayer) and then is silent about it; inside, it would watch the pool's threads,
//! where blocking is what they are for.
//!
//! # When not to use it
//!
//! To profile: it says which route and for how long, not where in the code. On a machine that is out of processor time it
//! says too much: what it measures is time on the clock, and a thread that the system took off its core in the middle of
//! a poll was held, too, through no fault of the handler. Look for routes that come up again and again.
//!
//! It does not see
//!
//! * response bodies, which the HTTP implementation polls, and request bodies, unless the handler reads them;
//! * tasks that the handler spawned, and what it moved to other threads;
//! * `poll_ready`, and the drop of the future;
//! * many short polls that add up: each is measured alone, for between two of them others have their turn.
//!
//! # The name of a route
//!
//! | stack | route | in a metric's label |
//! |---|---|---|
//! | axum, with feature `axum` | `MatchedPath`, as `/users/{id}` | the same |
//! | other HTTP; axum's fallback; tonic: `/package.Service/Method` | the path, without the query | the first 100 that a layer sees, if no longer than 256 bytes; else `other` |
//! | [`route`](BlockingDetectorLayer::route), [`route_request`](BlockingDetectorLayer::route_request) | what the closure says | as above |
//! | [`named`](BlockingDetectorLayer::named) | that name | the same |
//!
//! `Router::layer` and `Router::route_layer` both see the matched path, also that of nested routers, except for requests that
//! no route matches (only `Router::layer` sees those at all). A layer around a whole router, as in
//! `ServiceBuilder::new().layer(..).service(router)` or outside of `nest_service`, runs before that router has matched, and
//! sees the path.
//!
//! # Observability
//!
//! Feature `tracing`: one event for each report, `thread blocked`, level warn, with the fields `route`, `method` (HTTP only),
//! `held_seconds` and `poll` (0 for `call`, then 1, 2, ..). Feature `metrics`, both with the label `route`:
//!
//! | metric | kind | what it counts |
//! |---|---|---|
//! | `offload_blocking_total` | counter | reports |
//! | `offload_blocking_seconds` | histogram | how long the thread was held, one for each report |
//!
//! Without any of these features there is still [`on_blocking`](BlockingDetectorLayer::on_blocking).
//!
//! # Cost
//!
//! Two readings of the clock for `call` and for each poll, and for each request two reference counts (the layer's settings, the
//! name of the route). No allocation unless there is something to report, or the method is a long one of the client's own, but for what a closure of
//! [`route`](BlockingDetectorLayer::route) allocates.

mod blocked;
mod future;
#[cfg(feature = "metrics")]
mod labels;
mod layer;
mod name;
mod naming;
mod service;
mod watch;

pub use self::{
    blocked::Blocked,
    future::ResponseFuture,
    layer::BlockingDetectorLayer,
    name::Name,
    naming::{ByHead, ByPath, ByRequest, Fixed, Naming},
    service::BlockingDetector,
};
pub use crate::head::Head;
