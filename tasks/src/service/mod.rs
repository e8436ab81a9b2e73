//! Tells the status of tasks over HTTP: a plain tower service, mounted on axum with `nest_service`, or served by hyper alone.
//!
//! | Request | Answer |
//! |---|---|
//! | `GET /{id}` | 200 with the [`Status`](super::Status), also of a task that failed; `Retry-After` only while it is pending. 404 if it is unknown or somebody else's, 410 if it is kept no more. With `Prefer: wait=n` once the task is over, or after n seconds |
//! | `GET /{id}/events` | its events as `text/event-stream`, to the end; goes on behind `Last-Event-ID`, and is 204 once all was told |
//! | `DELETE /{id}` | asks to cancel it: 202, or 200 if it is over |
//! | `GET /?state=&name=&limit=&after=` | a list, the newest first, with `Link: <..>; rel="next"`; for browsers a page that shows it live |
//! | `GET /openapi.json` | all of that, for programs |
//!
//! Errors are `application/problem+json`. What they do not tell clients, why the store failed, is an event of level `ERROR` with feature
//! `tracing`. HEAD is GET without a body; another method is 405.
//!
//! ```
//! use axum::Router;
//! use tower_offload_tasks::{MemoryStore, Tasks};
//!
//! let tasks = Tasks::new(MemoryStore::new());
//! let app: Router = Router::new()
//!     .nest_service("/tasks", tasks.service())
//!     .route_service("/status", tasks.status_alias());
//! # let _ = app;
//! ```
//!
//! With options:
//!
//! ```
//! use std::time::Duration;
//! use tower_offload_tasks::{MemoryStore, Tasks, service::{Access, Action}};
//!
//! /// What a layer of the application's own has found out, and put into the request's extensions.
//! #[derive(Clone)]
//! struct User { name: String, is_admin: bool }
//!
//! let tasks = Tasks::new(MemoryStore::new());
//! let service = tasks
//!     .service()
//!     .authorize(|head, action| match (head.extensions().get::<User>(), action) {
//!         (Some(user), _) if user.is_admin => Access::All,
//!         (Some(user), _) => Access::Owner(user.name.clone()),
//!         (None, Action::Show(_)) => Access::Public, // who has an id
//!         (None, _) => Access::Denied,
//!     })
//!     .max_wait(Duration::from_secs(20))
//!     .max_streams(200);
//! # let _ = service;
//! ```
//!
//! # Who may do what
//!
//! By default only `GET /{id}` and its events are open, for tasks without an owner: an id cannot be guessed. Everything else wants a decision:
//! [`StatusService::authorize`]. A task of another owner is answered as one that does not exist.
//!
//! The page has no cookie or token of its own: it sends what the browser sends to its own origin. Answers allow no other origin, so that a
//! foreign page cannot read or cancel anything.
//!
//! # What a client can cost
//!
//! A stream or a waiting client takes one of [`max_streams`](StatusService::max_streams) places, a list has at most 1000 tasks. A client that
//! never reads keeps its place until its connection ends: the server's own timeouts are what ends it.
//!
//! # Shutdown
//!
//! A server that stops gracefully waits for its connections, and a stream lasts as long as its task:
//! [`Tasks::end_streams`](crate::Tasks::end_streams), with the signal that stops the server, ends those that there are. Their clients
//! come back after a second, and go on where they were.
//!
//! # When not to use it
//!
//! For the status of many thousand tasks at once, to the second: look into the store.

mod accept;
mod accepted;
mod access;
mod alias;
mod body;
mod cancel;
mod config;
mod events;
mod future;
mod list;
mod milestone;
#[cfg(feature = "openapi")]
mod openapi;
mod page;
mod prefer;
mod problem;
mod query;
mod respond;
mod routes;
#[allow(clippy::module_inception)]
mod service;
mod show;
mod source;
mod stream;
mod tasks;
mod wait;

pub use self::{
    access::{Access, Action},
    alias::StatusAlias,
    body::ResponseBody,
    future::ResponseFuture,
    service::StatusService,
};

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
