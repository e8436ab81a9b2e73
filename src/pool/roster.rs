use std::collections::VecDeque;

use tokio::time::Instant;

use super::{
    Priority, QueuePolicy,
    queue::{Jobs, Waits},
};

/// Which jobs wait, which threads there are, and what a change of the one asks of the other. No threads, no locks.
///
/// A thread is, at any time, one of: *coming* (asked to be spawned, or woken, and not here yet), *searching* (it looks for
/// work for a moment before it sleeps), *idle* (asleep; its seat `S` says how to wake it), or busy. At most one is coming
/// and at most one is searching.
///
/// Invariant: while a job waits, a thread is coming or searching, or all threads are busy and there may be no more. For
/// whoever pushes sees to that, and a thread that takes a job while others wait asks for the next thread (so wake-ups go
/// from thread to thread, one at a time, and stop as soon as the work does).
///
/// *Reserved* threads are counted apart, run release calls only, and never search. At most one of them is coming.
///
/// Invariant: while a release call waits, an ordinary thread is coming or searching; or all of these are busy and there
/// may be no more, and a reserved one is coming, or all of those are busy too and there may be no more. For an ordinary
/// thread is asked for first, and a reserved one only if there is none; and what a reserved thread does changes nothing
/// for other jobs.
#[derive(Debug)]
pub(super) struct Roster<T, S> {
    jobs: Jobs<T>,
    limits: Limits,
    threads: usize,
    /// The thread that went to sleep last is woken first: its stack is warm, and the others can be reaped.
    idle: Vec<S>,
    coming: bool,
    searching: bool,
    reserved: Reserved<S>,
    closing: bool,
    halted: bool,
}

#[derive(Debug)]
struct Reserved<S> {
    threads: usize,
    idle: Vec<S>,
    coming: bool,
}

/// How many threads there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// So many stay though they are idle.
    pub(super) min: usize,
    pub(super) max: usize,
    /// The most reserved threads, besides `max`.
    pub(super) reserved: usize,
}

/// What a change asks for.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a thread that is asked for has to come"]
pub(super) enum Ask<S> {
    Nothing,
    /// One more thread. It is counted already, and comes as `Coming`.
    Spawn,
    /// One more reserved thread, likewise.
    SpawnReserved,
    /// Wake this thread. It comes as `Coming`.
    Wake(S),
}

/// What a thread was until now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Busy,
    Coming,
    Searching,
}

/// What a thread does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<T> {
    /// End. The thread is not counted any more.
    Exit,
    Run(T),
    /// Look for work for a moment, then come back as `Searching`.
    Search,
    /// Sleep. The seat is in the stack.
    Sleep,
}

impl<T: Waits, S> Roster<T, S> {
    pub(super) fn new(limits: Limits, policy: QueuePolicy) -> Self {
        Self {
            jobs: Jobs::new(policy),
            limits,
            threads: 0,
            idle: Vec::new(),
            coming: false,
            searching: false,
            reserved: Reserved { threads: 0, idle: Vec::new(), coming: false },
            closing: false,
            halted: false,
        }
    }

    pub(super) fn push(&mut self, item: T, priority: Priority, resumed: bool) -> Ask<S> {
        self.jobs.push(item, priority, resumed);
        self.call_for_hands()
    }

    /// A job waits: sees to it that a thread comes, if there may be one and none is on its way.
    fn call_for_hands(&mut self) -> Ask<S> {
        if self.coming || self.searching {
            return Ask::Nothing;
        }
        if let Some(seat) = self.idle.pop() {
            self.coming = true;
            Ask::Wake(seat)
        } else if self.threads < self.limits.max {
            self.coming = true;
            self.threads += 1;
            Ask::Spawn
        } else if self.jobs.has_release() {
            self.call_for_reserved_hands()
        } else {
            Ask::Nothing
        }
    }

    fn call_for_reserved_hands(&mut self) -> Ask<S> {
        let reserved = &mut self.reserved;
        if reserved.coming {
            return Ask::Nothing;
        }
        if let Some(seat) = reserved.idle.pop() {
            reserved.coming = true;
            Ask::Wake(seat)
        } else if reserved.threads < self.limits.reserved {
            reserved.coming = true;
            reserved.threads += 1;
            Ask::SpawnReserved
        } else {
            Ask::Nothing
        }
    }

    pub(super) fn call_if_any_waits(&mut self) -> Ask<S> {
        if self.jobs.is_empty() { Ask::Nothing } else { self.call_for_hands() }
    }

    /// A thread that was asked for is here, and counts as busy. Whoever asked for it may ask for another, and so does what waits
    /// already.
    pub(super) fn arrive(&mut self, from: From, reserved: bool) -> Ask<S> {
        match reserved {
            true => self.reserved_was(from),
            false => self.was(from),
        }
        self.call_if_any_waits()
    }

    /// A thread is not any more what it was until now.
    fn was(&mut self, from: From) {
        match from {
            From::Busy => {}
            From::Coming => self.coming = false,
            From::Searching => self.searching = false,
        }
    }

    /// As `was`, for a reserved thread, which never searches.
    fn reserved_was(&mut self, from: From) {
        if from == From::Coming {
            self.reserved.coming = false;
        }
    }

