//! A call: a future that a pool polls, its output and its caller, in one allocation.
//!
//! ```text
//!  caller:  JoinHandle --------+              +--- Waker (timers, sockets, other calls)
//!                              v              v
//!                  Arc< Call { CallState, Stage, QueuePermit } >
//!                              ^
//!  pool:    Runnable (a queue entry; at most one) --+
//! ```
//!
//! [`CallState`] decides which thread may access the future, [`Stage`] holds the future or its
//! result, [`Context`] is the environment that the work runs in, and [`QueuePermit`] connects the
//! call to its pool.
//!
//! # Life of a call
//!
//! 1. [`spawn`] allocates the call and queues a [`Runnable`].
//! 2. A worker runs the entry: `CallState::begin`, then `poll`. The call leaves the queue.
//! 3. If the future is pending, `CallState::park` releases it. A wake-up queues a new entry.
//! 4. If the future is ready, `complete` drops it and the layer's permit, and publishes the output.
//!    The worker releases its reference and then wakes the caller.
//!
//! A caller that leaves drops its handle, and `drop_caller` decides which side drops what.

mod context;
mod join;
#[cfg(all(test, tower_offload_loom))]
mod loom;
mod runnable;
mod stage;
mod state;
mod timer;
mod uncounted;

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{self, Poll, Wake},
    time::Duration,
};

use tokio::{task::Id, time::Instant};

pub(super) use self::runnable::RawCall;
pub use self::runnable::Runnable;
pub(crate) use self::{
    context::{Context, CurrentCall, LayerPermit, RuntimeGuard},
    join::{CallFailure, JoinHandle},
    state::{CallerWaker, OnCallerDrop},
};
use self::{
    context::{Trace, Wait},
    join::Join,
    runnable::Header,
    stage::Stage,
    state::{Begin, CallState, DropAction, Park},
    uncounted::{Uncounted, with_waker},
};
use super::{
    admission::Admission,
    clock::Clock,
    deadline::Deadline,
    error::{CallError, CancelReason},
    metrics::{Metrics, PoolTime},
    nested::NestedWaits,
    queue_permit::{Admitted, QueuePermit},
};
use crate::{
    panic::{catch_unwind, drop_payload, ignore_panic},
    sync::{Mutex, lock},
};

/// Creates a call of `future` and queues it on the pool that has admitted it.
pub(crate) fn spawn<F>(
    admitted: Admitted,
    context: Context,
    on_caller_drop: OnCallerDrop,
    future: F,
) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let (call, runnable) = create(admitted, context, on_caller_drop, future);
    call.permit.schedule(runnable);
    // Not counted a third time: the worker may be writing to the count by now.
    Call::into_handle(call, on_caller_drop)
}

/// Like [`spawn`], but polls the call once on this thread first.
pub(crate) fn spawn_in_place<F>(
    admitted: Admitted,
    context: Context,
    on_caller_drop: OnCallerDrop,
    future: F,
) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let (call, runnable) = create(admitted, context, on_caller_drop, future);
    // The time is not busy time of the pool, so the clock is not started.
    let caller = runnable.run_without_wake(Some(&mut Clock::default()));
    debug_assert!(caller.is_none(), "no caller waits yet");
    Call::into_handle(call, on_caller_drop)
}

#[inline]
fn create<F>(admitted: Admitted, context: Context, on_caller_drop: OnCallerDrop, future: F) -> (Arc<Call<F>>, Runnable)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let Admitted { queue_permit, layer_permit, options } = admitted;
    let Context { runtime, task, trace } = context;
    let metrics = queue_permit.admission().metrics();
    let created = metrics.now();
    let deadline = metrics.pool_time(options.deadline);
    let call = Arc::new(Call {
        header: Header {
            priority: options.priority,
            key: options.key,
            runtime,
            created,
            deadline,
            is_exempt: queue_permit.is_exempt(),
            is_detached: on_caller_drop == OnCallerDrop::Detach,
            started: AtomicBool::new(false),
            waits_nested: AtomicBool::new(false),
        },
        state: CallState::scheduled(),
        permit: queue_permit,
        progress: Mutex::new(Progress {
            stage: Stage::Future(future),
            environment: Some(Environment { trace, layer_permit }),
            run_time: 0,
        }),
        task,
        woken: AtomicU64::new(0),
        left: AtomicU64::new(u64::MAX),
    });
    // Created first: if a recorder panics below, the drop of the entry releases everything.
    let runnable = Runnable::new(call.clone());
    call.permit.admission().metrics().admitted();
    (call, runnable)
}

