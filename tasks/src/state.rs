use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How far a task is. A final state never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// It did not come to its end because somebody stopped it, or it never began because its response failed. Final.
    Cancelled,
    /// It returned an error, panicked, or could not be run. Final.
    Failed,
    /// Its process or its runtime ended before it did; nobody knows how far it came. Final.
    Lost,
    /// It was accepted and has not begun.
    Queued,
    /// It has begun.
    Running,
    /// It has a result. Final.
    Succeeded,
    /// It ran out of its time. Sync work may still run, but what it returns is not kept. Final.
    TimedOut,
}

impl TaskState {
    /// Every one, in the order of their [codes](Self::code).
    pub const ALL: [Self; 7] =
        [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled, Self::TimedOut, Self::Lost];

    /// `true` if it never changes.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// Whether a task may go from this state to that one. One that runs may be queued again: for its next attempt.
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::Queued => !matches!(next, Self::Queued | Self::Succeeded | Self::TimedOut),
            Self::Running => next != Self::Running,
            _ => false,
        }
    }

    /// The number that stores keep; those of final states are 10 and above. They never change.
    pub fn code(self) -> i16 {
        match self {
            Self::Queued => 0,
            Self::Running => 1,
            Self::Succeeded => 10,
            Self::Failed => 11,
            Self::Cancelled => 12,
            Self::TimedOut => 13,
            Self::Lost => 14,
        }
    }

    /// The state of that [code](Self::code), if there is one.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.code() == code)
    }

    /// As it is served: `timed_out`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::TimedOut => "timed_out",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a task ended as it did, where the state alone does not say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// Cancelled: whoever asked for it was gone before it was accepted.
    Abandoned,
    /// Lost: somebody deleted its job from the queue.
    JobDeleted,
    /// Cancelled: the store's answer was lost, so nobody was told that it is accepted.
    NotAccepted,
    /// Lost: the process that had it has ended.
    ProcessLost,
    /// Cancelled: somebody asked for that.
    Requested,
    /// Cancelled: the response that it was to follow failed, or a task of the same request that stops those behind it.
    ResponseFailed,
    /// Lost: the runtime that ran it has ended.
    RuntimeLost,
    /// Cancelled: a drain's deadline passed before it came to its end.
    Shutdown,
}

impl Reason {
    const ALL: [Self; 8] = [
        Self::Abandoned,
        Self::JobDeleted,
        Self::NotAccepted,
        Self::ProcessLost,
        Self::Requested,
        Self::ResponseFailed,
        Self::RuntimeLost,
        Self::Shutdown,
    ];

    /// As it is served and stored: `response_failed`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Abandoned => "abandoned",
            Self::JobDeleted => "job_deleted",
            Self::NotAccepted => "not_accepted",
            Self::ProcessLost => "process_lost",
            Self::Requested => "requested",
            Self::ResponseFailed => "response_failed",
            Self::RuntimeLost => "runtime_lost",
            Self::Shutdown => "shutdown",
        }
    }

    /// The reason of that [text](Self::as_str), if there is one.
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use super::{Reason, TaskState};

    #[test]
    fn codes_and_texts_lead_back_to_what_they_stand_for() {
        for state in TaskState::ALL {
            assert_eq!(TaskState::from_code(state.code()), Some(state));
            assert_eq!(state.is_final(), state.code() >= 10);
            assert_eq!(serde_json::to_string(&state).ok(), Some(format!("\"{state}\"")));
        }
        for reason in Reason::ALL {
            assert_eq!(Reason::from_text(reason.as_str()), Some(reason));
            assert_eq!(serde_json::to_string(&reason).ok(), Some(format!("\"{reason}\"")));
        }
        assert_eq!((TaskState::from_code(2), Reason::from_text("")), (None, None));
    }

    #[test]
    fn a_final_state_becomes_nothing_and_each_other_can_still_end() {
        for state in TaskState::ALL {
            assert!(!state.may_become(state));
            assert_eq!(state.is_final(), TaskState::ALL.iter().all(|next| !state.may_become(*next)));
        }
    }
}
