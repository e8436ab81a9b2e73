//! Tasks with ids: work of a tower service whose status, progress and result clients can query, and
//! [durable jobs](jobs) on River.
//!
//! Use it if a client waits for something that takes longer than a request should. The client gets
//! a 202 response with the URL of the task's status, and polls or follows it.
//!
//! ```
//! use std::convert::Infallible;
//! use tower_offload::Background;
//! use tower_offload_tasks::{MemoryStore, Tasks};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (tasks, background) = (Tasks::new(MemoryStore::new()), Background::default());
//! let task = tasks.track("report");
//! let accepted = task.spawn_blocking(&background, |progress| {
//!     progress.set(0.5, "halfway"); // blocking work, on the pool of the background
//!     Ok::<_, Infallible>(vec![1, 2, 3])
//! });
//! let response = accepted.await?.into_response::<bytes::Bytes>();
//! assert_eq!(response.status(), 202);
//! # Ok(())
//! # }
//! ```
//!
//! [`Tasks::service`] answers the status requests, [`Tasks::get`] and [`Tasks::subscribe`] do so
//! within the process:
//!
//! ```
//! # use std::convert::Infallible;
//! # use tower_offload::Background;
//! # use tower_offload_tasks::{MemoryStore, Status, TaskState, Tasks};
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (tasks, background) = (Tasks::new(MemoryStore::new()), Background::default());
//! # let work = |_| Ok::<_, Infallible>(vec![1, 2, 3]);
//! # let id = tasks.track("report").spawn_blocking(&background, work).await?.id();
//! let mut subscription = tasks.subscribe(id).await?.expect("the task was accepted");
//! while subscription.changed().await?.is_some() {}
//! let status = Status::from(subscription.record());
//! assert_eq!(status.state, TaskState::Succeeded);
//! assert_eq!(status.result::<Vec<u32>>()?, [1, 2, 3]);
//! # Ok(())
//! # }
//! ```
//!
//! A [`TrackBuilder`] has the options of a task. The [`TaskTarget`] decides when it starts: at once
//! with a `Background`, after the response with an `AfterResponse`.
//!
//! ```
//! # use std::time::Duration;
//! use tower_offload_tasks::{
//!     AcceptError, Accepted, Failure, MemoryStore, Retention, TaskTarget, Tasks,
//! };
//!
//! let tasks = Tasks::builder(MemoryStore::with_capacity(2000))
//!     .base_path("/api/tasks")
//!     .retention(Retention::default().max_records(1000).max_age(Duration::from_secs(3600)))
//!     .build();
//!
//! async fn order(
//!     tasks: &Tasks,
//!     target: &impl TaskTarget,
//!     item: u32,
//! ) -> Result<Accepted, AcceptError> {
//!     let task = tasks.track("order").owner("ann").timeout(Duration::from_secs(60));
//!     task.spawn(target, move |progress| async move {
//!         progress.message("checking the stock");
//!         match item {
//!             0 => Err(Failure::new("out_of_stock", "no item is left").detail(&item)),
//!             _ => Ok(item),
//!         }
//!     })
//!     .await
//! }
//! # let background = tower_offload::Background::default();
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! # assert!(order(&tasks, &background, 0).await.is_ok());
//! background.shutdown(Duration::from_secs(10)).await; // ends the tasks
//! assert!(tasks.shutdown(Duration::from_secs(5)).await.is_clean()); // writes how they ended
//! # });
//! ```
//!
//! # Guarantees
//!
//! - **The record of a task is stored before its [`Accepted`] exists.** A client that got a 202
//!   finds the task, and a task that is found was accepted. If the background is full or the store
//!   fails, the caller gets an [`AcceptError`] and the work does not run.
//! - **Every task reaches exactly one final [state](TaskState).** This includes tasks that panic,
//!   return a result that cannot be stored, time out, are cancelled, or whose response fails. If
//!   the process ends first, the next process that uses the store marks the task as
//!   [lost](TaskState::Lost).
//! - **A failing store loses no accepted task.** The tasks continue, their status is served from
//!   memory, and their records are written once the store works again. No new task is accepted
//!   until then.
//! - **Memory and disk are bounded.** [`Retention`] limits the number and the age of finished
//!   records; an evicted record leaves a tombstone for a while. Unfinished records are never
//!   evicted. Progress is written at most four times a second, and all records that wait are
//!   written in one transaction.
//!
//! # Events in the life of a task
//!
//! - **Panic**: the task has [failed](TaskState::Failed), with class `panic`.
//! - **Cancellation**: a queued task never starts, and a future is dropped. A closure can
//!   [poll](Progress::is_cancelled) for it.
//! - **The caller leaves** while the record is written: the work does not run, and the task is
//!   cancelled as [abandoned](Reason::Abandoned).
//! - **Shutdown**: call [`Tasks::end_streams`] with the signal. When the server has stopped, call
//!   `Background::shutdown` and then [`Tasks::shutdown`].
//! - **Crash** of the process: with a persistent store, unfinished tasks are lost and reported as
//!   such. Jobs run again.
//!
//! # When not to use it
//!
//! Work whose status no client asks for needs only a [`Background`](tower_offload::Background) or
//! an `AfterResponse`. Work that must be done even if the process crashes needs a [job](jobs): here
//! it is reported as lost.
//!
//! # Features
//!
//! | feature | adds | minimum Rust |
//! |---|---|---|
//! | `after-response` | `AfterResponse` as a [`TaskTarget`] | |
//! | `axum` | `IntoResponse` for [`Accepted`] and [`AcceptError`] | |
//! | `openapi` | `GET /openapi.json` of the [status service](service) | |
//! | `page` | the status page for browsers | |
//! | `postgres`, `sqlite` | `SqlStore` | 1.94 |
//! | `river` | [`jobs`] on the databases whose feature is on | 1.95 |
//! | `tracing` | events for store failures | |

#![cfg_attr(docsrs, feature(doc_cfg))]

mod accepted;
#[cfg(feature = "axum")]
mod axum;
mod builder;
mod error;
mod failure;
mod id;
#[cfg(feature = "river")]
#[cfg_attr(docsrs, doc(cfg(feature = "river")))]
pub mod jobs;
mod json;
mod panic;
mod problem;
mod progress;
mod record;
pub mod service;
mod state;
mod status;
pub mod store;
mod subscription;
mod sync;
mod tasks;
mod text;
mod timestamp;
mod track;
mod work;
mod writer;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "postgres", feature = "sqlite"))))]
pub use self::store::SqlStore;
pub use self::{
    accepted::Accepted,
    builder::TasksBuilder,
    error::AcceptError,
    failure::{Failure, IntoFailure},
    id::{ParseTaskIdError, TaskId},
    json::{Json, JsonError},
    progress::Progress,
    record::Record,
    service::{StatusAlias, StatusService},
    state::{ParseReasonError, ParseTaskStateError, Reason, TaskState},
    status::{NoResultError, Status},
    store::{MemoryStore, Retention, StoreError, TaskStore},
    subscription::Subscription,
    tasks::{Tasks, TasksShutdownReport, TasksStats},
    timestamp::{ParseTimestampError, Timestamp},
    track::TrackBuilder,
};
pub use tower_offload::background::TaskTarget;
