//! Operations of operators on tasks: retry, discard, reschedule, many at once, and a summary.
//!
//! The core knows nothing of job queues. A queue registers itself as the [`QueueHook`] of its
//! store.

mod bulk;
mod error;
mod summary;

use std::pin::Pin;

pub(crate) use self::summary::SummaryCache;
#[cfg_attr(
    not(any(feature = "postgres", feature = "sqlite")),
    allow(unused_imports, reason = "for stores in a database")
)]
pub(crate) use self::summary::{MAX_COUNTED, MAX_SAMPLES, SummaryBuilder};
pub use self::{
    bulk::{BulkAction, BulkReport},
    error::OperationError,
    summary::{Percentiles, StateCounts, Summary, SummaryGroup},
};
use serde::Serialize;

use crate::{Record, TaskId, Tasks, Timestamp, store::Found, store::StoreFuture};

pub(crate) type OperationFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, OperationError>> + Send + 'a>>;

/// The job queue of a store, as the core sees it.
#[cfg_attr(not(feature = "river"), allow(dead_code, reason = "for job queues"))]
pub(crate) trait QueueHook: Send + Sync {
    /// Returns `true` if another hook may take its place.
    fn has_ended(&self) -> bool;

    /// Called after this process has written a cancel request.
    fn cancel_requested(&self, id: TaskId) -> StoreFuture<'_, ()>;

    /// Changes the jobs whose state permits it, in one transaction. Tasks that are not jobs are
    /// omitted.
    ///
    /// If one of several jobs cannot be changed, because an equal unique job exists, each of the
    /// others is changed in a transaction of its own.
    fn change<'a>(&'a self, ids: &'a [TaskId], change: Change) -> OperationFuture<'a, Changes>;

    /// Returns the queues and the kinds that can be paused.
    fn queues(&self) -> OperationFuture<'_, Queues>;

    /// Pauses or resumes a queue or a kind.
    fn set_paused<'a>(&'a self, what: Pausable, name: &'a str, is_paused: bool) -> OperationFuture<'a, ()>;

    /// Returns the sequences that hold because a job has failed.
    fn blocked_sequences(&self) -> OperationFuture<'_, Vec<BlockedSequence>>;

    /// Continues a sequence. Returns `false` if it does not hold.
    fn release_sequence<'a>(&'a self, key: &'a str) -> OperationFuture<'a, bool>;
}

/// A change of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Retry,
    Cancel,
    Discard,
    Reschedule(Timestamp),
}

/// Result of [`QueueHook::change`].
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) changed: Vec<TaskId>,
    /// Jobs that were not changed, with the reason.
    pub(crate) refused: Vec<(TaskId, OperationError)>,
}

/// What can be paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pausable {
    Queue,
    Kind,
}

/// A sequence that holds because one of its jobs has failed. Returned by
/// `Jobs::blocked_sequences`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "A sequence that holds because one of its jobs has failed.")
)]
#[cfg_attr(not(feature = "river"), allow(unreachable_pub, reason = "exported with job queues"))]
#[non_exhaustive]
pub struct BlockedSequence {
    /// The key of the sequence.
    pub key: String,
    /// The job that has failed, was cancelled or was deleted. `None` if it has no record, or no
    /// longer has one.
    pub held_by: Option<TaskId>,
    /// When the job ended.
    pub since: Timestamp,
    /// Number of jobs that wait for it. At most 1000 are counted.
    pub waiting: u64,
}

impl BlockedSequence {
    #[cfg_attr(not(feature = "river"), allow(dead_code, reason = "for job queues"))]
    pub(crate) fn new(key: String, held_by: Option<TaskId>, since: Timestamp, waiting: u64) -> Self {
        Self { key, held_by, since, waiting }
    }
}

/// The queues and the kinds of jobs, and which of them are paused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "The queues and the kinds of jobs, and which of them are paused.")
)]
#[cfg_attr(not(feature = "river"), allow(unreachable_pub, reason = "exported with job queues"))]
#[non_exhaustive]
pub struct Queues {
    /// The queues that processes work or have worked lately, sorted by name, at most 1000.
    pub queues: Vec<QueueState>,
    /// The kinds that this process works, those of the summary, and those that are paused, sorted
    /// by name.
    pub kinds: Vec<QueueState>,
}

/// A queue or a kind of jobs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(description = "A queue or a kind of jobs."))]
#[cfg_attr(not(feature = "river"), allow(unreachable_pub, reason = "exported with job queues"))]
#[non_exhaustive]
pub struct QueueState {
    /// The name.
    pub name: String,
    /// True while it is paused.
    pub paused: bool,
}

