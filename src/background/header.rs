use std::{
    borrow::Cow,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Wake, Waker},
};

use tokio::task::AbortHandle;

use super::completion::{Completion, CompletionFn, run_callback};
use crate::{
    panic::ignore_panic,
    pool::{CallError, call::JoinHandle},
    sync::{AtomicBool, AtomicU8, Mutex, Ordering::SeqCst, lock},
};

/// The shared part of a task: its identity, its completion, and the means to abort it.
///
/// The work itself is elsewhere: in the queue, on the pool or on a runtime.
pub(super) struct TaskHeader {
    pub(super) id: u64,
    /// Empty if the task has no name.
    pub(super) name: Cow<'static, str>,
    abort: AbortSlot<AbortAction>,
    claim: CompletionClaim,
    /// Set when the work has ended, before its `RuntimeWatch` is aborted. The call on
    /// the pool ends later, and must not be dropped in between.
    has_ended: AtomicBool,
    /// Stored before the work is queued; taken by the first call of [`complete`](Self::complete).
    on_completion: Mutex<Option<CompletionFn>>,
    /// The error with which the pool refused the task. Set before the work is dropped.
    pub(super) refusal: OnceLock<CallError>,
}

impl TaskHeader {
    pub(super) fn new(id: u64, name: Cow<'static, str>) -> Self {
        Self {
            id,
            name,
            abort: AbortSlot::new(),
            claim: CompletionClaim::new(),
            has_ended: AtomicBool::new(false),
            on_completion: Mutex::new(None),
            refusal: OnceLock::new(),
        }
    }

    /// Returns the name of the task, unless it has none.
    pub(super) fn name(&self) -> Option<&str> {
        Some(&*self.name).filter(|name| !name.is_empty())
    }

    /// Records that the code of the task begins. Returns `false` if the timer has ended the task
    /// before, so that its code must not run.
    pub(super) fn begin(&self) -> bool {
        self.claim.begin()
    }

    /// Claims the completion for the task or its timer. Returns `None` if the other one was first.
    pub(super) fn claim_completion(&self) -> Option<Claimed> {
        self.claim.claim()
    }

    pub(super) fn set_on_completion(&self, callback: CompletionFn) {
        *lock(&self.on_completion) = Some(callback);
    }

    /// Runs the completion callback, if there is one. Later calls have no effect.
    pub(super) fn complete(&self, completion: Completion) {
        let callback = lock(&self.on_completion).take();
        if let Some(callback) = callback {
            run_callback(callback, completion);
        }
    }

    /// Returns `true` if the task has a completion callback that has not run.
    pub(super) fn has_callback(&self) -> bool {
        lock(&self.on_completion).is_some()
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.abort.is_cancelled()
    }

    /// Records the cancellation of a task that must not start. The caller that cancelled it calls
    /// [`cancel`](Self::cancel) concurrently.
    pub(super) fn mark_cancelled(&self) {
        self.abort.mark_cancelled();
    }

    /// Aborts the task at once if it is on a pool or runtime, otherwise when it arrives there.
    pub(super) fn cancel(&self) {
        abort(self.abort.cancel());
    }

    /// Records that the work has ended, so that [`release`](Self::release) has no effect.
    pub(super) fn set_ended(&self) {
        self.has_ended.store(true, SeqCst);
    }

    /// Aborts the task without cancelling it: a task on the pool is lost, unless it has ended.
    pub(super) fn release(&self) {
        if !self.has_ended.load(SeqCst) {
            abort(self.abort.take());
        }
    }

    /// Records that the task is on the pool, and no longer on a runtime.
    pub(super) fn set_pool_handle(self: &Arc<Self>, mut handle: JoinHandle<()>) {
        // Dropping the handle of an unfinished call cancels that call. The call holds this header
        // as its waker until it has finished, so the handle lives at least as long as the call.
        let waker = Waker::from(self.clone());
        if Pin::new(&mut handle).poll(&mut Context::from_waker(&waker)).is_pending() {
            abort(self.abort.replace(AbortAction::Pool(handle)));
        }
    }

