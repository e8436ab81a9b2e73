use std::{borrow::Cow, fmt, time::Duration};

use super::{
    AfterResponse, Outcome, Rejected,
    entry::{self, Condition},
};
use crate::background::{Reservation, TaskBody, TaskHandle, TaskOutput};

/// A task that has a name and no work yet. Made by [`AfterResponse::task`].
///
/// Without further word it is for successful responses ([`Outcome::is_success`]), and it starts when those that the request
/// registered before are over.
#[must_use = "a task does nothing until it is given work with `run` or `spawn`"]
pub struct Task<'a> {
    after: &'a AfterResponse,
    name: Cow<'static, str>,
    condition: Condition,
    limit: Option<Duration>,
    concurrent: usize,
    stop_on_error: bool,
    replace: bool,
}

impl<'a> Task<'a> {
    pub(super) fn new(after: &'a AfterResponse, name: Cow<'static, str>) -> Self {
        Self {
            after,
            name,
            condition: Condition::default(),
            limit: None,
            concurrent: 1,
            stop_on_error: false,
            replace: false,
        }
    }

    /// Runs whatever becomes of the response, also if the client left before there was one. Of the conditions the last one named
    /// counts. Only a failed task that [stops](Self::stop_on_error) those behind it is stronger.
    pub fn always(self) -> Self {
        Self { condition: Condition::Always, ..self }
    }

    /// Runs if the whole response was flushed or handed over ([`Outcome::is_complete`]), whatever its status.
    pub fn on_complete(self) -> Self {
        Self { condition: Condition::Complete, ..self }
    }

    /// Runs if the whole response was flushed ([`Outcome::is_flushed`]), whatever its status.
    ///
    /// Where the connection is not tracked registering it fails, since it could never run.
    pub fn on_flushed(self) -> Self {
        Self { condition: Condition::Flushed, ..self }
    }

    /// Runs if this says so. It is asked once, on the runtime, so it must be short; if it panics the task is skipped.
    pub fn when(self, wants: impl FnOnce(&Outcome) -> bool + Send + 'static) -> Self {
        Self { condition: Condition::When(Box::new(wants)), ..self }
    }

    /// How long it may run, from when it begins. Default: for ever. See [`background::TaskBuilder::timeout`](crate::background::TaskBuilder::timeout).
    ///
    /// At that moment the request's next task starts, also if this one is sync work that goes on.
    pub fn timeout(self, limit: Duration) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// It may start while other tasks of this request run, if then at most so many do. Default 1: one after the other. It
    /// never overtakes one that was registered before.
    ///
    /// # Panics
    ///
    /// If it is 0: the task could never start.
    #[track_caller]
    pub fn concurrent(self, tasks: usize) -> Self {
        assert!(tasks > 0, "a task with `concurrent(0)` never starts: give it at least 1");
        Self { concurrent: tasks, ..self }
    }

    /// If it fails, panics or runs out of time, the request's tasks that have not started by then are skipped, those that are
    /// [`always`](Self::always) too. Default: they run.
    pub fn stop_on_error(self) -> Self {
        Self { stop_on_error: true, ..self }
    }

    /// Cancels what the request registered under this name before: the last one counts. Default: all run.
    pub fn replace(self) -> Self {
        Self { replace: true, ..self }
    }

    /// Registers it, with sync work that runs on the pool of the background.
    ///
    /// # Errors
    ///
    /// If every place of the background is taken, if it is closed, or if the task is for [flushed](Self::on_flushed) responses and the
    /// connection is not tracked. The work is dropped then, and what it would have [replaced](Self::replace) stays.
    pub fn run<F, T>(self, work: F) -> Result<TaskHandle, Rejected>
    where
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        self.register(TaskBody::from_closure(work))
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
        self.register(TaskBody::from_future(work))
    }

    /// Admits the task, with the options set so far. It gets its work later.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn reserve(self) -> Result<Reservation, Rejected> {
        let reservation = self.admit()?;
        Ok(self.defer(reservation))
    }

    fn admit(&self) -> Result<Reservation, Rejected> {
        if matches!(self.condition, Condition::Flushed) && !self.after.is_tracked() {
            return Err(Rejected::UNTRACKED);
        }
        let mut task = self.after.background().task(self.name.clone());
        if let Some(limit) = self.limit {
            task = task.timeout(limit);
        }
        Ok(task.reserve()?)
    }

    /// Lets the work that the reservation gets start after the response.
    pub(super) fn defer(self, reservation: Reservation) -> Reservation {
        let Self { after, name, condition, concurrent, stop_on_error, replace, .. } = self;
        let (after, attempt) = (after.clone(), after.attempt());
        reservation.after_response(move |reservation, body| {
            if replace {
                after.cancel(&name);
            }
            let id = reservation.id();
            let task = entry::Task { body, reservation, condition, attempt, concurrent, stop_on_error };
            after.register_task(name, id, task);
        })
    }

    fn register(self, body: TaskBody) -> Result<TaskHandle, Rejected> {
        let reservation = self.admit()?;
        let Self { after, name, condition, concurrent, stop_on_error, replace, .. } = self;
        if replace {
            after.cancel(&name);
        }
        let handle = reservation.handle();
        let task = entry::Task { body, reservation, condition, attempt: after.attempt(), concurrent, stop_on_error };
        after.register_task(name, handle.id(), task);
        Ok(handle)
    }
}

impl fmt::Debug for Task<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("name", &self.name)
            .field("condition", &self.condition)
            .field("limit", &self.limit)
            .field("concurrent", &self.concurrent)
            .field("stop_on_error", &self.stop_on_error)
            .field("replace", &self.replace)
            .finish_non_exhaustive()
    }
}
