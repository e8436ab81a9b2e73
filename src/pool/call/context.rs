use std::{
    cell::Cell,
    sync::{Arc, atomic::Ordering},
    task::Waker,
};

use tokio::{
    runtime::{EnterGuard, Handle, Id},
    task,
};

use super::{runnable::RawCall, uncounted::Uncounted};
use crate::pool::{deadline::Deadline, error::CancelReason, nested::NestedWaits, options::CallOptions};

thread_local! {
    /// Without a destructor, so that an access is a load or a store.
    static CURRENT: Cell<Current> = const { Cell::new(Current::NONE) };
}

/// What this thread works on. It is replaced and restored rather than set and cleared, because
/// rayon and `Inline` may run a second call on the stack of a first.
#[derive(Clone, Copy)]
struct Current {
    /// Runtime that the worker on this thread has entered for a run of calls. Empty while a call
    /// runs, because nested work must enter its own.
    entered: Option<Id>,
    /// Call that this thread polls or drops.
    call: Option<CurrentCall>,
    /// Deadline of the innermost [`Deadline::scope`] within the call. The call has one of its own.
    scope: Deadline,
}

impl Current {
    const NONE: Self = Self { entered: None, call: None, scope: Deadline::NONE };

    #[inline]
    fn get() -> Self {
        CURRENT.get()
    }

    /// Changes the state of this thread until the result is dropped.
    #[inline]
    fn change(change: impl FnOnce(&mut Self)) -> Restore {
        let before = Self::get();
        let mut current = before;
        change(&mut current);
        CURRENT.set(current);
        Restore(before)
    }

    fn set_entered(entered: Option<Id>) {
        CURRENT.set(Self { entered, ..Self::get() });
    }

    /// Returns the earlier deadline of the scope and the call.
    fn deadline(&self) -> Deadline {
        self.call.as_ref().map_or(self.scope, |current| current.call().work_deadline().earlier(self.scope))
    }
}

/// Restores the state of this thread.
struct Restore(Current);

impl Drop for Restore {
    #[inline]
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// Environment of the caller that the work runs in: tokio runtime, tracing span and dispatcher.
///
/// It is entered around each poll and around the drop of the future, and left before the thread
/// does anything else. It therefore also holds on rayon, where a thread may start a second call in
/// the middle of a first.
#[derive(Debug)]
pub(crate) struct Context {
    pub(super) runtime: Option<Handle>,
    pub(super) task: Option<task::Id>,
    pub(super) trace: Trace,
}

impl Context {
    #[inline]
    pub(crate) fn capture() -> Self {
        Self { runtime: Handle::try_current().ok(), task: task::try_id(), trace: Trace::capture() }
    }

    /// Like `capture`, for work that outlives the task that submits it and that no task awaits.
    pub(crate) fn capture_for_background() -> Self {
        Self { task: None, ..Self::capture() }
    }

    /// Captures the span, for work that runs in a runtime anyway. Returns `None` if no subscriber
    /// enables anything.
    #[cfg_attr(not(feature = "after-response"), allow(dead_code, reason = "for `after_response`"))]
    pub(crate) fn capture_trace() -> Option<Self> {
        let trace = Trace::capture();
        trace.is_enabled().then_some(Self { runtime: None, task: None, trace })
    }

    pub(crate) fn runtime(&self) -> Option<&Handle> {
        self.runtime.as_ref()
    }

    /// Removes a runtime that has shut down.
    pub(crate) fn without_runtime(self) -> Self {
        Self { runtime: None, ..self }
    }

    /// Runs `work` in the captured span. The thread is in the runtime already.
    pub(crate) fn enter_trace<T>(&self, work: impl FnOnce() -> T) -> T {
        self.trace.enter(None, work)
    }
}

/// The part of a context that is dropped with the future, because a span stays open as long as it
/// is referenced.
#[derive(Debug)]
pub(super) struct Trace {
    /// `None` if no subscriber enables anything.
    #[cfg(feature = "tracing")]
    subscriber: Option<Subscriber>,
}

#[cfg(feature = "tracing")]
#[derive(Debug)]
struct Subscriber {
    span: tracing::Span,
    /// `None` without a subscriber: a scoped dispatcher slows tracing down in the whole process.
    dispatch: Option<tracing::Dispatch>,
}

impl Trace {
    #[inline]
    pub(super) fn none() -> Self {
        Self {
            #[cfg(feature = "tracing")]
            subscriber: None,
        }
    }