/// The fields are in an order in which few cache lines pass between the caller and the worker:
/// those that both of them access are next to the reference counts and to the beginning of
/// `progress`.
#[repr(C)]
struct Call<F: Future> {
    state: CallState,
    /// Permit for the queue, and connection to the pool.
    permit: QueuePermit,
    header: Header,
    /// Locked by the thread that owns the future, for as long as it owns it; after completion, by
    /// the thread that takes the output. The lock is therefore never contended. It makes the
    /// compiler check what [`CallState`] guarantees.
    progress: Mutex<Progress<F>>,
    /// Task in which the call was made, if it was made in one.
    task: Option<Id>,
    /// [`PoolTime`] of the last wake-up.
    woken: AtomicU64,
    /// [`PoolTime`] at which the caller cancelled the call. Written by the caller before it sets
    /// `CANCELLED`, and not at all if it drops an unstarted call.
    left: AtomicU64,
}

#[repr(C)]
struct Progress<F: Future> {
    stage: Stage<F>,
    /// `None` once the future is dropped, so that a stale waker keeps neither a span open nor a
    /// layer's permit.
    environment: Option<Environment>,
    /// Sum of all polls, in nanoseconds.
    run_time: u64,
}

struct Environment {
    trace: Trace,
    layer_permit: Option<Arc<dyn LayerPermit>>,
}

/// Result of one poll.
enum Polled {
    Pending,
    /// The result is stored. The panic of the future's destructor, if there was one.
    Ready(Result<(), Box<dyn Any + Send>>),
    Panicked(Box<dyn Any + Send>),
}

