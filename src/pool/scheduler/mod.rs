//! Scheduler of a pool's workers: the queue, the stack of parked workers, and the protocol that
//! wakes them.
//!
//! ```text
//! submitters --push--> Inbox (own lock) --drain--> SchedulerState { Queue, idle stack } (lock)
//!                 \___ is the inbox open? __________^            |
//! workers  <--Run / Search / Park / Exit-- next -----------------+
//! ```

mod inbox;
#[cfg(all(test, tower_offload_loom))]
mod loom;
mod parker;
mod queue;
mod state;
#[cfg(all(test, not(tower_offload_loom)))]
mod tests;

use std::{sync::Arc, time::Duration};

use self::{
    inbox::Inbox,
    parker::Parker,
    state::{SchedulerState, ThreadState},
};
pub(super) use self::{
    queue::{Class, QueueItem},
    state::{Action, Limits, WakeUp},
};
use crate::sync::{AtomicBool, Mutex, Ordering, Padded, lock, spin_loop, thread};

/// Rounds of spinning before a worker yields, as in crossbeam's `Backoff`: each round is twice as
/// long as the one before, some microseconds in total. Waking threads is most of the cost of a
/// call, and a worker that is still awake needs no wake-up.
const SPIN_ROUNDS: u32 = 6;
/// Number of times that a searching worker yields its core before it parks. Loom counts each yield
/// as a branch.
const YIELDS: u32 = if cfg!(tower_offload_loom) { 4 } else { 256 };

/// Distributes entries of type `T` among workers.
///
/// One lock guards the [`SchedulerState`]. No user code runs under it, and workers are unparked
/// after it was released. `T` is generic so that loom models can use numbers.
///
/// # Submitting without the lock
///
/// While the inbox is open, new calls of normal priority and without a key go there. A push that
/// neither wakes nor spawns a worker opens it, because more such pushes may follow: a pool that is
/// not busy never opens it. A thread that changes the state under the lock so that a push would
/// wake or spawn a worker closes the inbox, moves its calls to the queue, and performs the wake-up
/// for them. The inbox is opened and closed under its own lock, so a call is either in it before it
/// is closed, or is pushed to the queue.
#[derive(Debug)]
pub(super) struct Scheduler<T> {
    state: Padded<Mutex<SchedulerState<T, Arc<Parker>>>>,
    /// While it is open, [`SchedulerState::needs_wakeup`] is `false`: a worker is notified or
    /// searching, or all workers are busy and there may be no more of them. It is closed before
    /// that changes.
    inbox: Inbox<T>,
    /// `true` while the inbox is open. Written under the lock of `state`, when it changes. A
    /// submitter that sees an old value finds out from the inbox.
    is_inbox_open: Padded<AtomicBool>,
    /// Hint for the searching worker that the queue is not empty. Written under the lock of
    /// `state`.
    work_available: Padded<AtomicBool>,
    spin_rounds: u32,
}

/// State of one worker that only its own thread accesses.
#[derive(Debug)]
pub(super) struct WorkerState<T> {
    state: ThreadState,
    /// Entries that the worker must refuse: cancelled calls that the last call of
    /// [`Scheduler::next`] has removed.
    pub(super) shed: Vec<T>,
    /// Created when the worker parks for the first time.
    parker: Option<Arc<Parker>>,
}

/// An entry that a worker took from the queue.
#[derive(Debug)]
pub(super) struct Dequeued<T> {
    pub(super) item: T,
    /// `true` if the worker must spawn another one, with [`WorkerState::notified`].
    pub(super) spawn_worker: bool,
    /// `true` if more entries wait.
    pub(super) has_more: bool,
}

/// End of a wait of a worker that must exit.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Linger {
    /// It continues with [`Scheduler::next`].
    Woken,
    TimedOut,
    /// No entries come, or another worker waits for them or is on its way.
    MustExit,
}

impl<T> WorkerState<T> {
    /// Returns the state of a worker that [`Scheduler::add_worker`] has counted.
    pub(super) fn busy() -> Self {
        Self { state: ThreadState::Busy, shed: Vec::new(), parker: None }
    }

