use std::{borrow::Cow, error::Error, fmt, hash::Hash, time::Duration};

use super::{AfterResponse, Outcome, driver::RegisteredTask, guard::InnerAttempt};
use crate::{
    background::{Reservation, SequenceKey, SubmitError, TaskBody, TaskHandle, TaskOutput},
    panic::{catch_unwind, ignore_panic},
};

/// Builder of a named task that runs after the response. Returned by [`AfterResponse::task`].
///
/// By default the task runs if the handler's response is a success ([`Outcome::is_success`]), and
/// starts when the tasks that the request registered before have ended.
#[must_use = "the task is registered only by `spawn_blocking` or `spawn`"]
pub struct ResponseTaskBuilder<'a> {
    after: &'a AfterResponse,
    name: Cow<'static, str>,
    condition: Condition,
    sequence: Option<SequenceKey>,
    timeout: Option<Duration>,
    on_runtime: bool,
    concurrent: usize,
    stop_on_error: bool,
    replace: bool,
}

impl<'a> ResponseTaskBuilder<'a> {
    pub(super) fn new(after: &'a AfterResponse, name: Cow<'static, str>) -> Self {
        Self {
            after,
            name,
            condition: Condition::default(),
            sequence: None,
            timeout: None,
            on_runtime: false,
            concurrent: 1,
            stop_on_error: false,
            replace: false,
        }
    }

    /// Runs the task for every outcome, even if the client left before there was a response.
    ///
    /// If several conditions are set, the last one counts. A failed task with
    /// [`stop_on_error`](Self::stop_on_error) still skips this one.
    pub fn always(self) -> Self {
        Self { condition: Condition::Always, ..self }
    }

    /// Runs the task if the whole response was flushed or handed over ([`Outcome::is_complete`]),
    /// with any status.
    pub fn on_complete(self) -> Self {
        Self { condition: Condition::Complete, ..self }
    }

    /// Runs the task if the whole response was flushed ([`Outcome::is_flushed`]), with any
    /// status.
    ///
    /// Registering it fails if the connection is not tracked, because the task could never run.
    pub fn on_flushed(self) -> Self {
        Self { condition: Condition::Flushed, ..self }
    }

    /// Runs the task if the peer's TCP has acknowledged the whole response
    /// ([`Outcome::is_acknowledged`]), with any status.
    ///
    /// Registering it [requests](AfterResponse::request_acknowledgement) the acknowledgement, for
    /// which the other hooks and tasks of the request wait too. It fails if the connection cannot
    /// report acknowledgements or the response was flushed before without a request, because the
    /// task could never run.
    pub fn on_acknowledged(self) -> Self {
        Self { condition: Condition::Acknowledged, ..self }
    }

    /// Runs the task if `predicate` returns `true`.
    ///
    /// The predicate is called once, on the runtime, so it must be short. If it panics, the task is
    /// skipped.
    pub fn when(self, predicate: impl FnOnce(&Outcome) -> bool + Send + 'static) -> Self {
        Self { condition: Condition::When(Box::new(predicate)), ..self }
    }

    /// Adds the task to the sequence with this key, in which tasks of all requests run one at a
    /// time. See [`background::TaskBuilder::sequence`](crate::background::TaskBuilder::sequence).
    ///
    /// The task takes its place when the response has ended and the request's earlier tasks let it
    /// start, so a client that does not read its response does not hold up the sequence.
    pub fn sequence(self, key: impl Hash) -> Self {
        Self { sequence: Some(SequenceKey::new(&key)), ..self }
    }

    /// Limits the run time of the task. Default: no limit. See
    /// [`background::TaskBuilder::timeout`](crate::background::TaskBuilder::timeout).
    ///
    /// The request's next task starts when the timeout elapses, even if this one is blocking work
    /// that still runs.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// Runs async work on the current runtime instead of the pool. See
    /// [`background::Reservation::on_runtime`](crate::background::Reservation::on_runtime).
    pub fn on_runtime(self) -> Self {
        Self { on_runtime: true, ..self }
    }

    /// Lets the task start while other tasks of this request run, as long as at most `tasks` of
    /// them, including this one, then run. Default: 1, which runs them one after the other.
    ///
    /// The task never overtakes one that was registered before it.
    ///
    /// # Panics
    ///
    /// Panics if `tasks` is 0, because the task could never start.
    #[track_caller]
    pub fn concurrent(self, tasks: usize) -> Self {
        assert!(tasks > 0, "a task with `concurrent(0)` never starts: use at least 1");
        Self { concurrent: tasks, ..self }
    }