/// Running an entry. Each function returns the waker of the caller if it has completed the call.
impl<F> Call<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    /// Takes the entry, and polls or drops the future.
    #[inline]
    fn run_with(self: &Arc<Self>, clock: &mut Clock) -> Option<CallerWaker> {
        let admission = self.permit.admission();
        self.guard(|| match self.state.begin() {
            Begin::Poll if admission.is_halted() => {
                clock.skip_call();
                self.reject(CallError::Closed)
            }
            Begin::Poll => self.start_and_poll(admission, clock),
            Begin::Drop => {
                clock.skip_call();
                self.drop_cancelled(CallError::Closed)
            }
            // This entry is the last owner of the call. Dropping the call releases the queue
            // permit.
            Begin::Nothing => None,
        })
    }

    /// Records the end of the call's wait in the queue, and polls.
    fn start_and_poll(self: &Arc<Self>, admission: &Admission, clock: &mut Clock) -> Option<CallerWaker> {
        let now = clock.start_call(admission.metrics());
        if self.header.has_started() {
            admission.metrics().resumed(now.saturating_sub(self.woken.load(Ordering::Relaxed)));
        } else {
            if self.header.deadline <= now {
                return self.expire();
            }
            self.header.started.store(true, Ordering::Relaxed);
            self.permit.on_start(admission, now.saturating_sub(self.header.created));
        }
        let mut progress = lock(&self.progress);
        let polled = self.poll_future(&mut progress);
        let ended = admission.metrics().now();
        progress.run_time = progress.run_time.saturating_add(ended.saturating_sub(now));
        let run_time = progress.run_time;
        let is_late = self.header.deadline <= ended && !self.state.is_abandoned();
        let environment = match polled {
            Polled::Ready(_) if !is_late => progress.environment.take(),
            _ => None,
        };
        drop(progress);
        if self.state.is_cancelled() {
            self.count_cancelled(ended);
        }
        // Before `park`, because another thread may own the call after that.
        self.end_nested_wait();
        if environment.is_none() {
            admission.metrics().polled();
        }
        match polled {
            Polled::Pending => match self.state.park() {
                Park::Parked => None,
                Park::Schedule => {
                    self.schedule();
                    None
                }
                Park::Cancelled => self.fail(CallFailure::Rejected(CallError::Closed)),
            },
            Polled::Ready(dropped) => {
                if let Err(payload) = dropped {
                    self.report_panic(payload);
                }
                let Some(environment) = environment else { return self.discard_late(now, ended) };
                let caller = self.complete(admission, environment, Some(run_time), true);
                // Without a caller, the output may have been dropped here, which may take long.
                if caller.is_some() {
                    clock.end_call(ended);
                }
                caller
            }
            Polled::Panicked(payload) => self.fail(CallFailure::Panicked(payload)),
        }
    }

    /// Polls the future, and drops it in its environment if it is ready.
    #[inline(never)] // Inlined, it costs 50 instructions more per call.
    fn poll_future(self: &Arc<Self>, progress: &mut Progress<F>) -> Polled {
        let Progress { stage, environment, .. } = progress;
        let entered = environment.as_ref().expect("a call has its environment until its future is dropped");
        let polled = catch_unwind(|| {
            self.enter(entered, || {
                with_waker(self, |waker| stage.poll(&mut task::Context::from_waker(waker)))
                    .map(|output| stage.store_result(Ok(output)))
            })
        });
        match polled {
            Ok(Poll::Pending) => Polled::Pending,
            Ok(Poll::Ready(())) => Polled::Ready(Ok(())),
            // The output is stored and valid: the panic is that of the future's destructor, or of a
            // subscriber afterwards.
            Err(payload) if !stage.has_future() => Polled::Ready(Err(payload)),
            Err(payload) => Polled::Panicked(payload),
        }
    }

    /// Counts the time that the poll which has `ended` ran for a caller that was gone.
    #[cold]
    fn count_cancelled(&self, ended: PoolTime) {
        let time = ended.saturating_sub(self.left.load(Ordering::Relaxed));
        if let Some(reason) = self.state.cancel_reason() {
            self.metrics().ran_cancelled(reason, time);
        }
    }

    /// Removes the record that this thread waits for another call of the pool, if there is one.
    fn end_nested_wait(self: &Arc<Self>) {
        if self.header.waits_nested.load(Ordering::Relaxed) {
            self.header.waits_nested.store(false, Ordering::Relaxed);
            self.permit.admission().nested_waits().remove(Arc::as_ptr(self).addr());
        }
    }

    /// Records that the call leaves the queue and will not be polled.
    fn leave_queue(&self) {
        if self.header.has_started() {
            self.metrics().skipped();
        } else {
            self.permit.release();
            self.metrics().passed_over();
        }
    }

    /// Fails a call that has not started at its deadline.
    #[cold]
    fn expire(self: &Arc<Self>) -> Option<CallerWaker> {
        // First, because recorders and subscribers are user code that may panic.
        self.leave_queue();
        self.end_at_deadline()
    }

    /// Fails a call because of its deadline.
    fn end_at_deadline(self: &Arc<Self>) -> Option<CallerWaker> {
        let error = CallError::DeadlineExceeded;
        // A caller that reaches the deadline first counts the rejection.
        if self.state.expire() {
            self.metrics().rejected(error);
        }
        self.fail(CallFailure::Rejected(error))
    }

    /// Fails a call whose output is there after its deadline. The poll has `started` and `ended`.
    #[cold]
    fn discard_late(self: &Arc<Self>, started: PoolTime, ended: PoolTime) -> Option<CallerWaker> {
        // Work of a detached call is never cancelled.
        if !self.header.is_detached {
            let late = ended.saturating_sub(self.header.deadline.max(started));
            self.metrics().ran_cancelled(CancelReason::DeadlineExceeded, late);
        }
        self.end_at_deadline()
    }

    /// Fails a call whose caller is waiting for it.
    fn reject(self: &Arc<Self>, error: CallError) -> Option<CallerWaker> {
        self.leave_queue();
        self.metrics().rejected(error);
        self.fail(CallFailure::Rejected(error))
    }

    /// Fails a call without counting it as rejected.
    fn drop_cancelled(self: &Arc<Self>, error: CallError) -> Option<CallerWaker> {
        self.leave_queue();
        self.fail(CallFailure::Rejected(error))
    }

    /// Drops the future in its environment and completes the call without an output.
    #[inline(never)] // Keeps it out of the path of calls that complete.
    fn fail(self: &Arc<Self>, failure: CallFailure) -> Option<CallerWaker> {
        let (environment, run_time) = {
            let mut progress = lock(&self.progress);
            let Progress { stage, environment, run_time } = &mut *progress;
            let environment = environment.take().expect("a call completes once");
            let dropped = catch_unwind(|| {
                self.enter(&environment, || {
                    if let CallFailure::Panicked(payload) = &failure {
                        self.metrics().panicked(&**payload, !self.state.is_abandoned());
                    }
                    stage.store_result(Err(failure));
                });
            });
            if let Err(payload) = dropped {
                // A subscriber that panics may have prevented the result from being stored.
                if stage.has_future() {
                    let failure = CallFailure::Rejected(CallError::Panicked);
                    ignore_panic(|| stage.store_result(Err(failure)));
                }
                self.report_panic(payload);
            }
            (environment, *run_time)
        };
        self.end_nested_wait();
        let admission = self.permit.admission();
        admission.metrics().failed();
        self.complete(admission, environment, self.header.has_started().then_some(run_time), false)
    }

    /// Completes a call whose result is stored. See [`Admission::on_complete`] for the
    /// arguments.
    ///
    /// 1. The layer's permit is released, so that the caller's next call finds it free.
    /// 2. The pool no longer counts the call as in flight.
    /// 3. The result is published.
    /// 4. If the caller has left, the output is dropped here, on the pool.
    fn complete(
        self: &Arc<Self>,
        admission: &Admission,
        environment: Environment,
        run_time: Option<u64>,
        ends_poll: bool,
    ) -> Option<CallerWaker> {
        let Environment { trace, layer_permit } = environment;
        // Wakes a caller that waits for the permit. Its waker is user code.
        if let Some(Err(payload)) = layer_permit.map(|permit| catch_unwind(|| drop(permit))) {
            self.report_panic(payload);
        }
        admission.on_complete(run_time, ends_poll);
        let (is_abandoned, caller) = self.state.complete();
        if is_abandoned {
            self.drop_output(&trace, run_time.unwrap_or_default());
        }
        // Closes the span unless it is referenced elsewhere, which runs the subscriber.
        if let Some(Err(payload)) = trace.is_enabled().then(|| catch_unwind(|| drop(trace))) {
            self.report_panic(payload);
        }
        caller
    }

    /// Drops an output that no caller takes, in the context of the work.
    fn drop_output(&self, trace: &Trace, run_time: u64) {
        let result = lock(&self.progress).stage.take_result();
        let has_output = matches!(result, Some(Ok(_)));
        let dropped = catch_unwind(|| {
            trace.enter(self.header.runtime.as_ref(), || {
                drop_result(result);
                if has_output && !self.state.is_cancelled() {
                    self.metrics().detached_ended(run_time);
                }
            });
        });
        if let Err(payload) = dropped {
            self.report_panic(payload);
        }
    }

    /// Runs one step, and completes the call if that step panics, so that its caller does not wait
    /// forever. Panics of the work are caught before: this one comes from a metrics recorder or a
    /// tracing subscriber.
    fn guard(self: &Arc<Self>, step: impl FnOnce() -> Option<CallerWaker>) -> Option<CallerWaker> {
        catch_unwind(step).unwrap_or_else(|payload| self.recover(payload))
    }

    #[cold]
    fn recover(self: &Arc<Self>, payload: Box<dyn Any + Send>) -> Option<CallerWaker> {
        if self.state.is_complete() {
            drop_payload(payload);
            return None;
        }
        let environment = {
            let mut progress = lock(&self.progress);
            ignore_panic(|| progress.stage.store_result(Err(CallFailure::Panicked(payload))));
            progress.environment.take()
        };
        ignore_panic(|| drop(environment));
        self.permit.release();
        self.metrics().failed();
        self.permit.admission().on_complete(None, false);
        let (is_abandoned, caller) = self.state.complete();
        let result = if is_abandoned { lock(&self.progress).stage.take_result() } else { None };
        ignore_panic(|| drop(result));
        caller
    }

    /// Runs `work` as part of this call, in its environment.
    fn enter<T>(self: &Arc<Self>, environment: &Environment, work: impl FnOnce() -> T) -> T {
        let Environment { trace, layer_permit } = environment;
        // SAFETY: `scope` removes it from the thread before it returns or unwinds, and `self` is
        // borrowed until then.
        #[allow(unsafe_code)]
        let call = unsafe { Uncounted::new(self) };
        let current = CurrentCall { call, layer_permit: layer_permit.clone() };
        current.scope(trace, self.header.runtime.as_ref(), work)
    }

    /// Queues the call again. Called only if [`CallState`] returned this obligation.
    fn schedule(self: &Arc<Self>) {
        let metrics = self.metrics();
        self.woken.store(metrics.now(), Ordering::Relaxed);
        metrics.woken();
        self.permit.schedule(Runnable::new(self.clone()));
    }
}