    /// Returns the state of a worker that the scheduler has asked for.
    pub(super) fn notified() -> Self {
        Self { state: ThreadState::Notified, ..Self::busy() }
    }

    fn parker(&mut self) -> &Arc<Parker> {
        self.parker.get_or_insert_with(Parker::current)
    }
}

impl<T: QueueItem> Scheduler<T> {
    /// Creates a scheduler without workers. With `spin`, a worker that looks for work spins before
    /// it yields, which only pays where there is more than one core.
    pub(super) fn new(limits: Limits, spin: bool) -> Self {
        Self {
            state: Padded(Mutex::new(SchedulerState::new(limits))),
            inbox: Inbox::new(),
            is_inbox_open: Padded(AtomicBool::new(false)),
            work_available: Padded(AtomicBool::new(false)),
            spin_rounds: if spin { SPIN_ROUNDS } else { 0 },
        }
    }

    /// Queues an entry, and wakes an idle worker for it. If the result is `Spawn`, the caller must
    /// spawn a worker with [`WorkerState::notified`]. `None` means that the entry waits for a
    /// worker that is busy or on its way.
    ///
    /// In the last two cases, the caller has acquired the lock of the queue or the inbox for the
    /// push. See [`is_empty`](Self::is_empty).
    pub(super) fn push(&self, item: T, class: Class) -> WakeUp<()> {
        if !class.is_default() {
            return self.with_state(|state| ((), state.push(item, class))).1;
        }
        let item = if self.is_inbox_open.load(Ordering::Relaxed) { self.inbox.push(item) } else { Err(item) };
        match item {
            Ok(()) => WakeUp::None,
            Err(item) => self.push_and_open_inbox(item, class),
        }
    }

    fn push_and_open_inbox(&self, item: T, class: Class) -> WakeUp<()> {
        let push = |state: &mut SchedulerState<T, Arc<Parker>>| {
            let wake_up = self.drain_inbox(state).push(item, class);
            if matches!(wake_up, WakeUp::None) && !self.is_inbox_open.load(Ordering::Relaxed) {
                // `push` asks for a worker if it can.
                debug_assert!(!state.needs_wakeup());
                self.is_inbox_open.store(true, Ordering::Relaxed);
                self.inbox.open();
            }
            ((), wake_up)
        };
        self.with_state(push).1
    }

