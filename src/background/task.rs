use std::{borrow::Cow, fmt, hash::Hash, panic::resume_unwind, sync::Arc, time::Duration};

use super::{
    Background, Completion, SubmitError,
    completion::{CompletionFn, run_callback},
    header::TaskHeader,
    metrics,
    run::{CallContext, QueuedTask, TaskBody},
    sequence::SequenceKey,
    shared::Shared,
};
use crate::panic::{catch_unwind, ignore_panic};

/// Accepts tasks. Implemented by [`Background`], and by `AfterResponse` with feature
/// `after-response`.
///
/// A background starts a task as soon as a run permit is free. An `AfterResponse` does so after the
/// response, if the response succeeds. Code that accepts any `TaskTarget` works with both.
///
/// A submission has three steps:
///
/// 1. [`reserve`](Self::reserve) admits the task, or returns an error at once.
/// 2. The [`Reservation`] accepts the work, now or later.
/// 3. A [completion callback](Reservation::on_completion) is called exactly once, even if the task
///    never gets work or never starts.
///
/// ```
/// # use std::time::Duration;
/// use tower_offload::{Background, background::{SubmitError, TaskTarget}};
///
/// fn send_mail(target: &dyn TaskTarget) -> Result<(), SubmitError> {
///     let task = target.reserve("mail".into())?; // fails if the background is full
///     task.timeout(Duration::from_secs(30))
///         .on_completion(|completion| println!("mail: {completion:?}"))
///         .spawn_blocking(|| println!("sent"));
///     Ok(())
/// }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), SubmitError> {
/// let background = Background::default();
/// send_mail(&background)?;
/// # background.shutdown(Duration::from_secs(10)).await;
/// # assert_eq!(background.stats().completed, 1);
/// # Ok(())
/// # }
/// ```
///
/// Implement it for a type that owns a target, by delegating to that target.
pub trait TaskTarget: Sync {
    /// Admits a task that gets its work later.
    ///
    /// The name appears in reports, spans and metrics, like that of [`Background::task`].
    ///
    /// # Errors
    ///
    /// Returns an error if the background is full or closed.
    fn reserve(&self, name: Cow<'static, str>) -> Result<Reservation, SubmitError>;
}

impl TaskTarget for Background {
    fn reserve(&self, name: Cow<'static, str>) -> Result<Reservation, SubmitError> {
        Background::reserve(self, name)
    }
}

/// Configures a task before it gets its work. Returned by [`Background::task`].
#[derive(Debug)]
#[must_use = "a task does nothing until `spawn_blocking` or `spawn` gives it work"]
pub struct TaskBuilder<'a> {
    background: &'a Background,
    name: Cow<'static, str>,
    sequence: Option<SequenceKey>,
    timeout: Option<Duration>,
    on_runtime: bool,
}

impl<'a> TaskBuilder<'a> {
    pub(super) fn new(background: &'a Background, name: Cow<'static, str>) -> Self {
        Self { background, name, sequence: None, timeout: None, on_runtime: false }
    }

    /// Adds the task to the sequence with this key. Default: none. If it is called twice, the last
    /// key counts.
    ///
    /// Tasks of one sequence run one at a time, in the order in which their work was submitted.
    /// See [Sequences](crate::background#sequences). A [`Reservation`] takes its place when it gets
    /// its work, so one that is kept does not hold up its sequence.
    ///
    /// Keys are equal if they pass the same bytes to the hasher. Their types do not count: `"7"`
    /// and `"7".to_owned()` are one key, and so are the newtypes `CustomerId(7_u64)` and
    /// `InvoiceId(7_u64)`. Name the kind of key in a tuple, such as `("customer", 7)`, to keep two
    /// kinds apart.
    pub fn sequence(self, key: impl Hash) -> Self {
        Self { sequence: Some(SequenceKey::new(&key)), ..self }
    }

    /// Sets the maximum run time, measured from the start of the task. Default: unlimited.
    ///
    /// A task that exceeds it is reported as failed. A future is dropped. A closure cannot be
    /// stopped: [`cancelled`](super::cancelled) becomes `true` inside it, and it is reported as
    /// [still running](super::TaskFailure::is_still_running).
    ///
    /// The timer runs on the runtime in which the task was submitted, which must have time enabled.
    /// Without a runtime, a task that exceeded its timeout is reported when it ends.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// Runs a future on the current runtime instead of the pool. See [`Reservation::on_runtime`].
    pub fn on_runtime(self) -> Self {
        Self { on_runtime: true, ..self }
    }

    /// Admits the task, with the options set so far. It gets its work later.
    ///
    /// # Errors
    ///
    /// Returns an error if the background or the [sequence](Self::sequence) of the task is full, or
    /// if the background is closed.
    pub fn reserve(self) -> Result<Reservation, SubmitError> {
        let Self { background, name, sequence, timeout, on_runtime } = self;
        let header = background.shared.reserve(name, false, sequence)?;
        let mut reservation = Reservation::new(background.shared.clone(), header);
        (reservation.timeout, reservation.on_runtime) = (timeout, on_runtime);
        Ok(reservation)
    }

