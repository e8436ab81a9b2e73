use std::{
    borrow::Cow,
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    BackgroundStats, Completion, SubmitError, TaskFailure,
    drain::DrainCount,
    error::Cause,
    header::TaskHeader,
    metrics,
    run::QueuedTask,
    sequence::SequenceKey,
    state::{Admit, Cancel, Halt, Limits, State},
};
use crate::panic::ignore_panic;
use crate::{
    pool::Pool,
    sync::{Mutex, Padded, lock},
};

const FIRST_ID: u64 = 1;

/// The callback that receives failures.
pub(super) type FailureFn = Arc<dyn Fn(&TaskFailure) + Send + Sync>;

/// The [`State`] behind its lock, and the user code around it: work, callbacks and the pool.
///
/// No user code runs while the lock is held.
pub(super) struct Shared {
    pub(super) pool: Arc<dyn Pool>,
    on_failure: Option<FailureFn>,
    pub(super) blocking_threshold: Duration,
    /// Total number of polls on a runtime that took longer than `blocking_threshold`.
    blocked_polls: AtomicU64,
    next_id: AtomicU64,
    state: Mutex<State<QueuedTask, Arc<TaskHeader>>>,
    drain_guards: Padded<DrainCount>,
    /// Notified when a closed background becomes idle.
    idle: Notify,
}

impl Shared {
    pub(super) fn new(
        pool: Arc<dyn Pool>,
        on_failure: Option<FailureFn>,
        blocking_threshold: Duration,
        limits: Limits,
    ) -> Self {
        metrics::register();
        Self {
            pool,
            on_failure,
            blocking_threshold,
            blocked_polls: AtomicU64::new(0),
            next_id: AtomicU64::new(FIRST_ID),
            state: Mutex::new(State::new(limits)),
            drain_guards: Padded(DrainCount::new()),
            idle: Notify::new(),
        }
    }

    pub(super) fn reserve(
        &self,
        name: Cow<'static, str>,
        awaits_response: bool,
        sequence: Option<SequenceKey>,
    ) -> Result<Arc<TaskHeader>, SubmitError> {
        let id = self.next_id.fetch_add(1, Relaxed);
        if id == FIRST_ID {
            metrics::register(); // again, for a recorder installed after the background was built
        }
        let header = Arc::new(TaskHeader::new(id, name));
        let admit = Admit { is_nested: runs_task_of(self), awaits_response, sequence };
        let reserved = lock(&self.state).reserve(id, header.clone(), admit, Instant::now());
        reserved.inspect_err(|error| report_rejected(&header, *error))?;
        Ok(header)
    }

    /// Adds a reserved task to a sequence. Removes it if the sequence is full.
    pub(super) fn join_sequence(&self, header: &TaskHeader, key: SequenceKey) -> Result<(), SubmitError> {
        let joined = self.release(|state| state.join(header.id, key));
        joined.inspect_err(|error| report_rejected(header, *error))
    }

    /// Records that the response that a task waited for has ended.
    #[cfg_attr(not(feature = "after-response"), allow(dead_code, reason = "for `after_response`"))]
    pub(super) fn end_response(&self, id: u64) {
        lock(&self.state).end_response(id);
    }

    pub(super) fn enqueue(self: &Arc<Self>, task: QueuedTask) {
        let id = task.header.id;
        let enqueued = lock(&self.state).enqueue(id, task, Instant::now());
        match enqueued {
            Ok(()) => self.dispatch(),
            Err(cancelled) => {
                metrics::ended(&cancelled.header, Completion::Cancelled, None);
                drop_cancelled(cancelled);
            }
        }
    }

    /// Starts queued tasks as long as there are permits.
    ///
    /// A pool may run or refuse a task within `start`, and the end of that task dispatches again.
    /// The inner call then returns at once and leaves the work to this loop, so that a queue of
    /// such tasks does not recurse.
    fn dispatch(self: &Arc<Self>) {
        let Some(_dispatching) = enter_dispatch(self) else { return };
        loop {
            let next = lock(&self.state).dispatch();
            let Some(task) = next else { return };
            // If the pool panics, unwinding drops the task, which completes it.
            ignore_panic(|| task.start(self));
        }
    }

    pub(super) fn start(&self, id: u64, now: Instant) -> Option<Instant> {
        lock(&self.state).start(id, now)
    }

    pub(super) fn finish(self: &Arc<Self>, id: u64, completion: Completion) {
        self.release(|state| state.finish(id, completion));
        self.dispatch();
    }

    /// Skips a reservation. Returns `false` if it was already cancelled.
    pub(super) fn skip(&self, id: u64) -> bool {
        self.release(|state| state.skip(id))
    }

    /// Cancels a task. Returns `false` if it is complete.
    pub(super) fn cancel(&self, id: u64) -> bool {
        match self.release(|state| state.cancel(id)) {
            Cancel::Complete => return false,
            Cancel::Removed { work: Some(task) } => {
                metrics::ended(&task.header, Completion::Cancelled, None);
                drop_cancelled(task);
            }
            Cancel::Removed { work: None } => {}
            Cancel::Abort(header) => header.cancel(),
        }
        true
    }

    pub(super) fn cancel_named(&self, name: &str) -> usize {
        if name.is_empty() {
            return 0; // tasks without a name have nothing in common
        }
        let ids = lock(&self.state).find(|header| header.name == name);
        ids.into_iter().filter(|id| self.cancel(*id)).count()
    }

