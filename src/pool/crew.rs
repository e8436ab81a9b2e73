use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Priority, QueuePolicy,
    inbox::Inbox,
    queue::Waits,
    roster::{Ask, From, Limits, Next, Roster},
    seat::Seat,
};
use crate::sync::{AtomicBool, Mutex, Ordering, Padded, fence, lock, spin_loop, thread};

/// How a thread looks for work before it sleeps, in the shape of crossbeam's `Backoff`: some microseconds of spinning, each
/// round twice as long, then it offers its core to others a few times. Two wake-ups of threads are most of what a hop
/// costs, and a thread that is still awake needs none.
const SPINS: u32 = 6;
const YIELDS: u32 = if cfg!(tower_offload_loom) { 4 } else { 256 }; // loom counts each as a branch

/// A [`Roster`] that threads share: the queue of a pool, and the place where its threads wait.
///
/// All of the state is under one lock, nothing foreign runs under it, and threads are woken after it is free. Jobs are
/// generic, so that loom can drive it with numbers.
#[derive(Debug)]
pub(super) struct Crew<T> {
    roster: Padded<Mutex<Roster<T, Arc<Seat>>>>,
    /// New calls of normal priority that came while nobody wanted to know, if the policy is first in, first out.
    inbox: Padded<Inbox<T>>,
    /// Whether a new call has to be put into the roster at once. Written under its lock, when it changes.
    ///
    /// Invariant: while the inbox is not empty, a thread is busy, coming or searching, and looks there before it sleeps or
    /// ends; or this is set, and whoever filled the inbox is about to look after it. For he puts the call down, then looks
    /// here; and who sets this, then looks into the inbox: one of the two sees the other.
    wants_to_know: Padded<AtomicBool>,
    /// Whether a job came since the thread that searches began to; the lock has the truth.
    found: Padded<AtomicBool>,
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
pub(super) enum Step<T> {
    /// End. The thread is not counted any more.
    End,
    Run(Turn<T>),
    /// Put everything down, then [`Crew::sleep`].
    Sleep,
}

/// A job, for the thread that took it.
#[derive(Debug)]
pub(super) struct Turn<T> {
    pub(super) job: T,
    /// A thread that has to be spawned. It comes as [`Hand::coming`].
    pub(super) spawn: Option<Role>,
    /// Whether other jobs wait.
    pub(super) more: bool,
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
        let roster = Padded(Mutex::new(Roster::new(limits, policy)));
        let timed = policy != QueuePolicy::Fifo;
        Self {
            roster,
            inbox: Padded(Inbox::new()),
            wants_to_know: Padded(AtomicBool::new(true)),
            found: Padded(AtomicBool::new(false)),
            timed,
            spins: if spin { SPINS } else { 0 },
        }
    }

    /// Returns what thread the caller has to spawn, if it has to.
    #[must_use = "a thread that is asked for has to come"]
    pub(super) fn push(&self, item: T, priority: Priority, resumed: bool) -> Option<Role> {
        if resumed || priority != Priority::Normal || self.timed {
            return self.change(|roster| ((), roster.push(item, priority, resumed))).1;
        }
        if !self.wants_to_know.load(Ordering::Relaxed) {
            self.inbox.push(item);
            fence(Ordering::SeqCst);
            if !self.wants_to_know.load(Ordering::Relaxed) {
                return None;
            }
            return self.change(|roster| ((), self.receive(roster).call_if_any_waits())).1;
        }
        self.change(|roster| ((), self.receive(roster).push(item, priority, resumed))).1
    }

