use std::{sync::Arc, time::Duration};

use super::{
    roster::{Ask, From, Next, Roster},
    seat::Seat,
};
use crate::sync::{AtomicBool, Mutex, Ordering, Padded, lock, spin_loop, thread};

/// How a thread looks for work before it sleeps, in the shape of crossbeam's `Backoff`: some microseconds of spinning, each
/// round twice as long, then it offers its core to others a few times. Two wake-ups of threads are most of what a hop
/// costs, and a thread that is still awake needs none.
const SPINS: u32 = 6;
const YIELDS: u32 = 64;

/// A [`Roster`] that threads share: the queue of a pool, and the place where its threads wait.
///
/// All of the state is under one lock, nothing foreign runs under it, and threads are woken after it is free. Jobs are
/// generic, so that loom can drive it with numbers.
#[derive(Debug)]
pub(super) struct Crew<T> {
    roster: Padded<Mutex<Roster<T, Arc<Seat>>>>,
    /// Whether a job came since the thread that searches began to; the lock has the truth.
    found: Padded<AtomicBool>,
    spins: u32,
}

/// What a thread of the crew keeps to itself.
#[derive(Debug)]
pub(super) struct Hand {
    from: From,
    /// Made when the thread first goes to sleep.
    seat: Option<Arc<Seat>>,
}

/// A job, for the thread that took it.
#[derive(Debug)]
pub(super) struct Taken<T> {
    pub(super) item: T,
    /// Whether the thread has to spawn another.
    pub(super) spawn: bool,
    /// Whether other jobs wait.
    pub(super) more: bool,
}

impl Hand {
    /// A thread that was asked for by `push` or `next`.
    pub(super) fn coming() -> Self {
        Self { from: From::Coming, seat: None }
    }

    /// A thread that was counted by `hire`.
    pub(super) fn hired() -> Self {
        Self { from: From::Busy, seat: None }
    }
}

impl<T> Crew<T> {
    /// `spin` says whether a thread that looks for work may burn a core meanwhile: not where there is only one.
    pub(super) fn new(min: usize, max: usize, spin: bool) -> Self {
        let roster = Padded(Mutex::new(Roster::new(min, max)));
        Self { roster, found: Padded(AtomicBool::new(false)), spins: if spin { SPINS } else { 0 } }
    }

    /// `true` if the caller has to spawn a thread; it comes as `Hand::coming`.
    #[must_use = "a thread that is asked for has to come"]
    pub(super) fn push(&self, item: T, resumed: bool) -> bool {
        self.change(|roster| ((), roster.push(item, resumed))).1
    }

    /// Counts one more thread ahead of any work; `true` if the caller has to spawn it, as `Hand::hired`.
    pub(super) fn hire(&self) -> bool {
        lock(&self.roster).hire()
    }

    /// The next job for the calling thread, which waits for one for `keep_alive` (`None`: for ever) if need be. `None` says
    /// that the thread has to end and is not counted any more.
    ///
    /// `before_sleep` runs when the thread is about to sleep, without the lock.
    pub(super) fn next(
        &self,
        hand: &mut Hand,
        keep_alive: Option<Duration>,
        mut before_sleep: impl FnMut(),
    ) -> Option<Taken<T>> {
        let stay = keep_alive != Some(Duration::ZERO);
        loop {
            let Hand { from, seat } = hand;
            let ((next, more), spawn) = self.change(|roster| {
                let (next, ask) = roster.next(*from, stay, || seat.get_or_insert_with(Seat::here).clone());
                ((next, !roster.is_empty()), ask)
            });
            match next {
                Next::Run(item) => {
                    hand.from = From::Busy;
                    return Some(Taken { item, spawn, more });
                }
                Next::Exit => return None,
                Next::Search => {
                    self.search();
                    hand.from = From::Searching;
                }
                Next::Sleep => {
                    before_sleep();
                    hand.from = self.sleep(hand.seat.get_or_insert_with(Seat::here), keep_alive)?;
                }
            }
        }
    }

    /// Looks for work for a moment, without the lock.
    fn search(&self) {
        for round in 0..self.spins {
            for _ in 0..1 << round {
                spin_loop();
            }
            if self.found.load(Ordering::Relaxed) {
                return;
            }
        }
        for _ in 0..YIELDS {
            thread::yield_now();
            if self.found.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Sleeps in that seat, which is in the stack. `None` says that the thread is not counted any more.
    fn sleep(&self, seat: &Arc<Seat>, keep_alive: Option<Duration>) -> Option<From> {
        loop {
            if let Some(from) = seat.sleep(keep_alive) {
                return Some(from);
            }
            let mut roster = lock(&self.roster);
            // Promises are made under this lock: there is one now, or there will be none before the seat is gone.
            if let Some(from) = seat.promised() {
                return Some(from);
            }
            if roster.timed_out(seat) {
                return None;
            }
        }
    }

    /// A thread that was counted could not be spawned or vanished. Returns the jobs that nobody is left to run.
    #[must_use = "these jobs have to be answered"]
    pub(super) fn lost(&self, hand: &Hand) -> Vec<T> {
        self.change(|roster| roster.lost(hand.from)).0
    }

    /// Threads end when there is nothing to do. Later jobs get threads again.
    pub(super) fn close(&self) {
        let asleep = {
            let mut roster = lock(&self.roster);
            let asleep = roster.close();
            asleep.iter().for_each(|seat| seat.promise(From::Busy));
            asleep
        };
        asleep.iter().for_each(|seat| seat.wake());
    }

    /// To be called after `close`; `true` if the caller has to spawn a thread for what is queued.
    #[must_use = "a thread that is asked for has to come"]
    pub(super) fn halt(&self) -> bool {
        self.change(|roster| ((), roster.halt())).1
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.roster).is_empty()
    }

    pub(super) fn threads(&self) -> usize {
        lock(&self.roster).threads()
    }

    /// Changes the roster and answers what that asks for; `true` if the caller has to spawn a thread.
    fn change<R>(&self, change: impl FnOnce(&mut Roster<T, Arc<Seat>>) -> (R, Ask<Arc<Seat>>)) -> (R, bool) {
        let (result, ask) = {
            let mut roster = lock(&self.roster);
            let (result, ask) = change(&mut roster);
            if roster.is_searching() {
                self.found.store(!roster.is_empty(), Ordering::Relaxed);
            }
            if let Ask::Wake(seat) = &ask {
                seat.promise(From::Coming);
            }
            (result, ask)
        };
        if let Ask::Wake(seat) = &ask {
            seat.wake();
        }
        (result, ask == Ask::Spawn)
    }
}

#[cfg(all(test, tower_offload_loom))]
mod loom;
