use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Priority, QueuePolicy,
    queue::Waits,
    roster::{Ask, From, Limits, Next, Roster},
    seat::Seat,
};
use crate::sync::{AtomicUsize, Mutex, Ordering, lock, spin_loop, thread};

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
    roster: Mutex<Roster<T, Arc<Seat>>>,
    /// How many jobs wait, for the thread that searches; the lock has the truth.
    waiting: AtomicUsize,
    /// Whether the policy goes by the clock. First in, first out does not, and no clock is read for it.
    timed: bool,
    spins: u32,
}

/// What a thread of the crew keeps to itself.
#[derive(Debug)]
pub(super) struct Hand<T> {
    from: From,
    role: Role,
    /// The jobs that the policy gave up when this thread last took one. The thread has to answer them.
    pub(super) shed: Vec<T>,
    /// Made when the thread first goes to sleep.
    seat: Option<Arc<Seat>>,
}

/// What a thread of the crew is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Ordinary,
    /// Runs release calls only.
    Reserved,
}

/// What a thread does next.
#[derive(Debug)]
pub(super) struct Turn<T> {
    /// `None` if there was nothing but what stands in [`Hand::shed`].
    pub(super) job: Option<T>,
    /// A thread that has to be spawned. It comes as [`Hand::coming`].
    pub(super) spawn: Option<Role>,
}

impl<T> Hand<T> {
    /// A thread that was counted by `hire`.
    pub(super) fn hired() -> Self {
        Self { from: From::Busy, ..Self::coming(Role::Ordinary) }
    }

    /// A thread that was asked for.
    pub(super) fn coming(role: Role) -> Self {
        Self { from: From::Coming, role, shed: Vec::new(), seat: None }
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }
}

impl<T: Waits> Crew<T> {
    /// `spin` says whether a thread that looks for work may burn a core meanwhile: not where there is only one.
    pub(super) fn new(limits: Limits, policy: QueuePolicy, spin: bool) -> Self {
        let roster = Mutex::new(Roster::new(limits, policy));
        let timed = policy != QueuePolicy::Fifo;
        Self { roster, waiting: AtomicUsize::new(0), timed, spins: if spin { SPINS } else { 0 } }
    }

    /// Returns what thread the caller has to spawn, if it has to.
    #[must_use = "a thread that is asked for has to come"]
    pub(super) fn push(&self, item: T, priority: Priority, resumed: bool) -> Option<Role> {
        self.change(|roster| ((), roster.push(item, priority, resumed))).1
    }

    /// Counts one more thread ahead of any work; `true` if the caller has to spawn it, as `Hand::hired`.
    pub(super) fn hire(&self) -> bool {
        lock(&self.roster).hire()
    }

    /// The next job for the calling thread, which waits for one for `keep_alive` (`None`: for ever) if need be. `None` says
    /// that the thread has to end and is not counted any more.
    pub(super) fn next(&self, hand: &mut Hand<T>, keep_alive: Option<Duration>) -> Option<Turn<T>> {
        let stay = keep_alive != Some(Duration::ZERO);
        loop {
            let Hand { from, role, shed, seat } = hand;
            let seat = || seat.get_or_insert_with(Seat::here).clone();
            let now = self.timed.then(Instant::now); // not under the lock; in a test this clock can be paused and set
            let (next, spawn) = self.change(|roster| match role {
                Role::Ordinary => roster.next(*from, stay, now, shed, seat),
                Role::Reserved => roster.next_reserved(*from, stay, seat),
            });
            match next {
                Next::Run(item) => {
                    hand.from = From::Busy;
                    return Some(Turn { job: Some(item), spawn });
                }
                Next::Shed => {
                    hand.from = From::Busy;
                    return Some(Turn { job: None, spawn });
                }
                Next::Exit => return None,
                Next::Search => {
                    self.search();
                    hand.from = From::Searching;
                }
                Next::Sleep => hand.from = self.sleep(hand.seat.get_or_insert_with(Seat::here), keep_alive)?,
            }
        }
    }

    /// Looks for work for a moment, without the lock.
    fn search(&self) {
        let found = || self.waiting.load(Ordering::Relaxed) > 0;
        for round in 0..self.spins {
            for _ in 0..1 << round {
                spin_loop();
            }
            if found() {
                return;
            }
        }
        for _ in 0..YIELDS {
            thread::yield_now();
            if found() {
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
    pub(super) fn lost(&self, hand: &Hand<T>) -> Vec<T> {
        self.change(|roster| match hand.role {
            Role::Ordinary => roster.lost(hand.from),
            Role::Reserved => roster.lost_reserved(hand.from),
        })
        .0
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

    /// To be called after `close`. Returns what thread the caller has to spawn for what is queued, if any is.
    #[must_use = "a thread that is asked for has to come"]
    pub(super) fn halt(&self) -> Option<Role> {
        self.change(|roster| ((), roster.halt())).1
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.roster).is_empty()
    }

    /// For how long the oldest new call has waited.
    pub(super) fn longest_wait(&self) -> Duration {
        let oldest = lock(&self.roster).oldest();
        oldest.map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(super) fn threads(&self) -> usize {
        lock(&self.roster).threads()
    }

    /// Changes the roster and answers what that asks for. Returns what thread the caller has to spawn.
    fn change<R>(&self, change: impl FnOnce(&mut Roster<T, Arc<Seat>>) -> (R, Ask<Arc<Seat>>)) -> (R, Option<Role>) {
        let (result, ask) = {
            let mut roster = lock(&self.roster);
            let (result, ask) = change(&mut roster);
            self.waiting.store(roster.len(), Ordering::Relaxed);
            if let Ask::Wake(seat) = &ask {
                seat.promise(From::Coming);
            }
            (result, ask)
        };
        let spawn = match ask {
            Ask::Nothing => None,
            Ask::Spawn => Some(Role::Ordinary),
            Ask::SpawnReserved => Some(Role::Reserved),
            Ask::Wake(seat) => {
                seat.wake();
                None
            }
        };
        (result, spawn)
    }
}

#[cfg(all(test, tower_offload_loom))]
mod loom;
#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