    /// Submits a closure, which runs on the pool.
    ///
    /// # Errors
    ///
    /// Returns an error if the background or the [sequence](Self::sequence) of the task is full, or
    /// if the background is closed. The closure is dropped then.
    pub fn spawn_blocking<F, T>(self, work: F) -> Result<TaskHandle, SubmitError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        Ok(self.reserve()?.spawn_blocking(work))
    }

    /// Submits a future, which is polled on the pool, within the current runtime.
    ///
    /// # Errors
    ///
    /// Returns an error if the background or the [sequence](Self::sequence) of the task is full, or
    /// if the background is closed. The future is dropped then.
    pub fn spawn<F>(self, work: F) -> Result<TaskHandle, SubmitError>
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        Ok(self.reserve()?.spawn(work))
    }
}

/// An admitted task without work. Returned by [`TaskTarget::reserve`], [`Background::reserve`] and
/// [`TaskBuilder::reserve`].
///
/// Dropping it releases the task, which completes as [skipped](Completion::Skipped).
#[must_use = "dropping a reservation skips the task"]
pub struct Reservation {
    shared: Arc<Shared>,
    header: Arc<TaskHeader>,
    timeout: Option<Duration>,
    on_runtime: bool,
    on_completion: Option<CompletionFn>,
    /// The runtime and span in which the task was reserved. `None` once the work was submitted.
    context: Option<CallContext>,
    /// Receives the work instead of the queue, so that it can be queued after the response.
    after_response: Option<Box<dyn FnOnce(Self, TaskBody) + Send>>,
}

impl Reservation {
    pub(super) fn new(shared: Arc<Shared>, header: Arc<TaskHeader>) -> Self {
        Self {
            shared,
            header,
            timeout: None,
            on_runtime: false,
            on_completion: None,
            context: Some(CallContext::capture_for_background()),
            after_response: None,
        }
    }

    /// Returns the id of the task, unique within its background.
    pub fn id(&self) -> u64 {
        self.header.id
    }

    /// Adds the task to the sequence with this key, like [`TaskBuilder::sequence`]. It takes its
    /// place when its work is submitted, and a task after a response when that has ended.
    ///
    /// # Errors
    ///
    /// Returns an error [of a full background](SubmitError::is_full) if the sequence has as many
    /// tasks as places are left. The task is counted as rejected then, and its completion callbacks
    /// are called with [`Skipped`](Completion::Skipped).
    pub fn sequence(mut self, key: impl Hash) -> Result<Self, SubmitError> {
        if let Err(error) = self.shared.join_sequence(&self.header, SequenceKey::new(&key)) {
            self.context = None; // It is not counted as skipped when it is dropped.
            if let Some(callback) = self.on_completion.take() {
                run_callback(callback, Completion::Skipped);
            }
            return Err(error);
        }
        Ok(self)
    }

    /// Sets the maximum run time, like [`TaskBuilder::timeout`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Runs a future on the runtime in which the task was reserved, instead of the pool. Has no
    /// effect on a closure, or if there was no runtime.
    ///
    /// The future must not block, because every other task on its thread would wait: connections,
    /// timers and health checks. A poll that takes longer than the [blocking
    /// threshold](super::BackgroundBuilder::blocking_threshold) is reported. The future moves to
    /// the pool if the runtime shuts down before the first poll.
    ///
    /// Use it for work that mostly waits and wakes often, to which the hop to another thread would
    /// add tens of microseconds per wake-up.
    pub fn on_runtime(mut self) -> Self {
        self.on_runtime = true;
        self
    }

    /// Sets the maximum run time, unless the task has one.
    pub fn default_timeout(mut self, timeout: Duration) -> Self {
        self.timeout.get_or_insert(timeout);
        self
    }

    /// Adds a callback that is called once, when the task completes. Callbacks run in the order in
    /// which they were added.
    ///
    /// A callback never runs while the task is reserved: a task that is cancelled before it gets
    /// work completes when the work is submitted or the reservation is dropped. A closure that
    /// exceeds its timeout completes at that moment, and so does each task that has a run permit
    /// when a shutdown times out. Any other task completes when its work has ended or was dropped.
    ///
    /// The callback runs on the thread that completes the task, so it should be short. It may
    /// submit tasks, which a closed background rejects. Callbacks of tasks that complete within it
    /// run after it, so that a chain of tasks does not recurse. A task that has a run permit keeps
    /// it until the callback returns, so a shutdown waits for the callback, up to its timeout.
    /// Panics are discarded.
    pub fn on_completion(mut self, callback: impl FnOnce(Completion) + Send + 'static) -> Self {
        self.on_completion = Some(match self.on_completion.take() {
            Some(first) => Box::new(move |completion| {
                ignore_panic(|| first(completion));
                callback(completion);
            }),
            None => Box::new(callback),
        });
        self
    }

    /// Returns a handle to the task.
    ///
    /// Cancelling it before there is work releases the task at once. Work submitted later is
    /// dropped.
    pub fn handle(&self) -> TaskHandle {
        TaskHandle { shared: self.shared.clone(), id: self.header.id }
    }

