use std::{any::Any, borrow::Cow, error::Error, fmt, io, time::Duration};

use super::Completion;
use crate::panic::panic_message;
use crate::pool::CallError;

/// Error returned when a background does not admit a task. The task's work is dropped.
///
/// A background rejects a task only when it is submitted. If the pool refuses an admitted task
/// later, that is reported as a [`TaskFailure`] with the pool's [`CallError`](crate::CallError).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubmitError(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Full,
    TooManyAwaiting,
    SequenceFull,
    Closed,
}

impl SubmitError {
    pub(super) const FULL: Self = Self(Kind::Full);
    pub(super) const TOO_MANY_AWAITING: Self = Self(Kind::TooManyAwaiting);
    pub(super) const SEQUENCE_FULL: Self = Self(Kind::SequenceFull);
    pub(super) const CLOSED: Self = Self(Kind::Closed);

    /// Every value.
    #[cfg(feature = "metrics")]
    pub(super) const ALL: [Self; 4] = [Self::CLOSED, Self::FULL, Self::TOO_MANY_AWAITING, Self::SEQUENCE_FULL];

    /// Returns the label `reason` of metrics.
    #[cfg(feature = "metrics")]
    pub(super) fn reason(self) -> &'static str {
        match self.0 {
            Kind::Full => "full",
            Kind::TooManyAwaiting => "too_many_awaiting",
            Kind::SequenceFull => "sequence_full",
            Kind::Closed => "closed",
        }
    }

    /// Returns `true` if the background has [`max_tasks`](super::BackgroundBuilder::max_tasks)
    /// tasks, or [`max_awaiting_response`](super::BackgroundBuilder::max_awaiting_response) tasks
    /// that wait for responses, or if the [sequence](super::TaskBuilder::sequence) of the task has
    /// as many tasks as places are left. A later attempt may succeed.
    pub fn is_full(&self) -> bool {
        matches!(self.0, Kind::Full | Kind::TooManyAwaiting | Kind::SequenceFull)
    }

    /// Returns `true` if the background is closed, because it is being shut down.
    pub fn is_closed(&self) -> bool {
        *self == Self::CLOSED
    }
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Full => "the background is full",
            Kind::TooManyAwaiting => "too many tasks wait for responses that are still open",
            Kind::SequenceFull => "the sequence of the task has as many tasks as places are left in the background",
            Kind::Closed => "the background is closed",
        })
    }
}

impl Error for SubmitError {}

impl From<SubmitError> for io::Error {
    fn from(error: SubmitError) -> Self {
        Self::other(error)
    }
}

/// Report of one failed task, passed to the [failure
/// handler](super::BackgroundBuilder::on_failure).
#[derive(Debug)]
pub struct TaskFailure {
    id: u64,
    name: Cow<'static, str>,
    cause: Cause,
}

#[derive(Debug)]
pub(super) enum Cause {
    /// The pool rejected the task, or dropped it without running it (`None`).
    Refused(Option<CallError>),
    TimedOut {
        timeout: Duration,
        still_running: bool,
    },
    /// The task returned an error.
    Error(String),
    Panicked(String),
    /// The runtime or the pool dropped the task after it had started.
    Lost,
}

impl Cause {
    pub(super) fn panicked(payload: &(dyn Any + Send)) -> Self {
        Self::Panicked(panic_message(payload).to_owned())
    }

    pub(super) fn completion(&self) -> Completion {
        match self {
            Self::Refused(_) => Completion::Refused,
            Self::TimedOut { .. } => Completion::TimedOut,
            Self::Error(_) | Self::Panicked(_) => Completion::Failed,
            Self::Lost => Completion::Lost,
        }
    }
}

impl TaskFailure {
    pub(super) fn new(id: u64, name: Cow<'static, str>, cause: Cause) -> Self {
        Self { id, name, cause }
    }

    /// Returns the id of the task, unique within its background.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the name of the task, empty if it has none.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns `true` if the pool refused the task, or the pool or the runtime shut down before the
    /// task finished.
    pub fn is_lost(&self) -> bool {
        matches!(self.cause, Cause::Lost | Cause::Refused(_))
    }

    /// Returns `true` if the task exceeded its [timeout](super::TaskBuilder::timeout).
    pub fn is_timeout(&self) -> bool {
        matches!(self.cause, Cause::TimedOut { .. })
    }

    /// Returns `true` if the task is a closure that exceeded its timeout and still runs.
    ///
    /// Only the closure itself can end early, by checking [`cancelled`](super::cancelled). It keeps
    /// its run permit until it returns.
    pub fn is_still_running(&self) -> bool {
        matches!(self.cause, Cause::TimedOut { still_running: true, .. })
    }

    /// Returns `true` if the task panicked.
    pub fn is_panic(&self) -> bool {
        matches!(self.cause, Cause::Panicked(_))
    }

    /// Emits the failure as an event. Without feature `tracing` it has no effect.
    pub(super) fn log(&self) {
        #[cfg(feature = "tracing")]
        {
            let name = Some(self.name()).filter(|name| !name.is_empty());
            tracing::event!(tracing::Level::ERROR, id = self.id(), name, "{self}");
        }
    }
}

impl fmt::Display for TaskFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("background task ")?;
        fmt_task(f, self.id, &self.name)?;
        f.write_str(" ")?;
        match &self.cause {
            Cause::Refused(Some(error)) => write!(f, "was refused by its pool: {error}"),
            Cause::Refused(None) => f.write_str("was dropped by its pool before it started"),
            Cause::TimedOut { timeout, still_running: true } => {
                write!(f, "still runs after its timeout of {timeout:?}")
            }
            Cause::TimedOut { timeout, still_running: false } => write!(f, "exceeded its timeout of {timeout:?}"),
            Cause::Error(message) => write!(f, "failed: {message}"),
            Cause::Panicked(message) => write!(f, "panicked: {message}"),
            Cause::Lost => f.write_str("was dropped before it finished, because its runtime or pool shut down"),
        }
    }
}

/// Writes the id of a task, and its name if it has one.
pub(super) fn fmt_task(f: &mut fmt::Formatter<'_>, id: u64, name: &str) -> fmt::Result {
    match name {
        "" => write!(f, "{id}"),
        name => write!(f, "{id} `{name}`"),
    }
}
