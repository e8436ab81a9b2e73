use std::{
    cell::{Cell, RefCell},
    sync::{Arc, atomic::Ordering},
    task::Waker,
};

use tokio::{
    runtime::{EnterGuard, Handle, Id},
    task,
};

use super::runnable::RawCall;
use crate::pool::nested::NestedWaits;

thread_local! {
    /// Runtime that the worker on this thread has entered for a run of calls. Empty while a call
    /// runs, because nested work (rayon and `Inline` run calls within calls) must enter its own.
    static ENTERED: Cell<Option<Id>> = const { Cell::new(None) };

    /// Call that this thread polls or drops. It is replaced and restored rather than set and
    /// cleared, because rayon and `Inline` may run a second call on the stack of a first.
    static CURRENT: RefCell<Option<CurrentCall>> = const { RefCell::new(None) };
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
    pub(crate) fn capture() -> Self {
        Self { runtime: Handle::try_current().ok(), task: task::try_id(), trace: Trace::capture() }
    }

    /// Like `capture`, for work that outlives the task that submits it and that no task awaits.
    pub(crate) fn capture_for_background() -> Self {
        Self { task: None, ..Self::capture() }
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
    #[cfg(feature = "tracing")]
    span: tracing::Span,
    /// `None` without a subscriber: a scoped dispatcher slows tracing down in the whole process.
    #[cfg(feature = "tracing")]
    dispatch: Option<tracing::Dispatch>,
}

impl Trace {
    fn capture() -> Self {
        Self {
            #[cfg(feature = "tracing")]
            span: tracing::Span::current(),
            #[cfg(feature = "tracing")]
            dispatch: tracing::dispatcher::get_default(|dispatch| {
                (!dispatch.is::<tracing::subscriber::NoSubscriber>()).then(|| dispatch.clone())
            }),
        }
    }

    /// Runs `work` in `runtime` and in this span.
    pub(super) fn enter<T>(&self, runtime: Option<&Handle>, work: impl FnOnce() -> T) -> T {
        let entered = ENTERED.take();
        let _restore = RestoreEntered(entered);
        let _runtime = runtime.filter(|runtime| entered != Some(runtime.id())).map(Handle::enter);
        #[cfg(feature = "tracing")]
        let _dispatch = self.dispatch.as_ref().map(tracing::dispatcher::set_default);
        #[cfg(feature = "tracing")]
        let _span = self.span.enter();
        work()
    }
}

struct RestoreEntered(Option<Id>);

impl Drop for RestoreEntered {
    fn drop(&mut self) {
        ENTERED.set(self.0);
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
        ENTERED.set(id);
        Self { runtime: id, _guard: guard }
    }

    /// Returns `true` if calls made in `runtime` can run under this guard.
    pub(crate) fn covers(&self, runtime: Option<&Handle>) -> bool {
        self.runtime == runtime.map(Handle::id)
    }
}

impl Drop for RuntimeGuard<'_> {
    fn drop(&mut self) {
        ENTERED.set(None);
    }
}

/// The call that a thread is running, as its work can see it.
pub(crate) struct CurrentCall {
    pub(super) call: Arc<dyn RawCall>,
    pub(super) layer_permit: Option<Arc<dyn LayerPermit>>,
}

/// Result of [`CurrentCall::wait_for_pool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// The thread does not work on a call of the same pool.
    Ordinary,
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
    pub(crate) fn layer_permit() -> Option<Arc<dyn LayerPermit>> {
        CURRENT.try_with(|current| current.borrow().as_ref()?.layer_permit.clone()).ok().flatten()
    }

    /// Returns the call that this thread works on.
    pub(in crate::pool) fn get() -> Option<Arc<dyn RawCall>> {
        CURRENT.try_with(|current| Some(current.borrow().as_ref()?.call.clone())).ok().flatten()
    }

    /// Returns `true` if this thread works on a call that is no longer wanted.
    pub(in crate::pool) fn is_unwanted() -> bool {
        CURRENT
            .try_with(|current| current.borrow().as_ref().is_some_and(|current| current.call.is_unwanted()))
            .unwrap_or(false)
    }

    /// Called when this thread is about to wait for the call at the address `inner`, of `pool`. If
    /// the wait is nested, [`end_wait`](Self::end_wait) must be called when it ends.
    pub(super) fn wait_for_pool(pool: &NestedWaits, inner: usize, waker: &Waker) -> Wait {
        if Self::is_of(pool) { Self::wait_nested(pool, inner, waker.clone()) } else { Wait::Ordinary }
    }

    /// Called when this thread stops waiting for the call at the address `inner`, of `pool`.
    #[cold]
    pub(super) fn end_wait(pool: &NestedWaits, inner: usize) {
        if Self::is_of(pool) {
            if let Some(call) = Self::get() {
                pool.end_wait(Arc::as_ptr(&call).addr(), inner);
            }
        }
    }

    /// Returns `true` if this thread works on a call of this pool.
    fn is_of(pool: &NestedWaits) -> bool {
        let is_of = CURRENT.try_with(|current| {
            current.borrow().as_ref().is_some_and(|current| std::ptr::eq(current.call.nested_waits(), pool))
        });
        is_of == Ok(true)
    }

    #[cold]
    fn wait_nested(pool: &NestedWaits, inner: usize, waker: Waker) -> Wait {
        let Some(call) = Self::get() else { return Wait::Ordinary };
        call.header().waits_nested.store(true, Ordering::Relaxed);
        if pool.wait(Arc::as_ptr(&call).addr(), inner, waker) { Wait::Deadlocked } else { Wait::Nested }
    }

    /// Runs `work` as part of this call.
    pub(super) fn scope<T>(self, work: impl FnOnce() -> T) -> T {
        let _restore = RestoreCurrent(replace(Some(self)));
        work()
    }
}

struct RestoreCurrent(Option<CurrentCall>);

impl Drop for RestoreCurrent {
    fn drop(&mut self) {
        drop(replace(self.0.take()));
    }
}

fn replace(current: Option<CurrentCall>) -> Option<CurrentCall> {
    CURRENT.try_with(|slot| slot.replace(current)).ok().flatten()
}
