//! The run of a task, from the moment it gets a run permit. Only this module submits calls to the
//! pool.

use std::{
    any::Any,
    future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::AbortHandle,
    time::{Instant, sleep_until},
};

pub(super) use crate::pool::call::Context as CallContext;

use super::{
    Completion, TaskOutput,
    error::Cause,
    header::{Claimed, TaskHeader},
    metrics,
    shared::{Shared, in_task_of},
};
use crate::{
    panic::{catch_unwind, drop_payload, ignore_panic},
    pool::{self, Admitted, CallOptions, PermitKind, QueuePermit, call::OnCallerDrop},
};

type Output = Result<(), String>;
type BoxFuture = Pin<Box<dyn Future<Output = Output> + Send>>;
type BoxClosure = Box<dyn FnOnce() -> Output + Send>;

/// A task and its work, waiting for a run permit.
pub(super) struct QueuedTask {
    pub(super) header: Arc<TaskHeader>,
    /// The runtime and span in which the task was reserved.
    pub(super) context: CallContext,
    pub(super) timeout: Option<Duration>,
    /// Runs a future on the runtime of `context`, if there is one, instead of the pool.
    pub(super) on_runtime: bool,
    pub(super) body: TaskBody,
}

/// The work of a task.
pub(crate) enum TaskBody {
    Async(BoxFuture),
    Blocking(BoxClosure),
}

impl TaskBody {
    pub(crate) fn from_closure<F, T>(work: F) -> Self
    where
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        Self::Blocking(Box::new(|| work().into_result()))
    }

    pub(crate) fn from_future<F>(work: F) -> Self
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        Self::Async(Box::pin(async { work.await.into_result() }))
    }
}

impl QueuedTask {
    /// Hands the work to the pool or the runtime, together with its run permit.
    pub(super) fn start(self, shared: &Arc<Shared>) {
        let Self { header, context, timeout, on_runtime, body } = self;
        let is_blocking = matches!(body, TaskBody::Blocking(_));
        let run = Run::new(shared.clone(), header.clone(), timeout, is_blocking);
        match body {
            TaskBody::Blocking(work) => spawn_on_pool(shared, &header, context, run_closure(run, work)),
            TaskBody::Async(future) => {
                let task = AsyncTask::new(run, future);
                // A pool without threads cannot protect the runtime, and would run the future
                // within wakers, which tokio may call while it holds a lock.
                let on_runtime = on_runtime || shared.pool.is_inline();
                match context.runtime().filter(|_| on_runtime).cloned() {
                    Some(runtime) => {
                        let task = runtime.spawn(RuntimeTask { parts: Some((task, context)), polls: 0 });
                        header.set_runtime_handle(task.abort_handle());
                    }
                    None => spawn_on_pool(shared, &header, context, task),
                }
            }
        }
    }
}

fn spawn_on_pool(
    shared: &Arc<Shared>,
    header: &Arc<TaskHeader>,
    context: CallContext,
    future: impl Future<Output = ()> + Send + 'static,
) {
    let options = CallOptions::new();
    // The background has accepted the task.
    match QueuePermit::try_acquire_counted(shared.pool.clone(), options, PermitKind::Exempt) {
        Ok(queue_permit) => {
            let admitted = Admitted { queue_permit, layer_permit: None, options };
            header.set_pool_handle(pool::spawn(admitted, context, OnCallerDrop::CancelOnPool, future));
        }
        Err(error) => {
            let _ = header.refusal.set(error);
            ignore_panic(|| drop(future));
        }
    }
}

async fn run_closure(mut run: Run, work: BoxClosure) {
    if run.start() {
        let span = TaskSpan::new(&run.header);
        if !run.header.begin() {
            ignore_panic(|| span.enter(|| drop(work)));
            run.finish(None);
            return;
        }
        let result = catch_unwind(|| in_task_of(&run.shared, || span.enter(work)));
        drop(span);
        run.finish_with(result);
    }
}

/// Guard of a task that has a run permit. It completes the task and releases the permit exactly
/// once: when the work ends, or when the guard is dropped with the work.
struct Run {
    shared: Arc<Shared>,
    header: Arc<TaskHeader>,
    timeout: Option<Duration>,
    is_blocking: bool,
    /// `None` before the task starts and after it finished.
    started: Option<Started>,
    is_finished: bool,
}

struct Started {
    at: Instant,
    timer: Option<AbortHandle>,
    watch: Option<AbortHandle>,
}

