use std::{any::Any, borrow::Cow, fmt, time::Duration};

use super::over::Over;
use crate::panic::panic_message;
use crate::pool::CallError;

/// One task that failed, as the [error sink](super::Builder::on_failure) gets it, once.
#[derive(Debug)]
pub struct TaskFailure {
    id: u64,
    name: Cow<'static, str>,
    cause: Cause,
}

#[derive(Debug)]
pub(super) enum Cause {
    Error(String),
    Lost,
    Panicked(String),
    Refused(Option<CallError>),
    TimedOut { limit: Duration, still_running: bool },
}

impl Cause {
    pub(super) fn panicked(payload: &(dyn Any + Send)) -> Self {
        Self::Panicked(panic_message(payload).to_owned())
    }

    pub(super) fn over(&self) -> Over {
        match self {
            Self::Error(_) | Self::Panicked(_) => Over::Failed,
            Self::Lost => Over::Lost,
            Self::Refused(_) => Over::Refused,
            Self::TimedOut { .. } => Over::TimedOut,
        }
    }
}

impl TaskFailure {
    pub(super) fn new(id: u64, name: Cow<'static, str>, cause: Cause) -> Self {
        Self { id, name, cause }
    }

    /// The number of the task, unique within its background.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The name it was registered with; empty if with none.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `true` if the task panicked.
    pub fn is_panic(&self) -> bool {
        matches!(self.cause, Cause::Panicked(_))
    }

    /// `true` if it ran out of its [time](super::Task::timeout).
    pub fn is_timeout(&self) -> bool {
        matches!(self.cause, Cause::TimedOut { .. })
    }

    /// `true` if it is sync work that ran out of its time and goes on: nobody can stop it but itself, with
    /// [`cancelled`](super::cancelled). Its place and its permit are free when it ends.
    pub fn is_still_running(&self) -> bool {
        matches!(self.cause, Cause::TimedOut { still_running: true, .. })
    }

    /// As an event. Nothing without feature `tracing`.
    pub(super) fn log(&self) {
        #[cfg(feature = "tracing")]
        tracing::event!(tracing::Level::ERROR, id = self.id(), name = self.name(), "{self}");
    }

    /// `true` if it could not be run to its end: its pool refused it, or its runtime is gone.
    pub fn is_lost(&self) -> bool {
        matches!(self.cause, Cause::Lost | Cause::Refused(_))
    }
}

impl fmt::Display for TaskFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "background task {} `{}` ", self.id, self.name)?;
        match &self.cause {
            Cause::Error(message) => write!(f, "failed: {message}"),
            Cause::Lost => f.write_str("was dropped by its runtime before it ended"),
            Cause::Panicked(message) => write!(f, "panicked: {message}"),
            Cause::Refused(Some(rejection)) => write!(f, "was refused by its pool: {rejection}"),
            Cause::Refused(None) => f.write_str("was dropped by its pool before it began"),
            Cause::TimedOut { limit, still_running: true } => write!(f, "still runs after its limit of {limit:?}"),
            Cause::TimedOut { limit, still_running: false } => write!(f, "took longer than its limit of {limit:?}"),
        }
    }
}
