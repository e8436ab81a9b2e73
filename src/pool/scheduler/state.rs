use super::queue::{Class, Queue, QueueItem};

/// State machine of the scheduler: queued entries and worker states. Each transition returns the
/// action that the caller must perform. Pure: no threads, no locks, and no time.
///
/// A worker is *notified* (it was asked to be spawned or unparked and has not arrived yet),
/// *searching* (it looks for work for a moment before it parks), *busy*, or *idle* (parked; its
/// parker `P` is on the idle stack). At most one worker is notified (two after a halt) and at most
/// one is searching.
///
/// Invariant: while an entry waits, a worker is notified or searching, or all workers are busy and
/// there may be no more of them. `push` establishes it. It is kept because a worker that takes an
/// entry while others wait wakes or spawns the next worker. Wake-ups are therefore chained, one at
/// a time, and stop as soon as the work does.
#[derive(Debug)]
pub(super) struct SchedulerState<T, P> {
    pub(super) queue: Queue<T>,
    limits: Limits,
    /// Number of workers in any state.
    workers: usize,
    /// Parkers of idle workers. The worker that parked last is woken first: its stack is warm, and
    /// those below it can reach their keep-alive timeout.
    idle: Vec<P>,
    pub(super) notified: bool,
    pub(super) searching: bool,
    closing: bool,
    pub(super) halted: bool,
}

/// Bounds of the number of workers.
#[derive(Debug, Clone, Copy)]
pub(in crate::pool) struct Limits {
    /// Number of workers that are kept alive while idle.
    pub(in crate::pool) min: usize,
    pub(in crate::pool) max: usize,
}

/// Wake-up that the caller of a transition must perform after it has released the lock.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the scheduler counts on the worker that is asked for"]
pub(in crate::pool) enum WakeUp<P> {
    None,
    /// Unpark this worker. It continues as `Notified`.
    Unpark(P),
    /// Spawn a worker. It is counted already and starts as `Notified`.
    Spawn,
}

/// State that a worker leaves when it asks for its next action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ThreadState {
    Notified,
    Searching,
    Busy,
}

/// Next action of a worker.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::pool) enum Action<T> {
    Run(T),
    /// Look for work for a moment, then ask again as `Searching`.
    Search,
    /// Park. The parker is on the idle stack.
    Park,
    /// Exit. The worker is no longer counted.
    Exit,
}