    /// Takes over what is in the inbox.
    fn receive<'a>(&self, roster: &'a mut Roster<T, Arc<Seat>>) -> &'a mut Roster<T, Arc<Seat>> {
        if self.inbox.has_any() {
            self.inbox.empty_into(roster.normal());
        }
        roster
    }

    /// Counts one more thread ahead of any work; `true` if the caller has to spawn it, as `Hand::hired`.
    pub(super) fn hire(&self) -> bool {
        lock(&self.roster).hire()
    }

    /// What the calling thread does next. `stay` says whether it may sleep until there is work.
    pub(super) fn step(&self, hand: &mut Hand<T>, stay: bool) -> Step<T> {
        loop {
            let Hand { from, role, shed, seat } = hand;
            let seat = || seat.get_or_insert_with(Seat::here).clone();
            let now = self.timed.then(Instant::now); // not under the lock; in a test this clock can be paused and set
            let ((next, more), spawn) = self.change(|roster| {
                if !self.timed && roster.normal().is_empty() {
                    self.receive(roster);
                }
                let (next, ask) = match role {
                    Role::Ordinary => roster.next(*from, stay, now, shed, seat),
                    Role::Reserved => roster.next_reserved(*from, stay, seat),
                };
                ((next, !roster.is_empty() || self.inbox.has_any()), ask)
            });
            match next {
                Next::Run(job) => {
                    hand.from = From::Busy;
                    return Step::Run(Turn { job, spawn, more });
                }
                Next::Exit => match spawn {
                    // A call came into the inbox at the last moment: the thread that it asks for is at hand.
                    Some(role) => (hand.from, hand.role) = (From::Coming, role),
                    None => {
                        self.inbox.shrink();
                        return Step::End;
                    }
                },
                Next::Search => {
                    self.search();
                    hand.from = From::Searching;
                }
                Next::Sleep => {
                    self.inbox.shrink();
                    return Step::Sleep;
                }
            }
        }
    }

    /// A thread that was asked for is here, and has something to do before its first step: if a job waits, others may be
    /// asked for meanwhile. Returns what thread the caller has to spawn.
    #[must_use = "a thread that is asked for has to come"]
    pub(super) fn arrive(&self, hand: &mut Hand<T>) -> Option<Role> {
        let from = std::mem::replace(&mut hand.from, From::Busy);
        self.change(|roster| ((), roster.arrive(from, hand.role == Role::Reserved))).1
    }

    /// Looks for work for a moment, without the lock.
    fn search(&self) {
        let found = || self.found.load(Ordering::Relaxed) || self.inbox.has_any();
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

    /// Sleeps until there is work or, for a thread over the minimum, `keep_alive` (`None`: for ever) has passed. `false` says
    /// that the thread has to end and is not counted any more.
    pub(super) fn sleep(&self, hand: &mut Hand<T>, keep_alive: Option<Duration>) -> bool {
        let seat = hand.seat.get_or_insert_with(Seat::here);
        let mut at_most = keep_alive;
        loop {
            if let Some(from) = seat.sleep(at_most) {
                hand.from = from;
                return true;
            }
            let mut roster = lock(&self.roster);
            // Promises are made under this lock: there is one now, or there will be none before the seat is gone.
            if let Some(from) = seat.promised() {
                hand.from = from;
                return true;
            }
            if roster.timed_out(seat) {
                return false;
            }
            at_most = None; // one of those that stay
        }
    }

    /// A thread that was counted could not be spawned or vanished. Returns the jobs that nobody is left to run.
    #[must_use = "these jobs have to be answered"]
    pub(super) fn lost(&self, hand: &Hand<T>) -> Vec<T> {
        let (left, ask) = {
            let mut roster = lock(&self.roster);
            match hand.role {
                Role::Ordinary => roster.lost(hand.from),
                Role::Reserved => roster.lost_reserved(hand.from),
            }
            // First this, then the inbox; and a new thread is not asked for again and again, if there are none to be had.
            self.publish(&roster);
            let (left, ask) = self.receive(&mut roster).make_up();
            self.publish(&roster);
            promise(&ask);
            (left, ask)
        };
        if let Ask::Wake(seat) = ask {
            seat.wake();
        }
        left
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
        !self.inbox.has_any() && lock(&self.roster).is_empty()
    }

    /// For how long the oldest new call has waited.
    pub(super) fn longest_wait(&self) -> Duration {
        let oldest = [lock(&self.roster).oldest(), self.inbox.oldest()].into_iter().flatten().min();
        oldest.map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(super) fn threads(&self) -> usize {
        lock(&self.roster).threads()
    }

    /// Says whether new calls are to be put into the roster at once. `true` if that is new: then the inbox is to be looked
    /// into, for whoever put a call there just now may not have seen it.
    fn publish(&self, roster: &Roster<T, Arc<Seat>>) -> bool {
        let wants_to_know = roster.wants_to_know();
        if self.wants_to_know.load(Ordering::Relaxed) == wants_to_know {
            return false;
        }
        self.wants_to_know.store(wants_to_know, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        wants_to_know
    }

    /// Changes the roster and answers what that asks for. Returns what thread the caller has to spawn.
    fn change<R>(&self, change: impl FnOnce(&mut Roster<T, Arc<Seat>>) -> (R, Ask<Arc<Seat>>)) -> (R, Option<Role>) {
        let (result, ask) = {
            let mut roster = lock(&self.roster);
            let (result, mut ask) = change(&mut roster);
            if roster.is_searching() {
                self.found.store(!roster.is_empty(), Ordering::Relaxed);
            }
            if self.publish(&roster) && self.inbox.has_any() {
                debug_assert!(matches!(ask, Ask::Nothing), "a thread is asked for, and another one is wanted");
                ask = self.receive(&mut roster).call_if_any_waits();
                self.publish(&roster);
            }
            promise(&ask);
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

/// Before the lock is free.
fn promise(ask: &Ask<Arc<Seat>>) {
    if let Ask::Wake(seat) = ask {
        seat.promise(From::Coming);
    }
}

#[cfg(all(test, tower_offload_loom))]
mod loom;
#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