impl Run {
    fn new(shared: Arc<Shared>, header: Arc<TaskHeader>, timeout: Option<Duration>, is_blocking: bool) -> Self {
        Self { shared, header, timeout, is_blocking, started: None, is_finished: false }
    }

    /// Starts the task, and its timer if this thread is in a runtime. Returns `false` if the task
    /// must not run.
    fn start(&mut self) -> bool {
        let at = Instant::now();
        let Some(queued_at) = self.shared.start(self.header.id, at) else {
            self.header.mark_cancelled();
            return false;
        };
        let timer = self.timeout.zip(Handle::try_current().ok()).map(|(timeout, runtime)| {
            let (shared, header, is_blocking) = (self.shared.clone(), self.header.clone(), self.is_blocking);
            let timer = runtime.spawn(async move {
                // Not from now on: a busy runtime may poll this for the first time much later.
                match at.checked_add(timeout) {
                    Some(deadline) => sleep_until(deadline).await,
                    None => future::pending().await,
                }
                time_out(&shared, &header, timeout, is_blocking);
            });
            timer.abort_handle()
        });
        let runtime = if self.is_blocking { None } else { Handle::try_current().ok() };
        let watch = runtime.map(|runtime| runtime.spawn(RuntimeWatch(self.header.clone())).abort_handle());
        self.started = Some(Started { at, timer, watch });
        metrics::started(&self.header, at.duration_since(queued_at));
        true
    }

    fn has_started(&self) -> bool {
        self.started.is_some()
    }

    /// Finishes a task that returned or panicked.
    fn finish_with(mut self, result: Result<Output, Box<dyn Any + Send>>) {
        let cause = match result {
            Ok(Ok(())) => None,
            Ok(Err(message)) => Some(Cause::Error(message)),
            Err(payload) => {
                let cause = Cause::panicked(&*payload);
                drop_payload(payload);
                Some(cause)
            }
        };
        self.finish(cause);
    }

    fn finish(&mut self, cause: Option<Cause>) {
        self.is_finished = true;
        self.header.set_ended();
        let ran = self.started.as_ref().map(|started| started.at.elapsed());
        if let Some(Started { timer, watch, .. }) = self.started.take() {
            timer.into_iter().chain(watch).for_each(|task| task.abort());
        }
        let completion = self.report(cause, ran);
        metrics::ended(&self.header, completion, ran);
        // The callback runs before the permit is released, so that a shutdown waits for it.
        self.header.complete(completion);
        self.shared.finish(self.header.id, completion);
    }

    /// Decides how the task ended, and reports a failure that its timer has not reported.
    fn report(&self, cause: Option<Cause>, ran: Option<Duration>) -> Completion {
        if self.header.claim_completion().is_none() {
            return Completion::TimedOut; // the timer was first
        }
        if self.header.is_cancelled() && !matches!(cause, Some(Cause::Panicked(_))) {
            return Completion::Cancelled;
        }
        let exceeded = self.timeout.filter(|timeout| ran.is_some_and(|ran| ran > *timeout));
        let cause = cause.or(exceeded.map(|timeout| Cause::TimedOut { timeout, still_running: false }));
        match cause {
            None => Completion::Completed,
            Some(cause) => {
                let completion = cause.completion();
                self.shared.report_failure(&self.header, cause);
                completion
            }
        }
    }
}

impl Drop for Run {
    /// Finishes a task whose work was dropped before it ended.
    fn drop(&mut self) {
        if !self.is_finished {
            let refusal = self.header.refusal.get().copied();
            self.finish(Some(if self.has_started() { Cause::Lost } else { Cause::Refused(refusal) }));
        }
    }
}

/// Ends a task whose timer fired, unless the task has finished.
fn time_out(shared: &Shared, header: &TaskHeader, timeout: Duration, is_blocking: bool) {
    let Some(Claimed { has_begun }) = header.claim_completion() else { return };
    let still_running = is_blocking && has_begun;
    shared.report_failure(header, Cause::TimedOut { timeout, still_running });
    header.cancel();
    if still_running {
        // A closure may run for a long time. Other work completes soon, when it is dropped.
        header.complete(Completion::TimedOut);
    }
}

/// An async task, polled on the pool or within a [`RuntimeTask`].
struct AsyncTask {
    /// `None` once the future has ended.
    parts: Option<(Run, BoxFuture)>,
    span: TaskSpan,
}

