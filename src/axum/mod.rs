//! Sync functions as axum handlers.
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
//! # When not to use it
//!
//! To offload many routes, or handlers that are `async`, put an [`OffloadLayer`](crate::OffloadLayer) on the router
//! instead.

#[cfg(feature = "after-response")]
mod after_response;
mod blocking;
mod into_response;

#[cfg(feature = "after-response")]
pub use self::after_response::MissingAfterResponseLayer;
pub use self::blocking::{Blocking, blocking};
