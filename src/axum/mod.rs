//! Integration with axum: blocking functions as handlers and, with feature `flush`, a server that
//! tracks when each response was flushed.
//!
//! [`blocking`] creates a handler from a blocking function. Its extractors run on the event loop,
//! the function on a pool:
//!
//! ```
//! use axum::{Json, Router, extract::{Path, State}, routing::post};
//! use tower_offload::{ThreadPool, axum::blocking};
//!
//! #[derive(Clone)]
//! struct Pepper(&'static str);
//!
//! /// This function may block.
//! fn hash(State(pepper): State<Pepper>, Path(user): Path<String>, password: String) -> Json<u64> {
//!     Json((pepper.0.len() + user.len() + password.len()) as u64)
//! }
//!
//! let cpu = ThreadPool::cpu();
//! let app: Router = Router::new()
//!     .route("/hash/{user}", post(blocking(cpu.clone(), hash)))
//!     .with_state(Pepper("salt"));
//! # let _ = app;
//! ```
//!
//! # Errors
//!
//! The errors of this crate are responses, so a handler that returns [`axum::response::Result`] can
//! use `?` on all of them, and on its own errors:
//!
#![cfg_attr(feature = "after-response", doc = "```")]
#![cfg_attr(not(feature = "after-response"), doc = "```ignore")]
//! use axum::{Router, extract::State, http::StatusCode, response::Result, routing::post};
//! use tower_offload::{AfterResponse, AfterResponseLayer, Background, ThreadPool, pool::Pool};
//!
//! type Cpu = State<ThreadPool>;
//!
//! async fn square(State(cpu): Cpu, after: AfterResponse, n: String) -> Result<String> {
//!     let n = n.parse::<u64>().map_err(|_| StatusCode::BAD_REQUEST)?;
//!     let square = cpu.run(move || n.wrapping_mul(n)).await?; // CallError: 503
//!     after.spawn_blocking(move || println!("squared {n}"))?; // RegisterError: 503
//!     Ok(square.to_string())
//! }
//! # let _: Router = Router::new()
//! #     .route("/square", post(square))
//! #     .layer(AfterResponseLayer::new(Background::default()))
//! #     .with_state(ThreadPool::cpu());
//! ```
//!
//! [`axum::response::Result`]: https://docs.rs/axum/latest/axum/response/type.Result.html
//!
//! # After the response
//!
//! With feature `after-response`, handlers can take an `AfterResponse` as an extractor. Without its
//! layer the extractor rejects the request with a 500; the remedy is in the rejection and, with
//! feature `tracing`, in an event. With feature `flush`, `serve` in place of `axum::serve` makes
//! the outcomes exact:
//!
#![cfg_attr(feature = "flush", doc = "```no_run")]
#![cfg_attr(not(feature = "flush"), doc = "```ignore")]
//! use std::time::Duration;
//! use axum::{Router, routing::get};
//! use tower_offload::{
//!     AfterResponse, AfterResponseLayer, Background, axum::{serve, shutdown_signal},
//! };
//!
//! async fn hello(after: AfterResponse) -> &'static str {
//!     after.hook(move |outcome| println!("{} {}", outcome.end, outcome.delivery));
//!     "hello"
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> std::io::Result<()> {
//! let background = Background::default();
//! let app = Router::new()
//!     .route("/", get(hello))
//!     .layer(AfterResponseLayer::new(background.clone()));
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! let grace = Duration::from_secs(10);
//! let report = serve(listener, app).shutdown(shutdown_signal()?, grace, &background).await;
//! println!("stopped: {report}");
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
mod into_response;
#[cfg(feature = "flush")]
pub mod serve;

#[cfg(feature = "after-response")]
pub use self::after_response::MissingAfterResponseLayer;
pub use self::blocking::{Blocking, BlockingFn, blocking};
#[cfg(feature = "flush")]
pub use self::serve::{serve, shutdown_signal};
