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
mod exclusive;
mod join;
#[cfg(all(test, tower_offload_loom))]
mod loom;
mod run;
mod runnable;
mod stage;
mod state;
#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
mod timer;
mod uncounted;

use std::{
    any::Any,
    mem::{self, MaybeUninit},
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
    exclusive::Exclusive,
    join::Join,
    runnable::Header,
    stage::Stage,
    state::{Begin, CallState, DropAction},
};
use super::{
    clock::Clock,
    deadline::Deadline,
    error::{CallError, CancelReason},
    metrics::Metrics,
    nested::NestedWaits,
    queue_permit::{Admitted, QueuePermit},
    time,
};
use crate::panic::{catch_unwind, drop_payload};

/// Creates a call of `future` and queues it on the pool that has admitted it.
#[inline(always)]
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
    create(admitted, context, on_caller_drop, future, |permit, runnable| permit.schedule(runnable))
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
    create(admitted, context, on_caller_drop, future, |_, runnable| {
        // The time is not busy time of the pool, so the clock is not started.
        let caller = runnable.run_without_wake(Some(&mut Clock::default()));
        debug_assert!(caller.is_none(), "no caller waits yet");
    })
}

/// Creates a call, calls `start` with its first entry, and returns the caller's handle.
#[inline(always)] // So that the parts of the call are not copied on their way.
fn create<F>(
    admitted: Admitted,
    context: Context,
    on_caller_drop: OnCallerDrop,
    future: F,
    start: impl FnOnce(&QueuePermit, Runnable),
) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let options = admitted.options;
    let created = time::now();
    let call = Arc::new(MaybeUninit::<Call<F>>::uninit());
    let slot = Arc::as_ptr(&call).cast_mut().cast::<Call<F>>();
    // Each field is moved where it stays, and the span only if there is one. A call that is built
    // as a whole is copied several times.
    //
    // SAFETY: There is no other reference to the allocation. Every field is written once, and
    // nothing between the first one and `assume_init` can panic.
    #[allow(unsafe_code)]
    let call = unsafe {
        (&raw mut (*slot).state).write(CallState::scheduled());
        (&raw mut (*slot).header).write(Header {
            priority: options.priority,
            key: options.key,
            runtime: context.runtime,
            created,
            deadline: options.deadline,
            is_exempt: admitted.queue_permit.is_exempt(),
            is_detached: on_caller_drop == OnCallerDrop::Detach,
            started: AtomicBool::new(false),
            waits_nested: AtomicBool::new(false),
        });
        (&raw mut (*slot).permit).write(admitted.queue_permit);
        let progress = Exclusive::init(&raw mut (*slot).progress);
        (&raw mut (*progress).stage).write(Stage::Future(future));
        (&raw mut (*progress).environment.layer_permit).write(admitted.layer_permit);
        if context.trace.is_enabled() {
            (&raw mut (*progress).environment.trace).write(context.trace);
        } else {
            (&raw mut (*progress).environment.trace).write(Trace::none());
            mem::forget(context.trace); // Like in `complete`.
        }
        (&raw mut (*progress).run_time).write(0);
        (&raw mut (*slot).task).write(context.task);
        (&raw mut (*slot).woken).write(AtomicU64::new(0));
        (&raw mut (*slot).left).write(AtomicU64::new(u64::MAX));
        call.assume_init()
    };
    // Created first: if a recorder panics below, the drop of the entry releases everything.
    let runnable = Runnable::new(call.clone());
    call.permit.admission().metrics().admitted();
    start(&call.permit, runnable);
    let has_deadline = options.deadline != Deadline::NONE;
    // The reference becomes the handle's. To count it a third time would take the count from the
    // worker, which may be writing to it by now.
    //
    // SAFETY: The call was created here, and this is its only handle.
    #[allow(unsafe_code)]
    unsafe {
        JoinHandle::new(call, on_caller_drop, has_deadline)
    }
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
    /// the thread that takes the output. [`CallState`] says which thread that is.
    progress: Exclusive<Progress<F>>,
    /// Task in which the call was made, if it was made in one.
    task: Option<Id>,
    /// Time of the last wake-up.
    woken: AtomicU64,
    /// Time at which the caller cancelled the call. Written by the caller before it sets
    /// `CANCELLED`, and not at all if it drops an unstarted call.
    left: AtomicU64,
}

#[repr(C)]
struct Progress<F: Future> {
    stage: Stage<F>,
    /// Empty once the future is dropped, so that a stale waker keeps neither a span open nor a
    /// layer's permit.
    environment: Environment,
    /// Sum of all polls, in nanoseconds.
    run_time: u64,
}

struct Environment {
    trace: Trace,
    layer_permit: Option<Arc<dyn LayerPermit>>,
}

impl Environment {
    #[inline]
    fn take(&mut self) -> Self {
        Self { trace: self.trace.take(), layer_permit: self.layer_permit.take() }
    }
}

impl<F: Future> Call<F> {
    fn metrics(&self) -> &Metrics {
        self.permit.admission().metrics()
    }

    /// Drops the future on this thread, which does not belong to the pool, and releases what the
    /// call holds.
    fn drop_future(&self) {
        let (environment, dropped) = {
            let mut progress = self.progress.lock();
            let Progress { stage, environment, .. } = &mut *progress;
            let environment = environment.take();
            let dropped = catch_unwind(|| environment.trace.enter(self.header.runtime.as_ref(), || stage.clear()));
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
            Begin::Expire => self.expire(),
            Begin::Drop => self.drop_cancelled(error),
            Begin::Nothing => None,
        })
    }

    fn created(&self) -> Instant {
        time::instant(self.header.created)
    }

    fn is_cancelled(&self) -> bool {
        self.state.is_cancelled()
    }

    fn work_deadline(&self) -> Deadline {
        if self.header.is_detached { Deadline::NONE } else { self.header.deadline }
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
    #[allow(unsafe_code)]
    unsafe fn poll_result(&self, cx: &mut task::Context<'_>, wait: &mut Wait) -> Poll<Result<F::Output, CallFailure>> {
        let is_maker = || self.task.is_some() && self.task == tokio::task::try_id();
        // SAFETY: That is the contract of this method as well.
        if unsafe { self.state.poll_complete(cx, is_maker) } {
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
        self.header.deadline
    }

    fn release(self: Arc<Self>) {}

    fn end_wait(&self) {
        CurrentCall::end_wait(|| self.permit.admission().nested_waits(), std::ptr::from_ref(self).addr());
    }

    fn expected_wait(&self) -> Duration {
        self.permit.expected_wait()
    }

    fn drop_caller(self: Arc<Self>, on_drop: OnCallerDrop) {
        // A detached call may still start, so the worker decides whether it expires.
        let is_first = on_drop != OnCallerDrop::Detach && self.header.deadline.has_passed() && self.state.expire();
        if !self.leave(on_drop) {
            self.metrics().abandoned(on_drop == OnCallerDrop::Detach);
            return;
        }
        let result = self.progress.lock().stage.take_result();
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
    /// Separates the call from its caller. Returns `true` if the call is complete: then the caller
    /// must take the result.
    fn leave(self: &Arc<Self>, on_drop: OnCallerDrop) -> bool {
        if on_drop != OnCallerDrop::Detach && self.state.has_begun() {
            self.left.store(time::now(), Ordering::Relaxed);
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
        let result = self.progress.lock().stage.take_result();
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
