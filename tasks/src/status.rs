use std::{error::Error, fmt, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use utoipa::ToSchema;

use super::{Failure, Json, Reason, Record, TaskId, TaskState, Timestamp, json::Unserialisable};

/// A task as it is shown to whoever may see it: the body of the answer that accepts it, and of every one that tells its status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct Status {
    /// Its id.
    pub id: TaskId,
    /// What kind of task it is.
    pub name: String,
    /// How far it is.
    pub state: TaskState,
    /// How many times it has begun.
    pub attempt: u32,
    /// How much of it is done, from 0 to 1, if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub progress: Option<f64>,
    /// What it is doing, if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When its state became final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// When somebody asked to cancel it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_requested_at: Option<Timestamp>,
    /// Why it was cancelled or lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// What it returned, if it has succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Json>,
    /// How it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

impl Status {
    /// When to ask again: a second, for nobody knows how long tasks take. `None` once the state is final.
    pub fn retry_after(&self) -> Option<Duration> {
        (!self.state.is_final()).then_some(Duration::from_secs(1))
    }

    /// What the task returned.
    ///
    /// # Errors
    ///
    /// If it is not over, if it ended without a result, or with one of another type.
    pub fn result<T: DeserializeOwned>(&self) -> Result<T, NoResult> {
        match &self.result {
            Some(result) => result.parse().map_err(|error| NoResult { state: self.state, mismatch: Some(error) }),
            None => Err(NoResult { state: self.state, mismatch: None }),
        }
    }
}

impl From<&Record> for Status {
    fn from(record: &Record) -> Self {
        Self {
            id: record.id,
            name: record.name.clone(),
            state: record.state,
            attempt: record.attempt,
            progress: record.progress,
            message: record.message.clone(),
            created_at: record.created_at,
            started_at: record.started_at,
            finished_at: record.finished_at,
            cancel_requested_at: record.cancel_requested_at,
            reason: record.reason,
            result: record.result.clone(),
            error: record.failure.clone(),
        }
    }
}

/// Why [`Status::result`] has none to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoResult {
    state: TaskState,
    mismatch: Option<Unserialisable>,
}

impl NoResult {
    /// `true` if the task is not over: later there may be one.
    pub fn is_pending(&self) -> bool {
        !self.state.is_final()
    }

    /// `true` if there is one, of another type.
    pub fn is_mismatch(&self) -> bool {
        self.mismatch.is_some()
    }

    /// The state of the task.
    pub fn state(&self) -> TaskState {
        self.state
    }
}

impl fmt::Display for NoResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.mismatch {
            Some(_) => f.write_str("the result of the task is not of this type"),
            None => write!(f, "the task has no result: it is {}", self.state),
        }
    }
}

impl Error for NoResult {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.mismatch.as_ref().map(|mismatch| mismatch as _)
    }
}
