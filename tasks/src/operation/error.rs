use std::{borrow::Cow, error::Error, fmt};

use super::Change;
use crate::{StoreError, TaskState};

/// Error of an operation on a task, such as [`Tasks::retry`](crate::Tasks::retry).
///
/// [`Display`](fmt::Display) contains the text of the [`StoreError`], if there is one, so do not
/// send that to clients. All other texts are for clients, too.
#[derive(Debug)]
pub struct OperationError(Kind);

#[derive(Debug)]
enum Kind {
    Unknown(Cow<'static, str>),
    NotAJob,
    NoQueue,
    State(TaskState, &'static str),
    Deleted,
    Duplicate,
    Invalid(Cow<'static, str>),
    Store(StoreError),
}

#[cfg_attr(not(feature = "river"), allow(dead_code, reason = "for job queues"))]
impl OperationError {
    pub(crate) fn unknown() -> Self {
        Self(Kind::Unknown(Cow::Borrowed("no such task")))
    }

    pub(crate) fn unknown_name(message: impl Into<Cow<'static, str>>) -> Self {
        Self(Kind::Unknown(message.into()))
    }

    pub(crate) fn not_a_job() -> Self {
        Self(Kind::NotAJob)
    }

    pub(crate) fn no_queue() -> Self {
        Self(Kind::NoQueue)
    }

    /// The error of a change that the state of a job does not permit.
    pub(crate) fn wrong_state(state: TaskState, change: Change) -> Self {
        let remedy = match (change, state) {
            (Change::Retry, TaskState::Queued) => "it starts by itself when it is due: change `due_at` instead",
            (Change::Retry, _) => "wait until it has finished, or cancel it first",
            (Change::Cancel | Change::Discard | Change::Reschedule(_), TaskState::Running) => "cancel it first",
            (Change::Cancel | Change::Discard | Change::Reschedule(_), _) => "it has finished: retry it first",
        };
        Self(Kind::State(state, remedy))
    }

    pub(crate) fn deleted() -> Self {
        Self(Kind::Deleted)
    }

    pub(crate) fn duplicate() -> Self {
        Self(Kind::Duplicate)
    }

    pub(crate) fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self(Kind::Invalid(message.into()))
    }

    /// Returns `true` if the task, the queue or the kind is not known.
    pub fn is_unknown(&self) -> bool {
        matches!(self.0, Kind::Unknown(_))
    }

    /// Returns `true` if the task is not a job of a job queue.
    pub fn is_not_a_job(&self) -> bool {
        matches!(self.0, Kind::NotAJob)
    }

    /// Returns `true` if no job queue has started in this process on the store of the tasks.
    pub fn is_no_queue(&self) -> bool {
        matches!(self.0, Kind::NoQueue)
    }

    /// Returns the state of the task, if it does not permit the operation.
    pub fn state(&self) -> Option<TaskState> {
        match self.0 {
            Kind::State(state, _) => Some(state),
            _ => None,
        }
    }

    /// Returns `true` if the job queue has deleted the job. River keeps a job for a day after its
    /// end, and a failed one for a week.
    pub fn is_deleted(&self) -> bool {
        matches!(self.0, Kind::Deleted)
    }

    /// Returns `true` if the job is unique, and another one that equals it exists.
    pub fn is_duplicate(&self) -> bool {
        matches!(self.0, Kind::Duplicate)
    }

    /// Returns `true` if a value is not valid or a limit is reached.
    pub fn is_invalid(&self) -> bool {
        matches!(self.0, Kind::Invalid(_))
    }

    /// Returns the error of the database, if it failed.
    pub fn store_error(&self) -> Option<&StoreError> {
        match &self.0 {
            Kind::Store(error) => Some(error),
            _ => None,
        }
    }

    /// Returns the name of the error for programs.
    pub(crate) fn reason(&self) -> Option<&'static str> {
        match self.0 {
            Kind::NotAJob => Some("not_a_job"),
            Kind::NoQueue => Some("no_queue"),
            Kind::State(..) => Some("state"),
            Kind::Deleted => Some("deleted"),
            Kind::Duplicate => Some("duplicate"),
            Kind::Unknown(_) | Kind::Invalid(_) | Kind::Store(_) => None,
        }
    }
}

impl From<StoreError> for OperationError {
    fn from(error: StoreError) -> Self {
        Self(Kind::Store(error))
    }
}

impl fmt::Display for OperationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Unknown(message) | Kind::Invalid(message) => f.write_str(message),
            Kind::NotAJob => f.write_str("the task is not a job: only jobs of a job queue can be changed so"),
            Kind::NoQueue => {
                f.write_str("no job queue has started in this process: start `Jobs` on its tasks, also without workers")
            }
            Kind::State(state, remedy) => write!(f, "the job is {state}: {remedy}"),
            Kind::Deleted => f.write_str("the job queue has deleted the finished job: enqueue it again"),
            Kind::Duplicate => f.write_str("an equal unique job exists: wait until it has finished, or cancel it"),
            Kind::Store(error) => write!(f, "{error}"),
        }
    }
}

impl Error for OperationError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Kind::Store(error) => error.source(),
            _ => None,
        }
    }
}