impl<F: Future> Call<F> {
    /// Returns the deadline of the caller.
    fn deadline(&self) -> Deadline {
        self.metrics().deadline(self.header.deadline)
    }

    fn metrics(&self) -> &Metrics {
        self.permit.admission().metrics()
    }

    /// Drops the future on this thread, which does not belong to the pool, and releases what the
    /// call holds.
    fn drop_future(&self) {
        let (environment, dropped) = {
            let mut progress = lock(&self.progress);
            let Progress { stage, environment, .. } = &mut *progress;
            let environment = environment.take();
            let dropped = catch_unwind(|| match &environment {
                Some(entered) => entered.trace.enter(self.header.runtime.as_ref(), || stage.clear()),
                None => stage.clear(),
            });
            (environment, dropped)
        };
        // User code: leaving the span calls the subscriber, and releasing the permit wakes the next
        // caller.
        let released = catch_unwind(|| drop(environment));
        for payload in [dropped, released].into_iter().filter_map(Result::err) {
            self.report_panic(payload);
        }
        self.metrics().failed();
        self.permit.admission().on_complete(None, false);
    }

    /// Counts and logs a panic that no caller observes.
    #[cold]
    fn report_panic(&self, payload: Box<dyn Any + Send>) {
        if let Err(second) = catch_unwind(|| self.metrics().panicked(&*payload, false)) {
            drop_payload(second); // Raised by a subscriber.
        }
        drop_payload(payload);
    }
}