impl AsyncTask {
    fn new(run: Run, future: BoxFuture) -> Self {
        Self { parts: Some((run, future)), span: TaskSpan::default() }
    }
}

impl Future for AsyncTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some((mut run, mut future)) = self.parts.take() else { return Poll::Ready(()) };
        if !run.has_started() {
            if !run.start() {
                return Poll::Ready(());
            }
            self.span = TaskSpan::new(&run.header);
            if !run.header.begin() {
                ignore_panic(|| self.span.enter(|| drop(future)));
                self.span = TaskSpan::default();
                run.finish(None);
                return Poll::Ready(());
            }
        }
        let shared = run.shared.clone();
        let polled = catch_unwind(|| in_task_of(&shared, || self.span.enter(|| future.as_mut().poll(cx))));
        let result = match polled {
            Ok(Poll::Pending) => {
                self.parts = Some((run, future));
                return Poll::Pending;
            }
            Ok(Poll::Ready(output)) => {
                catch_unwind(|| in_task_of(&shared, || self.span.enter(|| drop(future)))).map(|()| output)
            }
            Err(payload) => {
                ignore_panic(|| self.span.enter(|| drop(future)));
                Err(payload)
            }
        };
        self.span = TaskSpan::default();
        run.finish_with(result);
        Poll::Ready(())
    }
}

impl Drop for AsyncTask {
    fn drop(&mut self) {
        // The future is dropped first, then the `Run`, which completes the task.
        let Some((_run, future)) = self.parts.take() else { return };
        ignore_panic(|| self.span.enter(|| drop(future)));
    }
}

/// An async task on the runtime in which it was reserved. It reports polls that block the runtime.
struct RuntimeTask {
    parts: Option<(AsyncTask, CallContext)>,
    /// The number of polls so far.
    polls: u64,
}

impl Future for RuntimeTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { parts, polls } = &mut *self;
        let Some((task, context)) = parts else { return Poll::Ready(()) };
        let Some((run, _)) = &task.parts else { return Poll::Ready(()) };
        let (shared, header) = (run.shared.clone(), run.header.clone());
        *polls += 1;
        context.enter_trace(|| {
            let started = Instant::now();
            let polled = Pin::new(task).poll(cx);
            let held = started.elapsed();
            if held > shared.blocking_threshold {
                shared.count_blocked_poll();
                report_blocked(&header, *polls, held);
            }
            polled
        })
    }
}

impl Drop for RuntimeTask {
    /// Moves the task to the pool if the runtime shut down before the first poll.
    fn drop(&mut self) {
        let Some((task, context)) = self.parts.take() else { return };
        match &task.parts {
            Some((run, _)) if !run.has_started() && !run.header.is_cancelled() => {
                let (shared, header) = (run.shared.clone(), run.header.clone());
                spawn_on_pool(&shared, &header, context.without_runtime(), task);
            }
            _ => context.enter_trace(|| drop(task)),
        }
    }
}

/// A task of the runtime within which a future is polled on the pool. If the runtime shuts down, it
/// drops the future, which may wait for something that no longer happens.
struct RuntimeWatch(Arc<TaskHeader>);

impl Future for RuntimeWatch {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending // until the task ends and aborts it, or the runtime drops it
    }
}

impl Drop for RuntimeWatch {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// The span of a running task, created within the span in which the task was reserved. Without
/// feature `tracing` it is empty.
#[derive(Default)]
struct TaskSpan {
    #[cfg(feature = "tracing")]
    span: Option<tracing::Span>,
}

impl TaskSpan {
    #[cfg_attr(not(feature = "tracing"), expect(unused_variables))]
    fn new(header: &TaskHeader) -> Self {
        Self {
            #[cfg(feature = "tracing")]
            span: Some(tracing::info_span!("background_task", id = header.id, name = header.name())),
        }
    }

    fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        #[cfg(feature = "tracing")]
        let _span = self.span.as_ref().map(tracing::Span::enter);
        work()
    }
}

/// Reports a poll that blocked the runtime, like the blocking detector. Without the features
/// `tracing` and `metrics` it has no effect.
#[cold]
#[cfg_attr(not(feature = "tracing"), expect(unused_variables))]
fn report_blocked(header: &TaskHeader, poll: u64, held: Duration) {
    #[cfg(feature = "tracing")]
    ignore_panic(|| {
        let duration_seconds = held.as_secs_f64();
        tracing::warn!(task = header.name(), id = header.id, duration_seconds, poll, "thread blocked");
    });
    metrics::blocked(header, held);
}