    /// If the task fails, panics or times out, skips the request's tasks that have not started by
    /// then, including [`always`](Self::always) tasks. Default: they run.
    pub fn stop_on_error(self) -> Self {
        Self { stop_on_error: true, ..self }
    }

    /// Cancels the tasks that the request registered under this name before. Default: they all run.
    pub fn replace(self) -> Self {
        Self { replace: true, ..self }
    }

    /// Registers the task with blocking work, which runs on the pool of the background.
    ///
    /// # Errors
    ///
    /// Returns an error if the background is full or shut down, or if the task is for
    /// [flushed](Self::on_flushed) or [acknowledged](Self::on_acknowledged) responses and this one
    /// cannot be reported as such. The work is dropped then, and tasks that it would have
    /// [replaced](Self::replace) stay registered.
    pub fn spawn_blocking<F, T>(self, work: F) -> Result<TaskHandle, RegisterError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        self.register(TaskBody::from_closure(work))
    }

    /// Registers the task with async work, which is polled on the pool of the background, within
    /// the current runtime.
    ///
    /// # Errors
    ///
    /// Returns an error in the same cases as [`spawn_blocking`](Self::spawn_blocking).
    pub fn spawn<F>(self, work: F) -> Result<TaskHandle, RegisterError>
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.register(TaskBody::from_future(work))
    }

    /// Admits the task with the options set so far. It gets its work later, and starts after the
    /// response.
    ///
    /// # Errors
    ///
    /// Returns an error in the same cases as [`spawn_blocking`](Self::spawn_blocking).
    pub fn reserve(self) -> Result<Reservation, RegisterError> {
        let reservation = self.admit()?;
        Ok(self.defer(reservation))
    }

    fn register(self, body: TaskBody) -> Result<TaskHandle, RegisterError> {
        let reservation = self.admit()?;
        let handle = reservation.handle();
        let after = self.after;
        self.into_registration().submit(after, reservation, body);
        Ok(handle)
    }

    fn admit(&self) -> Result<Reservation, RegisterError> {
        if matches!(self.condition, Condition::Flushed) && !self.after.is_tracked() {
            return Err(RegisterError::UNTRACKED);
        }
        let is_for_acknowledged = matches!(self.condition, Condition::Acknowledged);
        if is_for_acknowledged && !self.after.exchange().can_be_acknowledged() {
            return Err(RegisterError::UNACKNOWLEDGED);
        }
        let mut reservation = self.after.background().reserve_after_response(self.name.clone(), self.sequence)?;
        // Requested last, so that a task that is rejected lets nothing wait. The response may have
        // been flushed or acknowledged meanwhile.
        if is_for_acknowledged && !self.after.request_acknowledgement() && !self.after.exchange().can_be_acknowledged()
        {
            return Err(RegisterError::UNACKNOWLEDGED);
        }
        if let Some(timeout) = self.timeout {
            reservation = reservation.timeout(timeout);
        }
        Ok(if self.on_runtime { reservation.on_runtime() } else { reservation })
    }

    /// Makes the work that the reservation receives start after the response.
    pub(super) fn defer(self, reservation: Reservation) -> Reservation {
        let (after, registration) = (self.after.clone(), self.into_registration());
        reservation.after_response(move |reservation, body| registration.submit(&after, reservation, body))
    }

    fn into_registration(self) -> Registration {
        Registration {
            name: self.name,
            condition: self.condition,
            attempt: self.after.attempt(),
            concurrent: self.concurrent,
            stop_on_error: self.stop_on_error,
            replace: self.replace,
        }
    }
}

impl fmt::Debug for ResponseTaskBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseTaskBuilder")
            .field("name", &self.name)
            .field("condition", &self.condition)
            .field("sequence", &self.sequence)
            .field("timeout", &self.timeout)
            .field("on_runtime", &self.on_runtime)
            .field("concurrent", &self.concurrent)
            .field("stop_on_error", &self.stop_on_error)
            .field("replace", &self.replace)
            .finish_non_exhaustive()
    }
}

