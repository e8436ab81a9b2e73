use std::{error::Error, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// State of a task. A final state never changes, except that of a job that is
/// [retried](crate::Tasks::retry).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(
        description = "The state of a task. All except `queued` and `running` are final. Only a job that an operator retries leaves a final state."
    )
)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TaskState {
    /// The task was accepted and has not started.
    Queued,
    /// The task has started.
    Running,
    /// The task has a result. Final.
    Succeeded,
    /// The task returned an error, panicked, or could not be run. Final.
    Failed,
    /// The task was cancelled before it ended, or its response failed so that it never started.
    /// Final.
    Cancelled,
    /// The task exceeded its timeout. A closure may still be running, but its result is dropped.
    /// Final.
    TimedOut,
    /// The process or the runtime of the task ended first. How much of the work was done is
    /// unknown. Final.
    Lost,
}

impl TaskState {
    /// All states, in the order of a task's life.
    pub const ALL: [Self; 7] =
        [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled, Self::TimedOut, Self::Lost];

    /// Returns `true` if a task in this state never changes again, unless it is a job that is
    /// [retried](crate::Tasks::retry).
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// Returns `true` if a task may change from this state to `next`.
    ///
    /// An unfinished task may end in any way, even before it was seen running: its timeout may fire
    /// just before its work starts. A running task may become queued again before its next attempt.
    pub fn may_become(self, next: Self) -> bool {
        !self.is_final() && next != self
    }

    /// Returns the serialized name, such as `timed_out`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Lost => "lost",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for TaskState {
    type Err = ParseTaskStateError;

    fn from_str(text: &str) -> Result<Self, ParseTaskStateError> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(ParseTaskStateError(()))
    }
}

impl From<TaskState> for i16 {
    /// Returns the number under which stores keep the state. Final states have 10 and above. The
    /// numbers never change.
    fn from(state: TaskState) -> Self {
        match state {
            TaskState::Queued => 0,
            TaskState::Running => 1,
            TaskState::Succeeded => 10,
            TaskState::Failed => 11,
            TaskState::Cancelled => 12,
            TaskState::TimedOut => 13,
            TaskState::Lost => 14,
        }
    }
}

impl TryFrom<i16> for TaskState {
    type Error = ParseTaskStateError;

    fn try_from(number: i16) -> Result<Self, ParseTaskStateError> {
        Self::ALL.into_iter().find(|state| i16::from(*state) == number).ok_or(ParseTaskStateError(()))
    }
}

/// Error converting a name or a number to a [`TaskState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseTaskStateError(());

impl fmt::Display for ParseTaskStateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = TaskState::ALL.map(TaskState::as_str).join(", ");
        write!(f, "unknown task state: use one of {names}")
    }
}

impl Error for ParseTaskStateError {}

/// The reason for a state that does not explain itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "Why a task was cancelled or lost. Clients should accept other reasons.")
)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// Cancelled: the caller left before the task was accepted.
    Abandoned,
    /// Cancelled: the store's reply was lost, so the caller got an error.
    NotAccepted,
    /// Cancelled: the response that the task waited for failed, or an earlier task of the same
    /// request failed and stopped the later ones.
    ResponseFailed,
    /// Cancelled: on request.
    Requested,
    /// Cancelled: a shutdown timed out before the task ended.
    Shutdown,
    /// Lost: the runtime that ran the task was shut down.
    RuntimeLost,
    /// Lost: the process that ran the task has ended.
    ProcessLost,
    /// Lost: the job was deleted from the job queue.
    JobDeleted,
}

impl Reason {
    const ALL: [Self; 8] = [
        Self::Abandoned,
        Self::NotAccepted,
        Self::ResponseFailed,
        Self::Requested,
        Self::Shutdown,
        Self::RuntimeLost,
        Self::ProcessLost,
        Self::JobDeleted,
    ];

    /// Returns the serialized name, such as `response_failed`. Stores keep this name too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Abandoned => "abandoned",
            Self::NotAccepted => "not_accepted",
            Self::ResponseFailed => "response_failed",
            Self::Requested => "requested",
            Self::Shutdown => "shutdown",
            Self::RuntimeLost => "runtime_lost",
            Self::ProcessLost => "process_lost",
            Self::JobDeleted => "job_deleted",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = ParseReasonError;

    fn from_str(text: &str) -> Result<Self, ParseReasonError> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text).ok_or(ParseReasonError(()))
    }
}

/// Error parsing a [`Reason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseReasonError(());

impl fmt::Display for ParseReasonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Reason::ALL.map(Reason::as_str).join(", ");
        write!(f, "unknown reason: use one of {names}")
    }
}

impl Error for ParseReasonError {}

#[cfg(test)]
mod tests {
    use super::{Reason, TaskState};

    #[test]
    fn numbers_and_names_round_trip() {
        for state in TaskState::ALL {
            assert_eq!(TaskState::try_from(i16::from(state)), Ok(state));
            assert_eq!(state.as_str().parse(), Ok(state));
            assert_eq!(state.is_final(), i16::from(state) >= 10);
            assert_eq!(serde_json::to_string(&state).ok(), Some(format!("\"{state}\"")));
        }
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(reason));
            assert_eq!(serde_json::to_string(&reason).ok(), Some(format!("\"{reason}\"")));
        }
        assert!(TaskState::try_from(2).is_err() && "".parse::<TaskState>().is_err() && "".parse::<Reason>().is_err());
    }

    #[test]
    fn every_unfinished_state_may_end_in_every_way() {
        for state in TaskState::ALL {
            for next in TaskState::ALL {
                assert_eq!(state.may_become(next), !state.is_final() && state != next, "{state} to {next}");
            }
        }
    }
}