    #[inline]
    fn capture() -> Self {
        Self {
            #[cfg(feature = "tracing")]
            subscriber: (tracing::level_filters::LevelFilter::current() != tracing::level_filters::LevelFilter::OFF)
                .then(Subscriber::capture),
        }
    }

    /// Takes the span. Copies nothing if there is none.
    #[inline]
    pub(super) fn take(&mut self) -> Self {
        Self {
            #[cfg(feature = "tracing")]
            subscriber: if self.subscriber.is_some() { self.subscriber.take() } else { None },
        }
    }

    #[inline]
    pub(super) fn is_enabled(&self) -> bool {
        #[cfg(feature = "tracing")]
        return self.subscriber.is_some();
        #[cfg(not(feature = "tracing"))]
        return false;
    }

    /// Runs `work` in `runtime` and in this span.
    pub(super) fn enter<T>(&self, runtime: Option<&Handle>, work: impl FnOnce() -> T) -> T {
        let before = Current::change(|current| current.entered = None);
        self.enter_from(before.0.entered, runtime, work)
    }

    /// Like `enter`, on a thread that has entered `entered`.
    #[inline]
    fn enter_from<T>(&self, entered: Option<Id>, runtime: Option<&Handle>, work: impl FnOnce() -> T) -> T {
        let _runtime = runtime.filter(|runtime| entered != Some(runtime.id())).map(Handle::enter);
        #[cfg(feature = "tracing")]
        if let Some(Subscriber { span, dispatch }) = &self.subscriber {
            let _dispatch = dispatch.as_ref().map(tracing::dispatcher::set_default);
            let _span = span.enter();
            return work();
        }
        work()
    }
}

#[cfg(feature = "tracing")]
impl Subscriber {
    #[inline(never)]
    fn capture() -> Self {
        Self {
            span: tracing::Span::current(),
            dispatch: tracing::dispatcher::get_default(|dispatch| {
                (!dispatch.is::<tracing::subscriber::NoSubscriber>()).then(|| dispatch.clone())
            }),
        }
    }
}

/// Enters a runtime once for many calls in a row. Entering it for each call would twice change a
/// counter that all threads of the runtime share.
#[derive(Debug)]
pub(crate) struct RuntimeGuard<'a> {
    runtime: Option<Id>,
    _guard: Option<EnterGuard<'a>>,
}

impl<'a> RuntimeGuard<'a> {
    pub(crate) fn enter(runtime: Option<&'a Handle>) -> Self {
        let id = runtime.map(Handle::id);
        let guard = runtime.map(Handle::enter);
        Current::set_entered(id);
        Self { runtime: id, _guard: guard }
    }

    /// Returns `true` if calls made in `runtime` can run under this guard.
    pub(crate) fn covers(&self, runtime: Option<&Handle>) -> bool {
        self.runtime == runtime.map(Handle::id)
    }
}

impl Drop for RuntimeGuard<'_> {
    fn drop(&mut self) {
        Current::set_entered(None);
    }
}

/// The call that a thread is running, as its work can see it.
#[derive(Clone, Copy)]
pub(crate) struct CurrentCall(pub(super) Uncounted);

/// How the caller of a call waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// The thread does not work on a call of the same pool.
    Ordinary,
    /// It does, so that [`CurrentCall::end_wait`] must be called when the wait ends.
    Nested,
    /// The thread must not wait, because all threads of the pool wait like this one, in calls of
    /// the same pool.
    Deadlocked,
}

/// Permit of a layer that limits its calls in flight. The call holds it until its work ends.
pub(crate) trait LayerPermit: Send + Sync + 'static {
    /// Returns the address of the state of the layer that issued the permit.
    fn layer(&self) -> usize;
    /// Returns the permit of the call within which this call was made.
    fn outer(&self) -> Option<&Arc<dyn LayerPermit>>;
}

impl CurrentCall {
    /// Returns the innermost layer permit of the call that this thread works on.
    #[inline]
    pub(crate) fn layer_permit() -> Option<Arc<dyn LayerPermit>> {
        Current::get().call?.0.layer_permit().cloned()
    }

