use std::{
    error::Error,
    fmt,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Failure, Json, JsonError, Reason, Record, TaskId, TaskState, Timestamp};

/// Status of a task as clients see it, in the body of every response about one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(description = "The status of a task."))]
#[non_exhaustive]
pub struct Status {
    /// The id of the task.
    pub id: TaskId,
    /// The name of the task.
    pub name: String,
    /// The queue of a job. Absent for a task that is not a job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// The id of the job that has enqueued this one, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<TaskId>,
    /// The state.
    pub state: TaskState,
    /// The number of attempts that were started.
    pub attempt: u32,
    /// The fraction of the work that is done, if the task reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0.0, maximum = 1.0))]
    pub progress: Option<f64>,
    /// The latest progress message, if the task reports any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When the task was accepted.
    pub created_at: Timestamp,
    /// When the next attempt is due, if the task is queued and waits for a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at: Option<Timestamp>,
    /// When the latest attempt started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When the state became final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// When cancellation was first requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_requested_at: Option<Timestamp>,
    /// Why the task was cancelled or lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The result of a task that succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Json>,
    /// The failure of a task that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

impl Status {
    /// Returns the delay after which a client should poll again, in whole seconds. Returns `None`
    /// once the state is final.
    ///
    /// It is the time until [`due_at`](Self::due_at), by the clock of this host, and at least a
    /// second, since the run time of a task is unknown.
    pub fn retry_after(&self) -> Option<Duration> {
        if self.state.is_final() {
            return None;
        }
        let now = Timestamp::from(SystemTime::now()).as_millis();
        let millis = self.due_at.map_or(0, |due_at| due_at.as_millis().saturating_sub(now));
        Some(Duration::from_secs(millis.div_ceil(1000).max(1)))
    }

    /// Deserializes the result of the task.
    ///
    /// # Errors
    ///
    /// Returns an error if the task is not finished, finished without a result, or has a result of
    /// another type.
    pub fn result<T: DeserializeOwned>(&self) -> Result<T, NoResultError> {
        let error = |mismatch| NoResultError { state: self.state, mismatch };
        self.result.as_ref().ok_or_else(|| error(None))?.parse().map_err(|mismatch| error(Some(mismatch)))
    }
}

impl From<&Record> for Status {
    fn from(record: &Record) -> Self {
        Self {
            id: record.id,
            name: record.name.clone(),
            queue: record.queue.clone(),
            parent: record.parent,
            state: record.state,
            attempt: record.attempt,
            progress: record.progress,
            message: record.message.clone(),
            created_at: record.created_at,
            due_at: record.due_at.filter(|_| record.state == TaskState::Queued),
            started_at: record.started_at,
            finished_at: record.finished_at,
            cancel_requested_at: record.cancel_requested_at,
            reason: record.reason,
            result: record.result.clone(),
            error: record.failure.clone(),
        }
    }
}

/// Error of [`Status::result`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoResultError {
    state: TaskState,
    mismatch: Option<JsonError>,
}

impl NoResultError {
    /// Returns `true` if the task is not finished, so that it may have a result later.
    pub fn is_pending(&self) -> bool {
        !self.state.is_final()
    }

    /// Returns `true` if the task has a result of another type.
    pub fn is_mismatch(&self) -> bool {
        self.mismatch.is_some()
    }

    /// Returns the state of the task.
    pub fn state(&self) -> TaskState {
        self.state
    }
}

impl fmt::Display for NoResultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.mismatch {
            Some(mismatch) => write!(f, "the result of the task cannot be read: {mismatch}"),
            None if self.is_pending() => write!(f, "the task has no result yet: it is {}", self.state),
            None => write!(f, "the task has no result: it is {}, see its `error` and `reason`", self.state),
        }
    }
}

impl Error for NoResultError {}
