//! Integration with axum: sync functions as handlers and, with feature `hyper`, listeners whose
//! connections report when a response was flushed.
//!
//! [`blocking`] creates a handler from a sync function. Its extractors run on the event loop, the
//! function on a pool:
//!
//! ```
//! use axum::{Json, Router, extract::{Path, State}, routing::post};
//! use tower_offload::{ThreadPool, axum::blocking};
//!
//! #[derive(Clone)]
//! struct Pepper(&'static str);
//!
//! /// This function may block.
//! fn hash(State(pepper): State<Pepper>, Path(user): Path<String>, password: String) -> Json<usize> {
//!     Json(pepper.0.len() + user.len() + password.len())
//! }
//!
//! let cpu = ThreadPool::cpu();
//! let app: Router = Router::new()
//!     .route("/hash/{user}", post(blocking(cpu.clone(), hash)))
//!     .with_state(Pepper("salt"));
//! # let _ = app;
//! ```
//!
//! # After the response
//!
//! With feature `after-response`, handlers can take an `AfterResponse` as an extractor. Without its
//! layer the extractor rejects the request with a 500 that names the missing layer. With feature
//! `hyper`, two lines in `main` make the outcomes exact:
//!
#![cfg_attr(feature = "flush", doc = "```no_run")]
#![cfg_attr(not(feature = "flush"), doc = "```ignore")]
//! use std::{net::SocketAddr, time::Duration};
//! use axum::{Router, extract::ConnectInfo, routing::get};
//! use tower_offload::{
//!     AfterResponse, AfterResponseLayer, Background, axum::{FlushListener, FlushMakeService},
//! };
//!
//! async fn hello(ConnectInfo(client): ConnectInfo<SocketAddr>, after: AfterResponse) {
//!     after.hook(move |outcome| println!("{client}: {} {}", outcome.end, outcome.delivery));
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> std::io::Result<()> {
//! let background = Background::default();
//! let app = Router::new()
//!     .route("/", get(hello))
//!     .layer(AfterResponseLayer::new(background.clone()));
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! axum::serve(FlushListener::new(listener), FlushMakeService::new(app))
//!     .with_graceful_shutdown(async { tokio::signal::ctrl_c().await.unwrap_or_default() })
//!     .await?;
//! println!("{}", background.drain(Duration::from_secs(10)).await);
//! # Ok(())
//! # }
//! ```
//!
//! Import from this crate by name: a glob import of it makes `axum` ambiguous in `use axum::..`.
//!
//! # When not to use it
//!
//! To offload many routes, or async handlers, use an [`OffloadLayer`](crate::OffloadLayer) on the
//! router.

#[cfg(feature = "after-response")]
mod after_response;
mod blocking;
#[cfg(feature = "flush")]
mod flush;
mod into_response;

#[cfg(feature = "after-response")]
pub use self::after_response::MissingAfterResponseLayer;
pub use self::blocking::{Blocking, blocking};
#[cfg(feature = "flush")]
pub use self::flush::{FlushFuture, FlushListener, FlushMakeService, FlushService};
