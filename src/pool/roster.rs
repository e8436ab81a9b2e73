use std::collections::VecDeque;

/// New calls get every eighth pick even if woken calls keep coming: a future that wakes itself for ever starves nobody,
/// and woken calls, which hold memory and a caller's patience already, still go first.
const FRESH_EVERY: u8 = 8;

/// Which jobs wait, which threads there are, and what a change of the one asks of the other. No threads, no locks.
///
/// A thread is, at any time, one of: *coming* (asked to be spawned, or woken, and not here yet), *searching* (it looks for
/// work for a moment before it sleeps), *idle* (asleep; its seat `S` says how to wake it), or busy. At most one is coming
/// and at most one is searching.
///
/// Invariant: while a job waits, a thread is coming or searching, or all threads are busy and there may be no more. For
/// whoever pushes sees to that, and a thread that takes a job while others wait asks for the next thread (so wake-ups go
/// from thread to thread, one at a time, and stop as soon as the work does).
#[derive(Debug)]
pub(super) struct Roster<T, S> {
    fresh: VecDeque<T>,
    resumed: VecDeque<T>,
    picks: u8,
    min: usize,
    max: usize,
    threads: usize,
    /// The thread that went to sleep last is woken first: its stack is warm, and the others can be reaped.
    idle: Vec<S>,
    coming: bool,
    searching: bool,
    closing: bool,
    halted: bool,
}

/// What a change asks for.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a thread that is asked for has to come"]
pub(super) enum Ask<S> {
    Nothing,
    /// One more thread. It is counted already, and comes as `Coming`.
    Spawn,
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

impl<T, S> Roster<T, S> {
    pub(super) fn new(min: usize, max: usize) -> Self {
        Self {
            fresh: VecDeque::new(),
            resumed: VecDeque::new(),
            picks: 0,
            min,
            max,
            threads: 0,
            idle: Vec::new(),
            coming: false,
            searching: false,
            closing: false,
            halted: false,
        }
    }

    pub(super) fn push(&mut self, item: T, resumed: bool) -> Ask<S> {
        if resumed { &mut self.resumed } else { &mut self.fresh }.push_back(item);
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
        } else if self.threads < self.max {
            self.coming = true;
            self.threads += 1;
            Ask::Spawn
        } else {
            Ask::Nothing
        }
    }

    /// Counts a thread that is about to be spawned ahead of any work. It comes as `Busy`: nobody waits for it.
    pub(super) fn hire(&mut self) -> bool {
        let room = self.threads < self.max;
        self.threads += usize::from(room);
        room
    }

    /// What the thread does next that was `from`. `stay` says whether it may wait for work.
    pub(super) fn next(&mut self, from: From, stay: bool, seat: impl FnOnce() -> S) -> (Next<T>, Ask<S>) {
        match from {
            From::Busy => {}
            From::Coming => self.coming = false,
            From::Searching => self.searching = false,
        }
        if let Some(item) = self.pop() {
            let ask = if self.is_empty() { Ask::Nothing } else { self.call_for_hands() };
            return (Next::Run(item), ask);
        }
        let next = if self.closing || !stay && self.threads > self.min {
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

    fn pop(&mut self) -> Option<T> {
        self.picks = (self.picks + 1) % FRESH_EVERY;
        if self.picks == 0 {
            self.fresh.pop_front().or_else(|| self.resumed.pop_front())
        } else {
            self.resumed.pop_front().or_else(|| self.fresh.pop_front())
        }
    }

    /// A thread that was counted never came or vanished. Returns the jobs that nobody is left to run; or, if a job waits and
    /// another thread sleeps, asks for that one: while this one was coming, nobody else was asked for.
    pub(super) fn lost(&mut self, from: From) -> (Vec<T>, Ask<S>) {
        self.threads -= 1;
        match from {
            From::Busy => {}
            From::Coming => self.coming = false,
            From::Searching => self.searching = false,
        }
        if self.threads == 0 {
            return (self.resumed.drain(..).chain(self.fresh.drain(..)).collect(), Ask::Nothing);
        }
        let ask = match self.idle.is_empty() || self.is_empty() {
            true => Ask::Nothing, // not one more: there seem to be none to be had
            false => self.call_for_hands(),
        };
        (Vec::new(), ask)
    }

    /// Threads end when there is nothing to do. Returns those that sleep: they are to be woken, and come as `Busy`. Later
    /// jobs get threads again.
    pub(super) fn close(&mut self) -> Vec<S> {
        self.closing = true;
        std::mem::take(&mut self.idle)
    }

    /// From now on there may be one more thread: the others may be stuck in work that nobody can stop, and what is
    /// queued has to be dropped all the same. To be called after `close`.
    pub(super) fn halt(&mut self) -> Ask<S> {
        if !self.halted {
            self.halted = true;
            self.max = self.max.saturating_add(1);
        }
        if self.is_empty() { Ask::Nothing } else { self.call_for_hands() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.resumed.is_empty()
    }

    pub(super) fn is_searching(&self) -> bool {
        self.searching
    }

    pub(super) fn threads(&self) -> usize {
        self.threads
    }
}

impl<T, S: PartialEq> Roster<T, S> {
    /// A thread has slept for its keep-alive. `true` if it is to end; it is not counted any more. `false` if it was woken
    /// at the last moment, or is one of those that stay.
    pub(super) fn timed_out(&mut self, seat: &S) -> bool {
        let position = self.idle.iter().position(|other| other == seat);
        match position {
            Some(position) if self.threads > self.min => {
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
