use std::{borrow::Cow, time::Duration};

use super::{Background, Rejected, TaskHandle, TaskOutput};
use super::{Place, Reservation};

/// A task that has a name and no work yet. Made by [`Background::task`].
#[derive(Debug)]
#[must_use = "a task does nothing until it is given work with `run` or `spawn`"]
pub struct Task<'a> {
    background: &'a Background,
    name: Cow<'static, str>,
    limit: Option<Duration>,
}

impl<'a> Task<'a> {
    pub(super) fn new(background: &'a Background, name: Cow<'static, str>) -> Self {
        Self { background, name, limit: None }
    }

    /// How long it may run, from when it begins. Default: for ever.
    ///
    /// After that the task is reported as failed. An async task is dropped; sync work is told to stop
    /// ([`cancelled`](super::cancelled)), and reported as [still running](super::TaskFailure::is_still_running).
    ///
    /// Time is kept by the runtime in which the task was registered, which must have time enabled; outside of any, a task that
    /// took too long is reported when it ends.
    pub fn timeout(self, limit: Duration) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// Takes its place now. Its time is this, unless it has a time of its own.
    #[doc(hidden)]
    pub fn place(self, limit: Duration) -> Result<Place, Rejected> {
        let Self { background, name, limit: own } = self;
        Ok(Place::new(background.reserve(name)?.with_limit(own.or(Some(limit))), Reservation::spend))
    }

    /// Registers it, with sync work that runs on the pool.
    ///
    /// # Errors
    ///
    /// If every place is taken, or the background is closed. The work is dropped then.
    pub fn run<F, T>(self, work: F) -> Result<TaskHandle, Rejected>
    where
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        let Self { background, name, limit } = self;
        Ok(background.reserve(name)?.with_limit(limit).run(work))
    }

    /// Registers it, with async work that runs on the current runtime; outside of any, on the pool.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn spawn<F>(self, work: F) -> Result<TaskHandle, Rejected>
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        let Self { background, name, limit } = self;
        Ok(background.reserve(name)?.with_limit(limit).spawn(work))
    }
}
