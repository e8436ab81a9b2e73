use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use tower_offload::background::{Reservation, TaskTarget};

use crate::{
    AcceptError, Accepted, IntoTaskResult, Progress, Reason, Record, Status, TaskId, Tasks, error::AcceptErrorKind,
    record::Ending, work, writer::ActiveTask,
};

impl Tasks {
    /// Returns a builder for a task of that name.
    ///
    /// The name is the kind of task, 1 to 200 bytes without control characters. It appears in
    /// statuses, spans and metrics, so use few different names.
    pub fn track(&self, name: impl Into<Cow<'static, str>>) -> TrackBuilder<'_> {
        TrackBuilder { tasks: self, name: name.into(), owner: None, sequence: None, timeout: None }
    }
}

/// Configures a task before it gets its work. Returned by [`Tasks::track`].
#[derive(Clone)]
#[must_use = "a task does nothing until `spawn_blocking` or `spawn` gives it work"]
pub struct TrackBuilder<'a> {
    tasks: &'a Tasks,
    name: Cow<'static, str>,
    owner: Option<String>,
    sequence: Option<Cow<'static, str>>,
    timeout: Option<Duration>,
}

impl TrackBuilder<'_> {
    /// Sets the owner, who may see the task. Default: everyone who knows the id may see it.
    pub fn owner(self, owner: impl Into<String>) -> Self {
        Self { owner: Some(owner.into()), ..self }
    }

    /// Adds the task to the sequence with this key. Default: none.
    ///
    /// Tasks of one sequence run one at a time, in the order in which they were accepted: a task
    /// whose acceptance was awaited runs before those that are accepted later. A task after a
    /// response takes its place when the response has ended. However a task ends, the next one
    /// starts after it. The tasks wait in the background of the target, which one sequence can fill
    /// to the half. See [Sequences](tower_offload::background#sequences).
    ///
    /// The key may be any text, of which only a hash is kept. A sequence belongs to the background
    /// and ends with the process. A task of the background itself whose
    /// [key](tower_offload::background::TaskBuilder::sequence) is the same text is in the same
    /// sequence: begin the keys with a name, such as `track:`, to keep them apart. It is not the
    /// sequence of durable jobs with the same key.
    pub fn sequence(self, key: impl Into<Cow<'static, str>>) -> Self {
        Self { sequence: Some(key.into()), ..self }
    }

    /// Sets the maximum run time, measured from the start of the task. Default: unlimited. A task
    /// with a timeout of zero is [refused](AcceptError::is_invalid).
    ///
    /// A task that exceeds it has [timed out](crate::TaskState::TimedOut). A future is dropped. A
    /// closure keeps its thread until it returns, and can poll [`Progress::is_cancelled`].
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// Accepts the task with a closure, which runs on the pool of the target's background.
    ///
    /// If the target is a [`Background`](tower_offload::Background), the task starts as soon as a
    /// run permit is free. If it is an `AfterResponse`, the task starts after the response, or is
    /// [cancelled](crate::TaskState::Cancelled) if the response fails.
    ///
    /// # Errors
    ///
    /// Returns an error if the background is full or closed, if the [sequence](Self::sequence) is
    /// full, if the record cannot be stored, or if the name, the owner or the timeout is not valid.
    /// The closure is dropped then.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, the closure is dropped and does not run. If
    /// the record was stored by then, the task is cancelled as
    /// [abandoned](crate::Reason::Abandoned).
    pub async fn spawn_blocking<R, F, O>(self, target: &R, work: F) -> Result<Accepted, AcceptError>
    where
        R: TaskTarget + ?Sized,
        F: FnOnce(Progress) -> O + Send + 'static,
        O: IntoTaskResult,
    {
        let reservation = self.reserve(target)?;
        let submit = move |reservation: Reservation, task| {
            reservation.spawn_blocking(move || work::run_blocking(&task, work));
        };
        self.accept(reservation, submit).await
    }

    /// Accepts the task with a future, which is polled on the pool of the target's background,
    /// within the current runtime. Otherwise it is like [`spawn_blocking`](Self::spawn_blocking).
    ///
    /// # Errors
    ///
    /// Like [`spawn_blocking`](Self::spawn_blocking).
    ///
    /// # Cancel safety
    ///
    /// Like [`spawn_blocking`](Self::spawn_blocking).
    pub async fn spawn<R, F, A, O>(self, target: &R, work: F) -> Result<Accepted, AcceptError>
    where
        R: TaskTarget + ?Sized,
        F: FnOnce(Progress) -> A + Send + 'static,
        A: Future<Output = O> + Send + 'static,
        O: IntoTaskResult,
    {
        let reservation = self.reserve(target)?;
        self.spawn_reserved(reservation, work).await
    }

    /// Accepts a task that has a reservation, like [`spawn`](Self::spawn). The caller has called
    /// [`validate`](Self::validate).
    pub(crate) async fn spawn_reserved<F, A, O>(
        self,
        reservation: Reservation,
        work: F,
    ) -> Result<Accepted, AcceptError>
    where
        F: FnOnce(Progress) -> A + Send + 'static,
        A: Future<Output = O> + Send + 'static,
        O: IntoTaskResult,
    {
        // The block keeps `O` out of the type of the future, since it need not be `'static`.
        let submit = move |reservation: Reservation, task| {
            reservation.spawn(async move { work::run(task, work).await });
        };
        self.accept(reservation, submit).await
    }

    fn reserve<R: TaskTarget + ?Sized>(&self, target: &R) -> Result<Reservation, AcceptError> {
        let reserve = || {
            self.validate()?;
            let reservation = target.reserve(self.name.clone())?;
            Ok(match &self.sequence {
                Some(key) => reservation.sequence(key)?,
                None => reservation,
            })
        };
        let reserved: Result<_, AcceptError> = reserve();
        let reservation = reserved.inspect_err(|error| self.tasks.on_rejected(&self.name, error))?;
        Ok(match self.timeout {
            Some(timeout) => reservation.timeout(timeout),
            None => reservation,
        })
    }

    /// Checks the name, the owner, the timeout, and that tasks are accepted.
    pub(crate) fn validate(&self) -> Result<(), AcceptError> {
        validate("name", &self.name, MAX_NAME_BYTES)?;
        self.owner.as_ref().map_or(Ok(()), |owner| validate_owner(owner))?;
        if self.timeout.is_some_and(|timeout| timeout.is_zero()) {
            let name = &self.name;
            let message =
                format!("the timeout of task {name:?} is zero, so it would always time out: omit it for no limit");
            return Err(AcceptError::invalid("timeout", message));
        }
        if self.tasks.is_closed() { Err(AcceptError(AcceptErrorKind::Closed)) } else { Ok(()) }
    }

    /// Stores the record of the task and then submits its work.
    async fn accept(
        self,
        reservation: Reservation,
        submit: impl FnOnce(Reservation, Arc<ActiveTask>) + Send,
    ) -> Result<Accepted, AcceptError> {
        let (tasks, name) = (self.tasks, self.name.clone());
        let accepted = self.try_accept(reservation, submit).await;
        accepted.inspect_err(|error| tasks.on_rejected(&name, error))
    }

    async fn try_accept(
        self,
        reservation: Reservation,
        submit: impl FnOnce(Reservation, Arc<ActiveTask>) + Send,
    ) -> Result<Accepted, AcceptError> {
        let writer = self.tasks.writer();
        let now = writer.now();
        let id = TaskId::generate(now).map_err(|error| AcceptError(AcceptErrorKind::Random(error)))?;
        let mut record = Record::new(id, self.name, now);
        record.owner = self.owner;
        let status = Status::from(&record);
        let task = writer.create(record, &reservation);
        let (completed, keeps_writer) = (task.clone(), writer.clone());
        let reservation = reservation.on_completion(move |completion| {
            completed.complete(completion);
            drop(keeps_writer); // a task refers to it weakly, and its final record must be written
        });
        let awaits_response = reservation.awaits_response();
        // Declared after `reservation`, and therefore dropped before it: the task is abandoned
        // before its reservation reports that it was skipped.
        let mut guard = AbandonGuard(Some(task.clone()));
        writer.accept(id, task.clone()).await?;
        guard.0 = None;
        submit(reservation, task);
        Ok(Accepted::new(status, self.tasks.location(id), awaits_response))
    }
}

