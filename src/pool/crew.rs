use std::time::Duration;

use super::roster::{Ask, Next, Roster};
use crate::sync::{Condvar, Mutex, lock};

/// A [`Roster`] that threads share: the queue of a pool, and the place where its threads wait.
///
/// All of the state is under one lock, nothing foreign runs under it. Jobs are generic, so that loom can drive it with
/// numbers.
#[derive(Debug)]
pub(super) struct Crew<T> {
    roster: Mutex<Roster<T>>,
    wake: Condvar,
}

impl<T> Crew<T> {
    pub(super) fn new(min: usize, max: usize) -> Self {
        Self { roster: Mutex::new(Roster::new(min, max)), wake: Condvar::new() }
    }

    /// `true` if the caller has to spawn a thread.
    pub(super) fn push(&self, item: T, resumed: bool) -> bool {
        let ask = lock(&self.roster).push(item, resumed);
        self.answer(ask)
    }

    /// Counts one more thread ahead of any work; `true` if the caller has to spawn it.
    pub(super) fn hire(&self) -> bool {
        lock(&self.roster).hire()
    }

    /// The next job for the calling thread, which waits for one for `keep_alive` (`None`: for ever) if need be. `None`
    /// says that the thread has to end and is not counted any more.
    pub(super) fn next(&self, keep_alive: Option<Duration>) -> Option<T> {
        let mut roster = lock(&self.roster);
        loop {
            match roster.next(keep_alive != Some(Duration::ZERO)) {
                Next::Run(item) => return Some(item),
                Next::Exit => return None,
                Next::Wait => {}
            }
            while !roster.woken() {
                let timed_out;
                (roster, timed_out) = match keep_alive {
                    Some(keep_alive) => {
                        let waited = self.wake.wait_timeout(roster, keep_alive);
                        let (roster, waited) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
                        (roster, waited.timed_out())
                    }
                    None => (self.wake.wait(roster).unwrap_or_else(std::sync::PoisonError::into_inner), false),
                };
                if timed_out {
                    if roster.woken() {
                        break;
                    }
                    if roster.timed_out() {
                        return None;
                    }
                }
            }
        }
    }

    /// A thread that was counted could not be spawned or vanished. Returns the jobs that nobody is left to run.
    #[must_use = "these jobs have to be answered"]
    pub(super) fn lost(&self) -> Vec<T> {
        lock(&self.roster).lost()
    }

    /// Threads end when there is nothing to do. Later jobs get threads again.
    pub(super) fn close(&self) {
        lock(&self.roster).close();
        self.wake.notify_all();
    }

    /// Closes; `true` if the caller has to spawn a thread for what is queued.
    pub(super) fn halt(&self) -> bool {
        let ask = lock(&self.roster).halt();
        self.wake.notify_all();
        self.answer(ask)
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.roster).is_empty()
    }

    pub(super) fn threads(&self) -> usize {
        lock(&self.roster).threads()
    }

    fn answer(&self, ask: Ask) -> bool {
        if ask == Ask::Wake {
            self.wake.notify_one();
        }
        ask == Ask::Spawn
    }
}

#[cfg(all(test, tower_offload_loom))]
mod loom;
