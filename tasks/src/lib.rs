#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod accepted;
#[cfg(feature = "axum")]
mod axum;
mod builder;
mod error;
mod failure;
mod follow;
mod id;
#[cfg(feature = "river")]
#[cfg_attr(docsrs, doc(cfg(feature = "river")))]
pub mod jobs;
mod json;
mod lease;
mod metrics;
mod operation;
mod output;
mod panic;
mod problem;
#[cfg(feature = "process")]
mod process;
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
pub use self::store::{SqlStore, SqlStoreBuilder};
pub use self::{
    accepted::Accepted,
    builder::TasksBuilder,
    error::AcceptError,
    failure::{Failure, IntoFailure},
    id::{ParseTaskIdError, TaskId},
    json::{Json, JsonError},
    operation::{BulkAction, BulkReport, OperationError},
    output::IntoTaskResult,
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