impl<F> RawCall for Call<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn header(&self) -> &Header {
        &self.header
    }

    fn run(self: Arc<Self>, clock: Option<&mut Clock>) -> Option<CallerWaker> {
        match clock {
            Some(clock) => self.run_with(clock),
            None => {
                let mut clock = Clock::default();
                clock.start(self.metrics());
                let caller = self.run_with(&mut clock);
                clock.flush(self.metrics());
                caller
            }
        }
    }

    fn refuse(self: Arc<Self>, error: CallError) -> Option<CallerWaker> {
        self.guard(|| match self.state.begin() {
            Begin::Poll => self.reject(error),
            Begin::Drop => self.drop_cancelled(error),
            Begin::Nothing => None,
        })
    }

    fn created(&self) -> Instant {
        self.metrics().instant(self.header.created)
    }

    fn is_cancelled(&self) -> bool {
        self.state.is_cancelled()
    }

    fn work_deadline(&self) -> Deadline {
        if self.header.is_detached { Deadline::NONE } else { Call::deadline(self) }
    }

    fn cancel_reason(&self) -> Option<CancelReason> {
        self.state.cancel_reason().or_else(|| {
            if self.permit.admission().is_halted() {
                Some(CancelReason::Shutdown)
            } else {
                // The caller may have no timer, or a runtime that is busy.
                RawCall::work_deadline(self).has_passed().then_some(CancelReason::DeadlineExceeded)
            }
        })
    }

    fn nested_waits(&self) -> &NestedWaits {
        self.permit.admission().nested_waits()
    }
}

