//! Sync functions as axum handlers; with feature `hyper`, listeners whose connections tell when a response was flushed.
//!
//! [`blocking`] makes a handler of a sync function; its extractors run on the event loop, the function on a pool:
//!
//! ```
//! use axum::{Json, Router, extract::{Path, State}, routing::post};
//! use tower_offload::{ThreadPool, axum::blocking};
//!
//! #[derive(Clone)]
//! struct Pepper(&'static str);
//!
//! /// Nothing in here is async, and nothing in here blocks the event loop.
//! fn hash(State(Pepper(pepper)): State<Pepper>, Path(user): Path<String>, password: String) -> Json<usize> {
//!     Json(pepper.len() + user.len() + password.len())
//! }
//!
//! let cpu = ThreadPool::cpu();
//! let app: Router = Router::new().route("/hash/{user}", post(blocking(cpu.clone(), hash))).with_state(Pepper("salt"));
//! # let _ = app;
//! ```
//!
//! # After the response
//!
//! With feature `after-response`, handlers take an `AfterResponse` as an extractor; without its layer they answer a 500 that says so. With
//! feature `hyper`, two lines in `main` make its outcomes exact:
//!
#![cfg_attr(feature = "flush", doc = "```no_run")]
#![cfg_attr(not(feature = "flush"), doc = "```ignore")]
//! use std::{net::SocketAddr, time::Duration};
//! use axum::{Router, extract::ConnectInfo, routing::get};
//! use tower_offload::{AfterResponse, AfterResponseLayer, Background, axum::{FlushListener, FlushMakeService}};
//!
//! async fn hello(ConnectInfo(client): ConnectInfo<SocketAddr>, after: AfterResponse) -> &'static str {
//!     after.hook(move |outcome| println!("{client}: {} {}", outcome.end, outcome.delivery));
//!     "hello"
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> std::io::Result<()> {
//! let background = Background::default();
//! let app = Router::new().route("/", get(hello)).layer(AfterResponseLayer::new(background.clone()));
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! axum::serve(FlushListener::new(listener), FlushMakeService::new(app))
//!     .with_graceful_shutdown(async { tokio::signal::ctrl_c().await.unwrap_or_default() })
//!     .await?;
//! println!("{}", background.drain(Duration::from_secs(10)).await);
//! # Ok(())
//! # }
//! ```
//!
//! Import from this crate by name: a glob of it beside `use axum::..` makes `axum` ambiguous.
//!
//! # When not to use it
//!
//! To offload many routes, or handlers that are `async`, put an [`OffloadLayer`](crate::OffloadLayer) on the router
//! instead.

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