/// Options of an admitted task.
struct Registration {
    name: Cow<'static, str>,
    condition: Condition,
    attempt: Option<InnerAttempt>,
    concurrent: usize,
    stop_on_error: bool,
    replace: bool,
}

impl Registration {
    /// Adds the task to the list of the request.
    fn submit(self, after: &AfterResponse, reservation: Reservation, body: TaskBody) {
        let Self { name, condition, attempt, concurrent, stop_on_error, replace } = self;
        if replace {
            after.cancel(&name);
        }
        let id = reservation.id();
        after.register_task(name, id, concurrent, |key| {
            Box::new(RegisteredTask { body, reservation, condition, attempt, key, stop_on_error })
        });
    }
}

/// Selects the outcomes for which a task runs.
#[derive(Default)]
pub(super) enum Condition {
    #[default]
    Success,
    Complete,
    Flushed,
    Acknowledged,
    Always,
    When(Box<dyn FnOnce(&Outcome) -> bool + Send>),
}

impl Condition {
    /// Returns `true` if the condition depends on the response of the handler that registered the
    /// task, which may not be the response that was sent.
    pub(super) fn depends_on_handler(&self) -> bool {
        matches!(self, Self::Success)
    }

    /// `has_succeeded` is `true` if the response of the handler that registered the task is a
    /// success. Returns `false` if the predicate panics.
    pub(super) fn holds(self, outcome: &Outcome, has_succeeded: bool) -> bool {
        match self {
            Self::Success => has_succeeded,
            Self::Complete => outcome.is_complete(),
            Self::Flushed => outcome.is_flushed(),
            Self::Acknowledged => outcome.is_acknowledged(),
            Self::Always => true,
            Self::When(predicate) => catch_unwind(|| predicate(outcome)).unwrap_or_else(|payload| {
                ignore_panic(|| drop(payload));
                false
            }),
        }
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Success => "Success",
            Self::Complete => "Complete",
            Self::Flushed => "Flushed",
            Self::Acknowledged => "Acknowledged",
            Self::Always => "Always",
            Self::When(_) => "When",
        })
    }
}

/// Error registering a task: the work was dropped and will not run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RegisterError(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Untracked,
    Unacknowledged,
    Background(SubmitError),
}

impl RegisterError {
    const UNTRACKED: Self = Self(Kind::Untracked);
    const UNACKNOWLEDGED: Self = Self(Kind::Unacknowledged);

    /// Returns `true` if the background no longer accepts tasks, because it is shut down.
    pub fn is_closed(&self) -> bool {
        matches!(self.0, Kind::Background(error) if error.is_closed())
    }

    /// Returns `true` if the background has reached its maximum number of tasks. A later call may
    /// succeed.
    pub fn is_full(&self) -> bool {
        matches!(self.0, Kind::Background(error) if error.is_full())
    }

    /// Returns `true` if the task is for [flushed](ResponseTaskBuilder::on_flushed) or
    /// [acknowledged](ResponseTaskBuilder::on_acknowledged) responses and this one cannot be
    /// reported as such.
    pub fn is_untracked(&self) -> bool {
        matches!(self.0, Kind::Untracked | Kind::Unacknowledged)
    }
}

impl From<SubmitError> for RegisterError {
    fn from(error: SubmitError) -> Self {
        Self(Kind::Background(error))
    }
}

/// Contains the message, which names the remedy, because handlers that `unwrap` print this.
impl fmt::Debug for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tuple = f.debug_tuple("RegisterError");
        match &self.0 {
            Kind::Untracked | Kind::Unacknowledged => tuple.field(&self.to_string()),
            Kind::Background(error) => tuple.field(error),
        }
        .finish()
    }
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Kind::Untracked => f.write_str(
                "task rejected: it is for flushed responses, and the connection is not tracked. Serve it with \
                 `tower_offload::axum::serve` or `Tracker::track`",
            ),
            Kind::Unacknowledged => f.write_str(
                "task rejected: it is for acknowledged responses, and the TCP socket of the connection is unknown, or \
                 the response was flushed already. On Linux, serve with `tower_offload::axum::serve` or call \
                 `TrackedIo::with_socket`, and register the task in the handler",
            ),
            Kind::Background(_) => f.write_str("task rejected"),
        }
    }
}

impl Error for RegisterError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Kind::Untracked | Kind::Unacknowledged => None,
            Kind::Background(error) => Some(error),
        }
    }
}