impl QueueState {
    pub(crate) fn new(name: impl Into<String>, paused: bool) -> Self {
        Self { name: name.into(), paused }
    }
}

/// Operations on jobs. They need a [job queue](crate::jobs) that this process has started on the
/// store of the tasks, also one without workers.
impl Tasks {
    /// Queues a finished job again, under the same id, and returns its record.
    ///
    /// Every final state permits it, also `succeeded`: the job then runs again, and its earlier
    /// result and failure are removed. Its [steps](crate::jobs::Context::step) run again, too;
    /// those that a job had finished when it failed or was cancelled do not. The attempts go on
    /// being counted, and a job that has used all of them gets one more. It is due at once.
    ///
    /// # Errors
    ///
    /// Returns an error if the task [is unknown](OperationError::is_unknown) or
    /// [not a job](OperationError::is_not_a_job), if it [is not finished](OperationError::state),
    /// if the queue [has deleted](OperationError::is_deleted) the job, if it is unique and an
    /// [equal one](OperationError::is_duplicate) exists, if no queue
    /// [has started](OperationError::is_no_queue), or if the
    /// [database](OperationError::store_error) failed.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, the job is either queued again or unchanged.
    pub async fn retry(&self, id: TaskId) -> Result<Record, OperationError> {
        self.change(id, Change::Retry).await
    }

    /// Ends a job that waits for its next attempt, and returns its record. It has failed with class
    /// `discarded`.
    ///
    /// A running job must be [cancelled](Self::cancel) instead.
    ///
    /// # Errors
    ///
    /// Like [`retry`](Self::retry), but the job must be queued.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, the job is either discarded or unchanged.
    pub async fn discard(&self, id: TaskId) -> Result<Record, OperationError> {
        self.change(id, Change::Discard).await
    }

    /// Changes when the next attempt of a queued job is due, and returns its record.
    ///
    /// A time in the past makes it due now. On Postgres the clock of the server decides.
    ///
    /// # Errors
    ///
    /// Like [`retry`](Self::retry), but the job must be queued.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, the time is either changed or not.
    pub async fn reschedule(&self, id: TaskId, due_at: Timestamp) -> Result<Record, OperationError> {
        self.change(id, Change::Reschedule(due_at)).await
    }

    /// Returns the job queue of the store, if this process has started one.
    pub(crate) fn queue(&self) -> Option<std::sync::Arc<dyn QueueHook>> {
        #[cfg(any(feature = "postgres", feature = "sqlite"))]
        if let Some(store) = self.store::<crate::SqlStore>() {
            return store.queue();
        }
        None
    }

    /// Returns the queues and kinds of the job queue.
    pub(crate) async fn queue_states(&self) -> Result<Queues, OperationError> {
        self.queue().ok_or_else(OperationError::no_queue)?.queues().await
    }

    /// Pauses or resumes a queue or a kind of the job queue.
    pub(crate) async fn set_paused(&self, what: Pausable, name: &str, is_paused: bool) -> Result<(), OperationError> {
        self.queue().ok_or_else(OperationError::no_queue)?.set_paused(what, name, is_paused).await
    }

    /// Returns the sequences of the job queue that hold because a job has failed.
    pub(crate) async fn blocked_sequences(&self) -> Result<Vec<BlockedSequence>, OperationError> {
        self.queue().ok_or_else(OperationError::no_queue)?.blocked_sequences().await
    }

    /// Continues a sequence of the job queue.
    pub(crate) async fn release_sequence(&self, key: &str) -> Result<bool, OperationError> {
        self.queue().ok_or_else(OperationError::no_queue)?.release_sequence(key).await
    }

    pub(crate) async fn change(&self, id: TaskId, change: Change) -> Result<Record, OperationError> {
        let found = match self.get(id).await? {
            Found::Record(record) => record,
            _ => return Err(OperationError::unknown()),
        };
        let queue = self.queue().ok_or_else(OperationError::no_queue)?;
        let mut changes = queue.change(&[id], change).await?;
        if let Some((_, error)) = changes.refused.pop() {
            return Err(error);
        }
        if changes.changed.is_empty() {
            let is_job = found.queue.is_some();
            return Err(if is_job { OperationError::deleted() } else { OperationError::not_a_job() });
        }
        self.get(id).await?.into_record().ok_or_else(OperationError::unknown)
    }
}