    pub(super) fn close(&self) {
        self.begin_shutdown();
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.state).is_closed()
    }

    pub(super) fn stats(&self) -> BackgroundStats {
        BackgroundStats { blocked_polls: self.blocked_polls.load(Relaxed), ..lock(&self.state).stats() }
    }

    pub(super) fn count_blocked_poll(&self) {
        self.blocked_polls.fetch_add(1, Relaxed);
    }

    pub(super) fn add_drain_guard(&self) {
        self.drain_guards.acquire();
    }

    pub(super) fn remove_drain_guard(&self) {
        if self.drain_guards.release() {
            self.idle.notify_waiters();
        }
    }

    /// Closes the state. Returns the counters at that moment.
    pub(super) fn begin_shutdown(&self) -> BackgroundStats {
        self.drain_guards.close();
        let mut state = lock(&self.state);
        state.close();
        state.stats()
    }

    /// Halts the state. The counters are read under the same lock, so that each task is either
    /// counted in them or still running.
    pub(super) fn halt(&self) -> (Halt<QueuedTask, Arc<TaskHeader>>, BackgroundStats) {
        self.release(|state| (state.halt(), state.stats()))
    }

    pub(super) async fn wait_until_idle(&self) {
        loop {
            let idle = self.idle.notified(); // before the check, so that no notification is lost in between
            if self.is_idle(&lock(&self.state)) {
                return;
            }
            idle.await;
        }
    }

    pub(super) fn report_failure(&self, header: &TaskHeader, cause: Cause) {
        let failure = TaskFailure::new(header.id, header.name.clone(), cause);
        ignore_panic(|| failure.log());
        if let Some(on_failure) = &self.on_failure {
            ignore_panic(|| on_failure(&failure));
        }
    }

    /// Returns `true` if a shutdown has nothing to wait for. The guards are counted under the lock
    /// of the state, so that a hook that adds a task before it ends is not missed, and neither is a
    /// task after which hooks are due.
    fn is_idle(&self, state: &State<QueuedTask, Arc<TaskHeader>>) -> bool {
        state.is_idle() && !self.drain_guards.has_guards()
    }

    /// Performs a transition that may leave the state idle, and then notifies shutdowns.
    fn release<T>(&self, transition: impl FnOnce(&mut State<QueuedTask, Arc<TaskHeader>>) -> T) -> T {
        let (value, ends_shutdown) = {
            let mut state = lock(&self.state);
            (transition(&mut state), state.is_closed() && self.is_idle(&state))
        };
        if ends_shutdown {
            self.idle.notify_waiters();
        }
        value
    }
}

/// Emits an event for a task that was not admitted. Its submitter has the error, so the level is
/// low. Without the features `tracing` and `metrics` it has no effect.
#[cfg_attr(not(feature = "tracing"), expect(unused_variables))]
fn report_rejected(header: &TaskHeader, error: SubmitError) {
    #[cfg(feature = "tracing")]
    ignore_panic(|| tracing::debug!(name = header.name(), %error, "background task rejected"));
    metrics::rejected(error);
}

/// Drops queued work that was cancelled, and completes its task.
pub(super) fn drop_cancelled(task: QueuedTask) {
    let header = task.header.clone();
    ignore_panic(|| drop(task));
    header.complete(Completion::Cancelled);
}

/// The role of the current thread in backgrounds. A background is identified by the address of its
/// [`Shared`]; 0 means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ThreadRole {
    /// The background whose task runs on this thread. A shutdown of that background waits for the
    /// task, so even a closed background admits tasks that this one submits.
    task_of: usize,
    /// The background whose queue this thread is dispatching.
    dispatches_for: usize,
}

thread_local! {
    /// Restored after each use and not cleared, because a task may run on the stack of another one.
    static ROLE: Cell<ThreadRole> = const { Cell::new(ThreadRole { task_of: 0, dispatches_for: 0 }) };
}

/// Runs `work` as part of a task of `background`.
///
/// Tasks that `work` submits are dispatched within that submission, even if this thread was already
/// dispatching.
pub(super) fn in_task_of<T>(background: &Shared, work: impl FnOnce() -> T) -> T {
    let _restore = RestoreRole(ROLE.replace(ThreadRole { task_of: address(background), dispatches_for: 0 }));
    work()
}

fn runs_task_of(background: &Shared) -> bool {
    ROLE.try_with(|role| role.get().task_of) == Ok(address(background))
}

/// Marks this thread as dispatching for `background`. Returns `None` if it already does.
fn enter_dispatch(background: &Shared) -> Option<RestoreRole> {
    let dispatches_for = address(background);
    let previous = ROLE.try_with(Cell::get).unwrap_or(ThreadRole { task_of: 0, dispatches_for: 0 });
    (previous.dispatches_for != dispatches_for).then(|| {
        let _ = ROLE.try_with(|role| role.set(ThreadRole { dispatches_for, ..previous }));
        RestoreRole(previous)
    })
}

fn address(background: &Shared) -> usize {
    std::ptr::from_ref(background).addr()
}

struct RestoreRole(ThreadRole);

impl Drop for RestoreRole {
    fn drop(&mut self) {
        let _ = ROLE.try_with(|role| role.set(self.0));
    }
}