    /// Counts a thread that is about to be spawned ahead of any work. It comes as `Busy`: nobody waits for it.
    pub(super) fn hire(&mut self) -> bool {
        let room = self.threads < self.limits.max;
        self.threads += usize::from(room);
        room
    }

    /// What the thread does next that was `from`. `stay` says whether it may wait for work. Jobs that the policy gives
    /// up go into `shed`, whatever comes next; it goes by `now`, and is first in, first out without.
    pub(super) fn next(
        &mut self,
        from: From,
        stay: bool,
        now: Option<Instant>,
        shed: &mut Vec<T>,
        seat: impl FnOnce() -> S,
    ) -> (Next<T>, Ask<S>) {
        self.was(from);
        if let Some(item) = self.jobs.pop(now, shed) {
            return (Next::Run(item), self.call_if_any_waits());
        }
        self.jobs.shrink();
        let next = if self.closing || !stay && self.threads > self.limits.min {
            self.threads -= 1;
            Next::Exit
        } else if from != From::Searching && !self.searching {
            self.searching = true;
            Next::Search
        } else {
            self.idle.push(seat());
            Next::Sleep
        };
        (next, Ask::Nothing)
    }

    /// As `next`, for a reserved thread.
    pub(super) fn next_reserved(&mut self, from: From, stay: bool, seat: impl FnOnce() -> S) -> (Next<T>, Ask<S>) {
        self.reserved_was(from);
        if let Some(item) = self.jobs.pop_release() {
            return (Next::Run(item), self.call_if_any_waits());
        }
        // Other jobs may wait, but they never waited for this thread.
        let next = if self.closing || !stay {
            self.reserved.threads -= 1;
            Next::Exit
        } else {
            self.reserved.idle.push(seat());
            Next::Sleep
        };
        (next, Ask::Nothing)
    }

    /// A thread that was counted never came or vanished. To be followed by `make_up`.
    pub(super) fn lost(&mut self, from: From) {
        self.threads -= 1;
        self.was(from);
    }

    /// As `lost`, for a reserved thread.
    pub(super) fn lost_reserved(&mut self, from: From) {
        self.reserved.threads -= 1;
        self.reserved_was(from);
    }

    /// After `lost`: returns the jobs that nobody is left to run; or, if a job waits and another thread sleeps, asks for
    /// that one: while the lost one was coming, nobody else was asked for.
    pub(super) fn make_up(&mut self) -> (Vec<T>, Ask<S>) {
        let mut left = Vec::new();
        if self.threads == 0 {
            left.extend(self.jobs.drain());
            if self.reserved.threads == 0 {
                left.extend(self.jobs.drain_release());
            }
        }
        // Of those that sleep, and not one more: there seem to be none to be had.
        let ask = if self.jobs.is_empty() || self.coming || self.searching {
            Ask::Nothing
        } else if !self.idle.is_empty() {
            self.call_for_hands()
        } else if self.jobs.has_release() && !self.reserved.idle.is_empty() {
            self.call_for_reserved_hands()
        } else {
            Ask::Nothing
        };
        (left, ask)
    }

    /// Threads end when there is nothing to do. Returns those that sleep: they are to be woken, and come as `Busy`. Later
    /// jobs get threads again.
    pub(super) fn close(&mut self) -> Vec<S> {
        self.closing = true;
        let mut asleep = std::mem::take(&mut self.idle);
        asleep.append(&mut self.reserved.idle);
        asleep
    }

    /// From now on there may be one more thread: the others may be stuck in work that nobody can stop, and what is
    /// queued has to be dropped all the same. To be called after `close`.
    pub(super) fn halt(&mut self) -> Ask<S> {
        if !self.halted {
            self.halted = true;
            self.limits.max = self.limits.max.saturating_add(1);
        }
        self.call_if_any_waits()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Where new calls of normal priority wait, first in, first out; for those that come all at once.
    pub(super) fn normal(&mut self) -> &mut VecDeque<T> {
        self.jobs.normal()
    }

    /// Whether a job that comes now leads to more than that it waits: no thread is on its way, and one could be.
    pub(super) fn wants_to_know(&self) -> bool {
        !self.coming && !self.searching && (!self.idle.is_empty() || self.threads < self.limits.max)
    }

    pub(super) fn is_searching(&self) -> bool {
        self.searching
    }

    /// Since when the oldest new call waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.jobs.oldest()
    }

    /// All of them, reserved ones included.
    pub(super) fn threads(&self) -> usize {
        self.threads + self.reserved.threads
    }
}

impl<T, S: PartialEq> Roster<T, S> {
    /// A thread has slept for its keep-alive. `true` if it is to end; it is not counted any more. `false` if it was woken
    /// at the last moment, or is one of those that stay.
    pub(super) fn timed_out(&mut self, seat: &S) -> bool {
        if let Some(position) = self.reserved.idle.iter().position(|other| other == seat) {
            self.reserved.idle.remove(position);
            self.reserved.threads -= 1;
            return true;
        }
        let position = self.idle.iter().position(|other| other == seat);
        match position {
            Some(position) if self.threads > self.limits.min => {
                self.idle.remove(position);
                self.threads -= 1;
                true
            }
            _ => false,
        }
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