    /// Records that the task was spawned on a runtime. Has no effect if the runtime shut down and
    /// the task has already moved to the pool.
    pub(super) fn set_runtime_handle(&self, task: AbortHandle) {
        abort(self.abort.set_if_empty(AbortAction::Runtime(task)));
    }
}

impl Wake for TaskHeader {
    /// Releases the action once the call on the pool has finished: this header is the waker of that
    /// call.
    fn wake(self: Arc<Self>) {
        drop(self.abort.take());
    }
}

/// The right to report how a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claimed {
    /// `true` if the code of the task has begun. Otherwise it never begins.
    pub(super) has_begun: bool,
}

/// The code of the task has begun. Set once, unless [`CLAIMED`] is set before.
const BEGUN: u8 = 1;
/// The task or its timer reports how the task ended. Set once.
const CLAIMED: u8 = 1 << 1;

/// Decides between a task and its timer: which of them reports how the task ended, and whether the
/// code of a task that timed out runs at all.
///
/// Bits are set and never cleared, so all calls agree on one order: a timer either finds that the
/// code has begun, or the code finds that it must not begin.
struct CompletionClaim(AtomicU8);

impl CompletionClaim {
    fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    fn begin(&self) -> bool {
        self.0.fetch_or(BEGUN, SeqCst) & CLAIMED == 0
    }

    fn claim(&self) -> Option<Claimed> {
        let before = self.0.fetch_or(CLAIMED, SeqCst);
        (before & CLAIMED == 0).then_some(Claimed { has_begun: before & BEGUN != 0 })
    }
}

/// How to abort a task at its current location.
enum AbortAction {
    Runtime(AbortHandle),
    /// Dropping the handle drops a future on the pool, and makes `cancelled()` return `true` in a
    /// closure.
    Pool(#[expect(dead_code, reason = "held for its drop")] JoinHandle<()>),
}

fn abort(action: Option<AbortAction>) {
    // Both actions may drop the user's future.
    ignore_panic(|| match action {
        Some(AbortAction::Runtime(task)) => task.abort(),
        Some(AbortAction::Pool(_)) | None => {}
    });
}

/// A cancellation flag, and the action that aborts a task at its current location.
///
/// One thread cancels the task while another one moves it; either may come first. Each method
/// returns the action that its caller must perform, outside the lock, because it may drop the work.
///
/// # Protocol
///
/// The canceller sets `is_cancelled` and then takes the action. The mover stores the action and
/// then reads `is_cancelled`. At least one of them sees the other's write, and the lock hands the
/// action to exactly one of them.
struct AbortSlot<A> {
    /// Never cleared.
    is_cancelled: AtomicBool,
    /// `None` before the task is on a pool or runtime, and after the action was taken.
    action: Mutex<Option<A>>,
}

impl<A> AbortSlot<A> {
    fn new() -> Self {
        Self { is_cancelled: AtomicBool::new(false), action: Mutex::new(None) }
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(SeqCst)
    }

    fn mark_cancelled(&self) {
        self.is_cancelled.store(true, SeqCst);
    }

    #[must_use = "the action is to be performed"]
    fn cancel(&self) -> Option<A> {
        self.mark_cancelled();
        self.take()
    }

    /// Stores the action for the task's new location. The previous action is dropped, because it
    /// can no longer abort the task.
    #[must_use = "the action is to be performed"]
    fn replace(&self, action: A) -> Option<A> {
        let previous = lock(&self.action).replace(action);
        drop(previous);
        self.take_if_cancelled()
    }

    /// Stores the action for the location to which the task was sent, unless the task has already
    /// moved from there and stored another action.
    #[must_use = "the action is to be performed"]
    fn set_if_empty(&self, action: A) -> Option<A> {
        let mut current = lock(&self.action);
        if current.is_none() {
            *current = Some(action);
        }
        drop(current);
        self.take_if_cancelled()
    }

    fn take(&self) -> Option<A> {
        lock(&self.action).take()
    }

    fn take_if_cancelled(&self) -> Option<A> {
        if self.is_cancelled() { self.take() } else { None }
    }
}

#[cfg(all(test, tower_offload_loom))]
mod loom;