    fn drain_inbox<'a>(&self, state: &'a mut SchedulerState<T, Arc<Parker>>) -> &'a mut SchedulerState<T, Arc<Parker>> {
        if !self.inbox.looks_empty() {
            self.inbox.drain_into(&mut state.queue);
        }
        state
    }

    /// Counts one more worker ahead of any work. Returns `true` if the caller must spawn it, with
    /// [`WorkerState::busy`].
    pub(super) fn add_worker(&self) -> bool {
        lock(&self.state).add_worker()
    }

    /// Marks a worker as busy that has arrived but does not take an entry yet. Returns `true` if
    /// the caller must spawn another worker, with [`WorkerState::notified`].
    #[must_use = "the scheduler counts on the worker that is asked for"]
    pub(super) fn on_worker_start(&self, worker: &mut WorkerState<T>) -> bool {
        let left = std::mem::replace(&mut worker.state, ThreadState::Busy);
        self.with_state(|state| ((), state.on_worker_start(left))).1 == WakeUp::Spawn
    }

    /// Returns the next action of the calling worker. A worker over the minimum exits instead of
    /// parking unless `may_park`.
    pub(super) fn next(&self, worker: &mut WorkerState<T>, may_park: bool) -> Action<Dequeued<T>> {
        loop {
            let WorkerState { state: left, shed, parker } = worker;
            let parker = || parker.get_or_insert_with(Parker::current).clone();
            let ((action, has_more), wake_up) = self.with_state(|state| {
                if !state.queue.has_normal() {
                    self.drain_inbox(state);
                }
                let (action, wake_up) = state.next(*left, may_park, shed, parker);
                ((action, !state.queue.is_empty() || !self.inbox.looks_empty()), wake_up)
            });
            let spawn_worker = wake_up == WakeUp::Spawn;
            match action {
                Action::Run(item) => {
                    worker.state = ThreadState::Busy;
                    return Action::Run(Dequeued { item, spawn_worker, has_more });
                }
                // A call has just entered the inbox and needs a worker. This one continues instead
                // of exiting.
                Action::Exit if spawn_worker => worker.state = ThreadState::Notified,
                Action::Exit => return Action::Exit,
                Action::Search => return Action::Search,
                Action::Park => return Action::Park,
            }
        }
    }

    /// Looks for work for a moment, without the lock. Follows [`Action::Search`].
    pub(super) fn search(&self, worker: &mut WorkerState<T>) {
        worker.state = ThreadState::Searching;
        let has_work = || self.work_available.load(Ordering::Relaxed) || !self.inbox.looks_empty();
        for round in 0..self.spin_rounds {
            for _ in 0..1 << round {
                spin_loop();
            }
            if has_work() {
                return;
            }
        }
        for _ in 0..YIELDS {
            thread::yield_now();
            if has_work() {
                return;
            }
        }
    }

    /// Parks the worker until there is work. Follows [`Action::Park`]. A worker over the minimum
    /// waits for at most `keep_alive`; `None` waits forever. Returns `false` if the worker must
    /// exit; it is no longer counted then.
    pub(super) fn park(&self, worker: &mut WorkerState<T>, keep_alive: Option<Duration>) -> bool {
        let parker = worker.parker().clone();
        let mut timeout = keep_alive;
        loop {
            if let Some(state) = parker.park(timeout) {
                worker.state = state;
                return true;
            }
            let mut state = lock(&self.state);
            // Workers are notified under this lock: either the notification is there, or there will
            // be none before the worker has left the idle stack.
            if let Some(state) = parker.take_notification() {
                worker.state = state;
                return true;
            }
            if state.try_expire(&parker) {
                return false;
            }
            timeout = None; // The worker belongs to the minimum.
        }
    }

    /// Parks a worker that must exit because the scheduler is closed, for up to `timeout`, if
    /// entries may still come. May follow [`Action::Exit`].
    ///
    /// `is_needed` is called under the lock. A thread that makes it return `false` and then calls
    /// [`close`](Self::close) therefore ends the wait, whichever of the two is first.
    pub(super) fn linger(
        &self,
        worker: &mut WorkerState<T>,
        timeout: Duration,
        is_needed: impl FnOnce() -> bool,
    ) -> Linger {
        let parker = worker.parker().clone();
        let lingers = {
            let mut state = lock(&self.state);
            // An entry that is pushed next wakes this worker. Before, it would have spawned one. So
            // the inbox is closed, and stays so.
            is_needed() && state.linger(|| parker)
        };
        if !lingers {
            Linger::MustExit
        } else if self.park(worker, Some(timeout)) {
            Linger::Woken
        } else {
            Linger::TimedOut
        }
    }

    /// Removes a worker that was counted and could not be spawned or vanished. Returns the entries
    /// that no worker is left to run.
    #[must_use = "these entries must be answered"]
    pub(super) fn on_worker_lost(&self, worker: &WorkerState<T>) -> Vec<T> {
        let (abandoned, wake_up) = {
            let mut state = lock(&self.state);
            state.on_worker_lost(worker.state);
            // The inbox is closed first if a push would now spawn a worker.
            self.sync_inbox(&mut state);
            let (abandoned, wake_up) = self.drain_inbox(&mut state).rebalance();
            notify(&wake_up);
            (abandoned, wake_up)
        };
        if let WakeUp::Unpark(parker) = wake_up {
            parker.unpark();
        }
        abandoned
    }

    /// Makes workers exit once the queue is empty, including one that lingers. Later entries get
    /// workers again.
    pub(super) fn close(&self) {
        let idle = {
            let mut state = lock(&self.state);
            let idle = state.close();
            idle.iter().for_each(|parker| parker.notify(ThreadState::Busy));
            idle
        };
        idle.iter().for_each(|parker| parker.unpark());
    }

    /// Allows one more worker, for entries that wait behind work that cannot be stopped. Called
    /// after `close`. Returns `true` if the caller must spawn it, with [`WorkerState::notified`].
    #[must_use = "the scheduler counts on the worker that is asked for"]
    pub(super) fn halt(&self) -> bool {
        self.with_state(|state| ((), state.halt())).1 == WakeUp::Spawn
    }

    /// Removes new calls until at most `len` are left: the oldest of the lowest priority first.
    #[must_use = "these entries must be answered"]
    pub(super) fn shed_to(&self, len: usize) -> Vec<T> {
        self.with_state(|state| (self.drain_inbox(state).queue.shed_to(len), WakeUp::None)).0
    }

    /// Returns `true` if no entry waits. If an entry is pushed later, everything that precedes this
    /// call happens before what follows the push.
    pub(super) fn is_empty(&self) -> bool {
        self.inbox.is_empty() && lock(&self.state).queue.is_empty()
    }

    /// Like `is_empty`, without the lock of the inbox. An entry that has just been pushed may be
    /// missed.
    pub(super) fn looks_empty(&self) -> bool {
        self.inbox.looks_empty() && lock(&self.state).queue.is_empty()
    }

    /// Returns how long the oldest new call has waited.
    pub(super) fn longest_wait(&self) -> Duration {
        let oldest = [lock(&self.state).queue.oldest(), self.inbox.oldest()];
        oldest.into_iter().flatten().min().map_or(Duration::ZERO, |queued_at| queued_at.elapsed())
    }

    #[cfg(all(test, not(tower_offload_loom)))]
    pub(super) fn has_idle_worker(&self) -> bool {
        lock(&self.state).has_idle_worker()
    }

    pub(super) fn workers(&self) -> usize {
        lock(&self.state).workers()
    }

    /// Closes the inbox after the state has changed, if a push would now wake or spawn a worker.
    /// Returns `true` if calls were moved from it to the queue.
    #[inline(always)]
    fn sync_inbox(&self, state: &mut SchedulerState<T, Arc<Parker>>) -> bool {
        self.is_inbox_open.load(Ordering::Relaxed) && state.needs_wakeup() && self.close_inbox(state)
    }

    #[inline(never)] // Keeps it out of the path of a pool that stays busy.
    fn close_inbox(&self, state: &mut SchedulerState<T, Arc<Parker>>) -> bool {
        self.is_inbox_open.store(false, Ordering::Relaxed);
        let before = state.queue.len();
        self.inbox.close_into(&mut state.queue);
        state.queue.len() > before
    }

    /// Applies a transition under the lock, and unparks the worker that it wakes. The caller must
    /// spawn a worker if the wake-up is `Spawn`.
    fn with_state<R>(
        &self,
        transition: impl FnOnce(&mut SchedulerState<T, Arc<Parker>>) -> (R, WakeUp<Arc<Parker>>),
    ) -> (R, WakeUp<()>) {
        let (result, wake_up) = {
            let mut state = lock(&self.state);
            let (result, mut wake_up) = transition(&mut state);
            if state.searching {
                self.work_available.store(!state.queue.is_empty(), Ordering::Relaxed);
            }
            if self.sync_inbox(&mut state) {
                debug_assert!(matches!(wake_up, WakeUp::None), "two workers are asked for at once");
                wake_up = state.wake_if_nonempty();
            }
            notify(&wake_up);
            (result, wake_up)
        };
        let wake_up = match wake_up {
            WakeUp::None => WakeUp::None,
            WakeUp::Spawn => WakeUp::Spawn,
            WakeUp::Unpark(parker) => {
                parker.unpark();
                WakeUp::Unpark(())
            }
        };
        (result, wake_up)
    }
}

/// Performs the first step of a wake-up. Called under the scheduler's lock; see [`Parker`].
fn notify(wake_up: &WakeUp<Arc<Parker>>) {
    if let WakeUp::Unpark(parker) = wake_up {
        parker.notify(ThreadState::Notified);
    }
}
