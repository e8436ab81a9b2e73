//! The interface to `tower-offload`: where tasks are submitted.

use std::{borrow::Cow, time::Duration};

pub use tower_offload::background::Register as TaskTarget;
pub(crate) use tower_offload::background::{Rejected as SubmitError, TaskHandle as Handle};
use tower_offload::{
    background::TaskOutput,
    interim::{Body, Over, Place},
};

/// Admits a task that gets its work later.
pub(crate) fn reserve<R: TaskTarget + ?Sized>(target: &R, name: Cow<'static, str>) -> Result<Reservation, SubmitError> {
    target.place(name).map(Reservation)
}

/// An admitted task without work. Dropping it skips the task.
#[must_use = "dropping a reservation skips the task"]
pub(crate) struct Reservation(Place);

impl Reservation {
    #[cfg_attr(not(feature = "river"), allow(dead_code))]
    pub(crate) fn new(place: Place) -> Self {
        Self(place)
    }

    pub(crate) fn timeout(self, timeout: Duration) -> Self {
        Self(self.0.with_limit(Some(timeout)))
    }

    pub(crate) fn on_completion(self, callback: impl FnOnce(Completion) + Send + 'static) -> Self {
        Self(self.0.on_over(move |over| callback(over.into())))
    }

    pub(crate) fn handle(&self) -> TaskHandle {
        TaskHandle(self.0.handle())
    }

    pub(crate) fn awaits_response(&self) -> bool {
        self.0.awaits_response()
    }

    pub(crate) fn spawn_blocking<T: TaskOutput>(self, work: impl FnOnce() -> T + Send + 'static) {
        self.0.spend(Body::of_closure(work));
    }

    pub(crate) fn spawn(self, work: impl Future<Output: TaskOutput> + Send + 'static) {
        self.0.spend(Body::of_future(work));
    }
}

/// Handle to a submitted task.
pub(crate) struct TaskHandle(Handle);

impl TaskHandle {
    pub(crate) fn cancel(&self) {
        self.0.cancel();
    }

    pub(crate) fn is_background_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// How a task ended, in the order of a task's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Completion {
    Skipped,
    Refused,
    Cancelled,
    TimedOut,
    Failed,
    Lost,
    Completed,
}

impl From<Over> for Completion {
    fn from(over: Over) -> Self {
        match over {
            Over::Skipped => Self::Skipped,
            Over::Refused => Self::Refused,
            Over::Cancelled => Self::Cancelled,
            Over::TimedOut => Self::TimedOut,
            Over::Failed => Self::Failed,
            Over::Lost => Self::Lost,
            Over::Completed => Self::Completed,
        }
    }
}
