//! Tasks with an id: work of this process whose status, progress and result others ask for later.
//!
//! Take it where a client waits for something that takes longer than a request should: it gets a 202 with a place to ask, and asks.
//!
//! ```
//! use std::convert::Infallible;
//! use http::StatusCode;
//! use tower_offload::Background;
//! use tower_offload_tasks::{MemoryStore, Status, TaskState, Tasks};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let tasks = Tasks::new(MemoryStore::new());
//! let background = Background::default();
//!
//! let accepted = tasks
//!     .track("report")
//!     .run(&background, |progress| {
//!         progress.set(0.5, "halfway"); // blocking work, on the pool of the background
//!         Ok::<_, Infallible>(vec![1, 2, 3])
//!     })
//!     .await?; // full, or the store fails: an error, before anything was promised
//!
//! let id = accepted.id();
//! # let mut subscription = tasks.subscribe(id).await?.expect("it was accepted");
//! # while subscription.changed().await?.is_some() {}
//! let response = accepted.into_response::<bytes::Bytes>();
//! assert_eq!(response.status(), StatusCode::ACCEPTED);
//! assert_eq!(response.headers()["location"], format!("/tasks/{id}"));
//!
//! // Later:
//! let record = tasks.get(id).await?.into_record().expect("it is kept for a day");
//! let status = Status::from(&record);
//! assert_eq!(status.state, TaskState::Succeeded);
//! assert_eq!(status.result::<Vec<u32>>()?, [1, 2, 3]);
//! # Ok(())
//! # }
//! ```
//!
//! With every option, after the response, with an error of its own:
//!
//! ```
//! # use std::time::Duration;
//! use tower_offload_tasks::{Accepted, Failure, MemoryStore, Refused, Register, Retention, Tasks};
//!
//! let tasks = Tasks::builder(MemoryStore::with_capacity(2000))
//!     .retention(Retention::default().keep(1000).age(Duration::from_secs(3600)))
//!     .process("reports-1")
//!     .build()
//!     .mounted_at("/api/tasks");
//!
//! /// `register` is a `Background` to begin now, an `AfterResponse` to begin when the client has its answer.
//! async fn order(tasks: &Tasks, register: &impl Register, item: u32) -> Result<Accepted, Refused> {
//!     let task = tasks.track("order").owner("ann").timeout(Duration::from_secs(60));
//!     task.spawn(register, move |progress| async move {
//!         progress.message("looking for it");
//!         match item {
//!             0 => Err(Failure::new("out_of_stock", "there is none left").detail(&item)),
//!             _ => Ok(item),
//!         }
//!     })
//!     .await
//! }
//! # let background = tower_offload::Background::default();
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! # assert!(order(&tasks, &background, 0).await.is_ok());
//! background.drain(Duration::from_secs(10)).await; // at shutdown: this ends the tasks,
//! assert!(tasks.drain(Duration::from_secs(5)).await.is_clean()); // and this writes down how
//! # });
//! ```
//!
//! # What is promised
//!
//! **The record is written before the [`Accepted`] exists.** So whoever has a 202 finds the task, and a task that is found was accepted. If
//! the background is full or the store fails there is a [`Refused`], and the work does not run.
//!
//! **No state sticks.** Every task ends in one of the final [states](TaskState), once: also if it panics, returns what cannot be kept (larger
//! than 64 KiB, no JSON), runs out of its time, is cancelled, if its response fails ([`Reason::ResponseFailed`]), its runtime ends or its
//! process is killed: then the next one that opens the store marks it as [lost](TaskState::Lost).
//!
//! **A store that fails loses nothing that was accepted.** The tasks go on, what is known of them is told from memory, and their records are
//! written when the store is back. Until then nothing new is accepted.
//!
//! **Bounded.** Records of tasks that are over go by number and [age](Retention), and leave a tombstone for a while; others never. Progress is
//! written at most four times a second, whatever waits for the store is written in one transaction.
//!
//! | event | what happens |
//! |---|---|
//! | panic | [failed](TaskState::Failed), class `panic`; nobody else notices |
//! | cancel | what has not begun never does, async work is dropped, sync work can [ask](Progress::is_cancelled) |
//! | the caller leaves while the record is written | the work does not run; cancelled, [abandoned](Reason::Abandoned) |
//! | shutdown | [`Tasks::end_streams`] with the signal, once the server has stopped [`Background::drain`](tower_offload::Background::drain), then [`Tasks::drain`] |
//! | crash of the process | with a store that outlives it: lost, and known to be |
//!
//! # When not to use it
//!
//! For work that nobody asks about ([`Background`](tower_offload::Background), `AfterResponse`), and for work that must be done although the
//! process dies: here that is told, and not made good.

mod accepted;
#[cfg(feature = "axum")]
mod axum;
mod builder;
mod failure;
mod id;
#[cfg(feature = "river")]
pub mod jobs;
mod json;
mod ledger;
mod live;
mod panic;
mod problem;
pub(crate) mod progress;
pub(crate) mod record;
mod recorder;
mod refused;
pub mod service;
pub(crate) mod shared;
mod state;
mod stats;
mod status;
pub mod store;
mod subscription;
mod sync;
mod tasks;
pub(crate) mod text;
mod timestamp;
pub(crate) mod track;
pub(crate) mod work;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "postgres", feature = "sqlite"))))]
pub use self::store::SqlStore;
pub use self::{
    accepted::Accepted,
    builder::Builder,
    failure::{Failure, IntoFailure},
    id::{InvalidTaskId, TaskId},
    json::{Json, Unserialisable},
    progress::Progress,
    record::Record,
    refused::Refused,
    service::{StatusAlias, StatusService},
    state::{Reason, TaskState},
    stats::{DrainReport, Stats},
    status::{NoResult, Status},
    store::{MemoryStore, Retention, StoreError, TaskStore},
    subscription::Subscription,
    tasks::Tasks,
    timestamp::Timestamp,
    track::Track,
};
pub use tower_offload::background::{TaskTarget, TaskTarget as Register};