    /// Returns the call that this thread works on.
    pub(in crate::pool) fn get() -> Option<Arc<dyn RawCall>> {
        Some(Current::get().call?.0.counted())
    }

    /// Adds to `options` the deadline of this thread. Also returns the innermost layer permit of
    /// the call that it works on.
    #[inline]
    pub(crate) fn inherit(options: CallOptions) -> (CallOptions, Option<Arc<dyn LayerPermit>>) {
        let Current { call, scope, .. } = Current::get();
        // Most threads that make calls work on none and are in no scope.
        if call.is_none() && scope == Deadline::NONE {
            return (options, None);
        }
        let (deadline, layer_permit) = Self::deadline_and_permit();
        (options.deadline(deadline), layer_permit)
    }

    #[inline(never)] // Keeps it out of the path of other calls.
    fn deadline_and_permit() -> (Deadline, Option<Arc<dyn LayerPermit>>) {
        (Current::get().deadline(), Self::layer_permit())
    }

    /// Returns the deadline of this thread.
    pub(in crate::pool) fn deadline() -> Deadline {
        Current::get().deadline()
    }

    /// Returns the deadline of the scope that this thread is in.
    pub(in crate::pool) fn scope_deadline() -> Deadline {
        Current::get().scope
    }

    /// Runs `work` with this deadline, unless the one of an enclosing scope is earlier.
    pub(in crate::pool) fn in_scope<T>(deadline: Deadline, work: impl FnOnce() -> T) -> T {
        let _outer = Current::change(|current| current.scope = current.scope.earlier(deadline));
        work()
    }

    /// Returns why the call that this thread works on is no longer wanted, if it is not.
    pub(in crate::pool) fn cancel_reason() -> Option<CancelReason> {
        let Current { call, scope, .. } = Current::get();
        let reason = call.and_then(|current| current.call().cancel_reason());
        reason.or_else(|| scope.has_passed().then_some(CancelReason::DeadlineExceeded))
    }

    /// Called when this thread is about to wait for the call at the address `inner`, of `pool`.
    /// Sets `wait` if the wait is nested; [`end_wait`](Self::end_wait) must be called when it ends.
    #[inline]
    pub(super) fn wait_for_pool<'a>(
        pool: impl FnOnce() -> &'a NestedWaits,
        inner: usize,
        waker: &Waker,
        wait: &mut Wait,
    ) {
        if let Some(current) = Self::of(pool) {
            Self::wait_nested(current.call(), inner, waker.clone(), wait);
        }
    }

    /// Called when this thread stops waiting for the call at the address `inner`, of `pool`.
    #[cold]
    pub(super) fn end_wait<'a>(pool: impl FnOnce() -> &'a NestedWaits, inner: usize) {
        if let Some(current) = Self::of(pool) {
            let call = current.call();
            call.nested_waits().end_wait(std::ptr::from_ref(call).addr(), inner);
        }
    }

    /// Returns the call that this thread works on, if it is a call of this pool.
    #[inline]
    fn of<'a>(pool: impl FnOnce() -> &'a NestedWaits) -> Option<Self> {
        Current::get().call.filter(|current| std::ptr::eq(current.call().nested_waits(), pool()))
    }

    #[cold]
    fn wait_nested(call: &dyn RawCall, inner: usize, waker: Waker, wait: &mut Wait) {
        call.header().waits_nested.store(true, Ordering::Relaxed);
        let is_deadlocked = call.nested_waits().wait(std::ptr::from_ref(call).addr(), inner, waker);
        *wait = if is_deadlocked { Wait::Deadlocked } else { Wait::Nested };
    }

    /// Runs `work` as part of this call, in `runtime` and in the span of `trace`.
    #[inline]
    pub(super) fn scope<T>(self, trace: &Trace, runtime: Option<&Handle>, work: impl FnOnce() -> T) -> T {
        let before = Current::change(|current| *current = Current { call: Some(self), ..Current::NONE });
        trace.enter_from(before.0.entered, runtime, work)
    }

    #[inline]
    fn call(&self) -> &dyn RawCall {
        self.0.call()
    }
}