    /// Returns `true` if the task starts only after the response that is being produced.
    pub fn awaits_response(&self) -> bool {
        self.after_response.is_some()
    }

    /// Submits a closure, which runs on the pool.
    ///
    /// If the task was cancelled, or a shutdown has timed out, the closure is dropped. The task was
    /// counted as cancelled then.
    pub fn spawn_blocking<F, T>(self, work: F) -> TaskHandle
    where
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        self.submit(TaskBody::from_closure(work))
    }

    /// Submits a future, which is polled on the pool, within the runtime in which the task was
    /// reserved.
    ///
    /// It holds a thread of the pool only while it is polled, and may therefore block. It may use
    /// everything that needs a runtime, except `spawn_local`.
    ///
    /// If the task was cancelled, or a shutdown has timed out, the future is dropped. The task was
    /// counted as cancelled then.
    pub fn spawn<F>(self, work: F) -> TaskHandle
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.submit(TaskBody::from_future(work))
    }

    /// Submits work of either kind.
    pub(crate) fn submit(mut self, body: TaskBody) -> TaskHandle {
        let handle = self.handle();
        if let Some(submit) = self.after_response.take() {
            submit(self, body);
        } else if let Some(context) = self.context.take() {
            if let Some(callback) = self.on_completion.take() {
                self.header.set_on_completion(callback);
            }
            let (header, timeout, on_runtime) = (self.header.clone(), self.timeout, self.on_runtime);
            self.shared.enqueue(QueuedTask { header, context, timeout, on_runtime, body });
        }
        handle
    }

    #[cfg_attr(
        not(all(feature = "after-response", feature = "tracing")),
        allow(dead_code, reason = "for events of `after_response`")
    )]
    pub(crate) fn name(&self) -> Option<&str> {
        self.header.name()
    }

    /// Records that the response that the task waited for has ended.
    #[cfg_attr(not(feature = "after-response"), allow(dead_code, reason = "for `after_response`"))]
    pub(crate) fn end_response(&self) {
        self.shared.end_response(self.header.id);
    }

    /// Passes the work to `submit` instead of queueing it. `submit` receives the reservation too,
    /// and must use it to submit the work after the response.
    #[cfg_attr(not(feature = "after-response"), allow(dead_code, reason = "for `after_response`"))]
    pub(crate) fn after_response(mut self, submit: impl FnOnce(Self, TaskBody) + Send + 'static) -> Self {
        self.after_response = Some(Box::new(submit));
        self
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.context.take().is_some() {
            let was_reserved = self.shared.skip(self.header.id);
            let completion = if was_reserved { Completion::Skipped } else { Completion::Cancelled };
            metrics::ended(&self.header, completion, None);
            if let Some(callback) = self.on_completion.take() {
                run_callback(callback, completion);
            }
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("id", &self.header.id).field("name", &self.header.name).finish()
    }
}

/// A handle to a submitted task. Dropping it has no effect on the task.
#[derive(Clone)]
pub struct TaskHandle {
    shared: Arc<Shared>,
    id: u64,
}

impl TaskHandle {
    /// Returns the id of the task, unique within its background.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Cancels the task. Returns `false` if the task is complete.
    ///
    /// A task that has not started never runs; its work is dropped before this method returns. A
    /// running future is dropped at its next `.await`. In a running closure
    /// [`cancelled`](super::cancelled) becomes `true`. The task is counted as cancelled and not
    /// reported as a failure.
    pub fn cancel(&self) -> bool {
        self.shared.cancel(self.id)
    }

    /// Returns `true` if the background of the task [is closed](Background::is_closed).
    pub fn is_background_closed(&self) -> bool {
        self.shared.is_closed()
    }
}

impl fmt::Debug for TaskHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The return value of a task: `()`, or a `Result<(), E>` whose error fails the task.
///
/// The [`TaskFailure`](super::TaskFailure) contains the alternate form of the error (`{:#}`), in
/// which error reporting crates print the chain of causes.
#[diagnostic::on_unimplemented(
    message = "a task returns `()` or `Result<(), E>` where `E: Display`, not `{Self}`",
    note = "discard a value with `;`, and that of a `Result` with `.map(drop)`, which keeps its error",
    note = "a future is submitted with `spawn`, not with `spawn_blocking`"
)]
pub trait TaskOutput: sealed::Sealed {
    #[doc(hidden)]
    fn into_result(self) -> Result<(), String>;
}

impl TaskOutput for () {
    fn into_result(self) -> Result<(), String> {
        Ok(())
    }
}

impl<E: fmt::Display> TaskOutput for Result<(), E> {
    fn into_result(self) -> Result<(), String> {
        let Err(error) = self else { return Ok(()) };
        let text = catch_unwind(|| format!("{error:#}"));
        // Not while a panic of `fmt` unwinds: a second panic would abort the process.
        ignore_panic(|| drop(error));
        Err(text.unwrap_or_else(|payload| resume_unwind(payload)))
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for () {}
    impl<E> Sealed for Result<(), E> {}
}