/// Cancels a task if the future that accepts it is dropped.
struct AbandonGuard(Option<Arc<ActiveTask>>);

impl Drop for AbandonGuard {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.finish(Ending::Cancelled(Reason::Abandoned, None));
        }
    }
}

/// Maximum length of a name. A name and an owner together fit into an index entry of both
/// databases.
const MAX_NAME_BYTES: usize = 200;
const MAX_OWNER_BYTES: usize = 500;

/// Checks an owner. Owners are never truncated, because two different ones could become equal.
pub(crate) fn validate_owner(owner: &str) -> Result<(), AcceptError> {
    validate("owner", owner, MAX_OWNER_BYTES)
}

fn validate(option: &'static str, text: &str, max_bytes: usize) -> Result<(), AcceptError> {
    let message = if text.is_empty() {
        format!("the {option} is empty")
    } else if text.len() > max_bytes {
        format!("the {option} has {} bytes, at most {max_bytes} are allowed", text.len())
    } else if text.chars().any(char::is_control) {
        format!("the {option} {text:?} contains control characters")
    } else {
        return Ok(());
    };
    Err(AcceptError::invalid(option, message))
}

impl fmt::Debug for TrackBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackBuilder")
            .field("name", &self.name)
            .field("owner", &self.owner)
            .field("sequence", &self.sequence)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