impl<T: QueueItem, P> SchedulerState<T, P> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            queue: Queue::new(),
            limits,
            workers: 0,
            idle: Vec::new(),
            notified: false,
            searching: false,
            closing: false,
            halted: false,
        }
    }

    pub(super) fn push(&mut self, item: T, class: Class) -> WakeUp<P> {
        self.queue.push(item, class);
        self.wake_or_spawn()
    }

    pub(super) fn wake_if_nonempty(&mut self) -> WakeUp<P> {
        if self.queue.is_empty() { WakeUp::None } else { self.wake_or_spawn() }
    }

    /// Asks for a worker, unless one is on its way or there may be no more.
    fn wake_or_spawn(&mut self) -> WakeUp<P> {
        if self.notified || self.searching {
            return WakeUp::None;
        }
        if let Some(parker) = self.idle.pop() {
            self.notified = true;
            WakeUp::Unpark(parker)
        } else if self.workers < self.limits.max {
            self.notified = true;
            self.workers += 1;
            WakeUp::Spawn
        } else {
            WakeUp::None
        }
    }

    /// Returns `true` if pushing an entry now would wake or spawn a worker.
    pub(super) fn needs_wakeup(&self) -> bool {
        !self.notified && !self.searching && (!self.idle.is_empty() || self.workers < self.limits.max)
    }

    /// Counts a worker that is spawned ahead of any work and starts as `Busy`. Returns `false` if
    /// there may be no more workers.
    pub(super) fn add_worker(&mut self) -> bool {
        let has_room = self.workers < self.limits.max;
        self.workers += usize::from(has_room);
        has_room
    }

    /// Makes a worker busy that has arrived but does not take an entry yet, and asks for another
    /// worker if entries wait.
    pub(super) fn on_worker_start(&mut self, left: ThreadState) -> WakeUp<P> {
        self.leave_state(left);
        self.wake_if_nonempty()
    }

    /// Leaves the state that is recorded for a worker.
    fn leave_state(&mut self, left: ThreadState) {
        match left {
            ThreadState::Notified => self.notified = false,
            ThreadState::Searching => self.searching = false,
            ThreadState::Busy => {}
        }
    }

    /// Returns the next action of a worker that leaves the state `left`, and the wake-up of another
    /// one. A worker over the minimum exits instead of parking unless `may_park`. Whichever action
    /// is returned, cancelled entries that were passed over have been moved to `shed`.
    pub(super) fn next(
        &mut self,
        left: ThreadState,
        may_park: bool,
        shed: &mut Vec<T>,
        parker: impl FnOnce() -> P,
    ) -> (Action<T>, WakeUp<P>) {
        self.leave_state(left);
        if let Some(item) = self.queue.pop(shed) {
            return (Action::Run(item), self.wake_if_nonempty());
        }
        self.queue.shrink();
        let action = if self.closing || !may_park && self.workers > self.limits.min {
            self.workers -= 1;
            Action::Exit
        } else if left != ThreadState::Searching && !self.searching {
            self.searching = true;
            Action::Search
        } else {
            self.idle.push(parker());
            Action::Park
        };
        (action, WakeUp::None)
    }

    /// Removes a worker that was counted and could not be spawned or vanished. The caller must call
    /// [`rebalance`](Self::rebalance) next.
    pub(super) fn on_worker_lost(&mut self, left: ThreadState) {
        self.workers -= 1;
        self.leave_state(left);
    }

    /// Restores the invariant after a worker was lost: returns all entries if no worker is left to
    /// run them, or wakes an idle worker in place of the lost one. No worker is spawned, because
    /// the last spawn has just failed.
    pub(super) fn rebalance(&mut self) -> (Vec<T>, WakeUp<P>) {
        let abandoned = if self.workers == 0 { self.queue.drain().collect() } else { Vec::new() };
        let wake_up = if self.idle.is_empty() { WakeUp::None } else { self.wake_if_nonempty() };
        (abandoned, wake_up)
    }

    /// Makes workers exit once the queue is empty. Returns the parkers of idle workers, also of one
    /// that lingers: the caller must wake them, and they continue as `Busy`. Later entries get
    /// workers again.
    pub(super) fn close(&mut self) -> Vec<P> {
        self.closing = true;
        std::mem::take(&mut self.idle)
    }

    /// Parks a worker that was told to exit because the scheduler closes, so that calls which are
    /// woken need no new worker. Returns `false` if it must exit. One worker does so at a time.
    pub(super) fn linger(&mut self, parker: impl FnOnce() -> P) -> bool {
        // If a worker is on its way, it is the next that may linger.
        let lingers = self.closing && self.queue.is_empty() && self.needs_wakeup() && self.idle.is_empty();
        if lingers {
            self.workers += 1;
            self.idle.push(parker());
        }
        lingers
    }

    /// Allows one more worker. The others may be stuck in work that cannot be stopped, but queued
    /// entries must still be dropped. Called after `close`.
    ///
    /// A worker that was asked for does not count as on its way, because the threads of a borrowed
    /// executor may be stuck too. If it arrives, two workers drain the queue.
    pub(super) fn halt(&mut self) -> WakeUp<P> {
        if !self.halted {
            self.halted = true;
            self.limits.max = self.limits.max.saturating_add(1);
            self.notified = false;
        }
        self.wake_if_nonempty()
    }

    #[cfg(all(test, not(tower_offload_loom)))]
    pub(super) fn has_idle_worker(&self) -> bool {
        !self.idle.is_empty()
    }

    pub(super) fn workers(&self) -> usize {
        self.workers
    }
}

impl<T, P: PartialEq> SchedulerState<T, P> {
    /// Removes an idle worker whose timeout has expired. Returns `false` if the worker was notified
    /// just before, or belongs to the minimum of a scheduler that is open.
    pub(super) fn try_expire(&mut self, parker: &P) -> bool {
        let position = self.idle.iter().position(|idle| idle == parker);
        match position {
            Some(position) if self.closing || self.workers > self.limits.min => {
                self.idle.remove(position);
                self.workers -= 1;
                true
            }
            _ => false,
        }
    }
}