impl<F> Join<F::Output> for Call<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn poll_result(&self, cx: &mut task::Context<'_>, wait: &mut Wait) -> Poll<Result<F::Output, CallFailure>> {
        let is_maker = || self.task.is_some() && self.task == tokio::task::try_id();
        if self.state.poll_complete(cx, is_maker) {
            return Poll::Ready(self.take_result());
        }
        CurrentCall::wait_for_pool(
            || self.permit.admission().nested_waits(),
            std::ptr::from_ref(self).addr(),
            cx.waker(),
            wait,
        );
        Poll::Pending
    }

    fn deadline(&self) -> Deadline {
        Call::deadline(self)
    }

    fn end_wait(&self) {
        CurrentCall::end_wait(|| self.permit.admission().nested_waits(), std::ptr::from_ref(self).addr());
    }

    fn expected_wait(&self) -> Duration {
        self.permit.expected_wait()
    }

    fn drop_caller(self: Arc<Self>, on_drop: OnCallerDrop) {
        let is_first = Call::deadline(&self).has_passed() && self.state.expire();
        if !self.leave(on_drop) {
            self.metrics().abandoned(on_drop == OnCallerDrop::Detach);
            return;
        }
        let result = lock(&self.progress).stage.take_result();
        if is_first && matches!(result, Some(Err(CallFailure::Rejected(CallError::DeadlineExceeded)))) {
            self.metrics().rejected(CallError::DeadlineExceeded);
        }
        if let Err(payload) = catch_unwind(|| drop_result(result)) {
            self.report_panic(payload);
        }
    }

    fn reject_caller(self: Arc<Self>, error: CallError, on_drop: OnCallerDrop) -> Result<F::Output, CallFailure> {
        let is_first = error != CallError::DeadlineExceeded || self.state.expire();
        let result = if self.leave(on_drop) { self.take_result() } else { Err(CallFailure::Rejected(error)) };
        // A worker that was later has left the count to this thread.
        if is_first && matches!(result, Err(CallFailure::Rejected(rejected)) if rejected == error) {
            self.metrics().rejected(error);
        }
        result
    }
}

impl<F> Call<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    /// Makes the caller's handle. Called once.
    fn into_handle(self: Arc<Self>, on_caller_drop: OnCallerDrop) -> JoinHandle<F::Output> {
        let has_deadline = self.header.deadline != Deadline::NO_NANOS;
        JoinHandle::new(self, on_caller_drop, has_deadline)
    }

    /// Separates the call from its caller. Returns `true` if the call is complete: then the caller
    /// must take the result.
    fn leave(self: &Arc<Self>, on_drop: OnCallerDrop) -> bool {
        if on_drop != OnCallerDrop::Detach && self.state.has_begun() {
            self.left.store(self.metrics().now(), Ordering::Relaxed);
        }
        match self.state.drop_caller(on_drop) {
            DropAction::DropFuture => {
                self.drop_future();
                self.metrics().passed_over();
            }
            DropAction::Schedule => self.schedule(),
            DropAction::None => {}
            DropAction::DropOutput => return true,
        }
        false
    }

    /// Takes the result of a complete call. To be called once.
    fn take_result(&self) -> Result<F::Output, CallFailure> {
        let result = lock(&self.progress).stage.take_result();
        result.expect("a complete call holds its result until the caller takes it")
    }
}

impl<F> Wake for Call<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.wake() {
            self.schedule();
        }
    }
}

impl<F: Future> Drop for Call<F> {
    /// Drops the future of a detached call that nothing can wake. Every other call is complete.
    fn drop(&mut self) {
        if !self.state.is_complete() {
            self.drop_future();
        }
    }
}

/// Drops a result that no caller takes. The panic of a payload's destructor is discarded, because
/// it is not a second panic of the work; the panic of an output's destructor is passed on.
fn drop_result<T>(result: Option<Result<T, CallFailure>>) {
    match result {
        Some(Err(CallFailure::Panicked(payload))) => drop_payload(payload),
        other => drop(other),
    }
}
