use std::collections::VecDeque;

/// New calls get every eighth pick even if woken calls keep coming: a future that wakes itself for ever starves nobody,
/// and woken calls, which hold memory and a caller's patience already, still go first.
const FRESH_EVERY: u8 = 8;

/// Which jobs wait, which threads there are, and what a change of the one asks of the other. No threads, no locks.
///
/// Invariants:
/// * `idle` threads wait and nobody has promised them work; `claimed` wake-ups are promised to threads that wait. A
///   thread that stops waiting takes a claim, or leaves `idle`.
/// * A job in a queue has a thread coming for it: a claimed one, one that was asked to be spawned, or one that is busy
///   while there may be no more threads. So no job waits while a thread sleeps.
#[derive(Debug)]
pub(super) struct Roster<T> {
    fresh: VecDeque<T>,
    resumed: VecDeque<T>,
    picks: u8,
    min: usize,
    max: usize,
    threads: usize,
    idle: usize,
    claimed: usize,
    closing: bool,
    halted: bool,
}

/// What a change asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    Nothing,
    /// One more thread. It is counted already.
    Spawn,
    /// Wake one waiting thread.
    Wake,
}

/// What a thread does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<T> {
    /// End. The thread is not counted any more.
    Exit,
    Run(T),
    /// Wait until `woken` or `timed_out` says what to do.
    Wait,
}

impl<T> Roster<T> {
    pub(super) fn new(min: usize, max: usize) -> Self {
        Self {
            fresh: VecDeque::new(),
            resumed: VecDeque::new(),
            picks: 0,
            min,
            max,
            threads: 0,
            idle: 0,
            claimed: 0,
            closing: false,
            halted: false,
        }
    }

    pub(super) fn push(&mut self, item: T, resumed: bool) -> Ask {
        if resumed { &mut self.resumed } else { &mut self.fresh }.push_back(item);
        self.call_for_hands()
    }

    fn call_for_hands(&mut self) -> Ask {
        if self.idle > 0 {
            self.idle -= 1;
            self.claimed += 1;
            Ask::Wake
        } else if self.threads < self.max {
            self.threads += 1;
            Ask::Spawn
        } else {
            Ask::Nothing
        }
    }

    /// Counts a thread that is about to be spawned ahead of any work.
    pub(super) fn hire(&mut self) -> bool {
        let room = self.threads < self.max;
        self.threads += usize::from(room);
        room
    }

    pub(super) fn next(&mut self, stay: bool) -> Next<T> {
        if let Some(item) = self.pop() {
            Next::Run(item)
        } else if self.closing || !stay && self.threads > self.min {
            self.threads -= 1;
            Next::Exit
        } else {
            self.idle += 1;
            Next::Wait
        }
    }

    fn pop(&mut self) -> Option<T> {
        self.picks = (self.picks + 1) % FRESH_EVERY;
        if self.picks == 0 {
            self.fresh.pop_front().or_else(|| self.resumed.pop_front())
        } else {
            self.resumed.pop_front().or_else(|| self.fresh.pop_front())
        }
    }

    /// A waiting thread looks up. `true` if it is to go on with `next`.
    pub(super) fn woken(&mut self) -> bool {
        if self.claimed > 0 {
            self.claimed -= 1;
            true
        } else if self.closing {
            self.idle -= 1;
            true
        } else {
            false
        }
    }

    /// A waiting thread has waited for its keep-alive and was not `woken`. `true` if it is to end.
    pub(super) fn timed_out(&mut self) -> bool {
        let reaped = self.threads > self.min;
        if reaped {
            self.idle -= 1;
            self.threads -= 1;
        }
        reaped
    }

    /// A thread that was counted never came or vanished. Returns the jobs that nobody is left to run.
    pub(super) fn lost(&mut self) -> Vec<T> {
        self.threads -= 1;
        if self.threads > 0 {
            return Vec::new();
        }
        self.resumed.drain(..).chain(self.fresh.drain(..)).collect()
    }

    /// Threads end when there is nothing to do. Later jobs get threads again.
    pub(super) fn close(&mut self) {
        self.closing = true;
    }

    /// From now on there may be one more thread: the others may be stuck in work that nobody can stop, and what is
    /// queued has to be dropped all the same.
    pub(super) fn halt(&mut self) -> Ask {
        self.closing = true;
        if !self.halted {
            self.halted = true;
            self.max = self.max.saturating_add(1);
        }
        if self.is_empty() { Ask::Nothing } else { self.call_for_hands() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.resumed.is_empty()
    }

    pub(super) fn threads(&self) -> usize {
        self.threads
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
