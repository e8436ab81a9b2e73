use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{
            AtomicU8, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
};

use super::{Left, Pool, Priority, Rejection, Stats, call::contained, meter::Meter, slots::Slots};
use crate::sync::Padded;

/// How many [`Priority::Release`] calls may wait to be started. They give back what others wait for, so there are
/// seldom more of them at once than threads that hold something.
const RELEASE_CAPACITY: usize = 64;

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const HALTED: u8 = 2;

/// The front door of a [`Pool`](super::Pool): its name, its bound, its counters, and whether it is open.
///
/// Every pool owns one. A call takes a place in the queue here before it is handed to the pool, and gives it back when
/// it is polled for the first time; so every pool is bounded, measured and can be shut down, however it runs its jobs.
#[derive(Debug)]
pub struct Gate {
    name: Arc<str>,
    capacity: usize,
    slots: Slots,
    /// Those of [`Priority::Release`]: they never wait for the others.
    release_slots: Slots,
    phase: AtomicU8,
    /// Wakes `closed` when the gate is closed, and `drain` when the last call ends after that.
    changed: Notify,
    /// How long the call waited that started last, in whole milliseconds: what a new one has to expect. Written only when
    /// it changes, so that the threads do not fight over it while nobody waits.
    last_wait: Padded<AtomicU64>,
    meter: Meter,
}

/// A place in a pool's queue, not yet taken by a call. Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    /// `None` once it is spent.
    pool: Option<Arc<dyn Pool>>,
    places: Places,
}

/// Of which places in the queue a slot is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Places {
    Ordinary,
    Release,
}

impl Places {
    fn of(priority: Priority) -> Self {
        if priority == Priority::Release { Self::Release } else { Self::Ordinary }
    }
}

impl Slot {
    /// Takes a place at once or not at all.
    ///
    /// A [`Priority::Low`] call gets none of the second half: so it is refused before others are.
    pub(crate) fn try_take(pool: &Arc<dyn Pool>, priority: Priority) -> Result<Self, Rejection> {
        pool.gate().try_take_slot(priority).map(|places| Self { pool: Some(pool.clone()), places })
    }

    /// As `try_take`, and counts a rejection.
    pub(crate) fn claim(pool: Arc<dyn Pool>, priority: Priority) -> Result<Self, Rejection> {
        match pool.gate().try_take_slot(priority) {
            Ok(places) => Ok(Self { pool: Some(pool), places }),
            Err(rejection) => {
                pool.gate().meter().rejected(rejection);
                Err(rejection)
            }
        }
    }

    /// Waits for a place, first come first served.
    pub(crate) async fn take(pool: &Arc<dyn Pool>, priority: Priority) -> Result<Self, Rejection> {
        let places = Places::of(priority);
        let slots = pool.gate().slots(places);
        let mut coming = Coming { slots, place: slots.wait()?, over: false };
        let came = (&mut coming.place).await;
        coming.over = true;
        match came {
            Ok(()) => Ok(Self { pool: Some(pool.clone()), places }),
            Err(_) => Err(Rejection::Closed),
        }
    }

    /// The place goes to a call, which says [`Gate::free_slot`] when it leaves the queue.
    pub(crate) fn spend(mut self) -> (Arc<dyn Pool>, Places) {
        (self.pool.take().expect("a slot has its pool until it is spent or dropped"), self.places)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.gate().free_slot(self.places);
        }
    }
}

/// A place that is waited for, and may have come when the wait is given up.
struct Coming<'a> {
    /// The wait ended as it should.
    over: bool,
    slots: &'a Slots,
    place: oneshot::Receiver<()>,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        self.place.close();
        if self.place.try_recv().is_ok() {
            self.slots.give();
        } else {
            self.slots.left();
        }
    }
}

impl Gate {
    /// A gate for a pool of that name which lets `queue_capacity` calls wait to be started.
    ///
    /// The name labels metrics and log lines.
    ///
    /// # Panics
    ///
    /// If `queue_capacity` is 0: no call could ever pass.
    pub fn new(name: impl Into<Arc<str>>, queue_capacity: usize) -> Self {
        assert!(queue_capacity > 0, "a pool with `queue_capacity` 0 admits no call: give it at least 1");
        let (name, capacity) = (name.into(), queue_capacity);
        Self {
            meter: Meter::new(&name),
            name,
            capacity,
            slots: Slots::new(capacity),
            release_slots: Slots::new(RELEASE_CAPACITY),
            phase: AtomicU8::new(OPEN),
            changed: Notify::new(),
            last_wait: Padded(AtomicU64::new(0)),
        }
    }

    /// The pool's name, as it stands in metrics and log lines.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many calls may wait to be started; besides these, 64 of [`Priority::Release`].
    pub fn queue_capacity(&self) -> usize {
        self.capacity
    }

    /// What the pool has done so far and is doing now.
    pub fn stats(&self) -> Stats {
        Stats { slots_taken: self.slots.taken() + self.release_slots.taken(), ..self.meter.stats() }
    }

    /// From now on every new call is answered with [`Rejection::Closed`]. Calls that were admitted go on.
    pub fn close(&self) {
        let _ = self.phase.compare_exchange(OPEN, CLOSED, SeqCst, SeqCst);
        self.close_slots();
        self.changed.notify_waiters();
    }

    /// Closes the gate, and from now on a job that is run drops its call, answered [`Rejection::Closed`], instead of
    /// polling it. [`cancelled`](crate::pool::cancelled) turns true for work that is running.
    pub fn halt(&self) {
        self.phase.store(HALTED, SeqCst);
        self.close_slots();
        self.changed.notify_waiters();
    }

    /// `true` once [`close`](Self::close) or [`halt`](Self::halt) was called.
    pub fn is_closed(&self) -> bool {
        self.phase.load(SeqCst) != OPEN
    }

    /// `true` once [`halt`](Self::halt) was called.
    pub fn is_halted(&self) -> bool {
        self.phase.load(SeqCst) == HALTED
    }

    /// Closes the gate, waits until every admitted call has ended, at most for `deadline`, then halts it.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, the gate stays closed and is not halted.
    pub async fn drain(&self, deadline: Duration) -> Left {
        self.close();
        assert!(
            Handle::try_current().is_ok(),
            "a pool's shutdown needs tokio's timer: await it inside `#[tokio::main]` or `runtime.block_on(..)`"
        );
        let ended = self.until(|| self.meter.in_flight() == 0);
        let _ = tokio::time::timeout(deadline, ended).await;
        let stats = self.stats();
        self.halt();
        Left::of(&stats)
    }

    /// How long the call waited that started last. [`Pool::expected_wait`] knows more, where a pool can see its queue.
    pub fn expected_wait(&self) -> Duration {
        Duration::from_millis(self.last_wait.load(Relaxed))
    }

    fn try_take_slot(&self, priority: Priority) -> Result<Places, Rejection> {
        if self.is_closed() {
            return Err(Rejection::Closed);
        }
        let places = Places::of(priority);
        let crowded = priority == Priority::Low && self.slots.taken() >= self.capacity.div_ceil(2);
        if !crowded && self.slots(places).try_take() { Ok(places) } else { Err(Rejection::Overloaded) }
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// A call leaves the queue.
    pub(crate) fn free_slot(&self, places: Places) {
        self.slots(places).give();
    }

    fn slots(&self, places: Places) -> &Slots {
        match places {
            Places::Ordinary => &self.slots,
            Places::Release => &self.release_slots,
        }
    }

    fn close_slots(&self) {
        self.slots.close();
        self.release_slots.close();
    }

    /// Waits until the gate is closed.
    pub(crate) async fn closed(&self) {
        self.until(|| self.is_closed()).await;
    }

    /// Waits for a condition that `changed` tells of.
    async fn until(&self, condition: impl Fn() -> bool) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable(); // before the look: a change between the two is not missed
            if condition() {
                return;
            }
            changed.await;
        }
    }

    pub(crate) fn admitted(&self) {
        self.meter.admitted();
    }

    /// A call is about to be polled for the first time.
    pub(crate) fn started(&self, waited: Duration) {
        let milliseconds = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        if self.last_wait.load(Relaxed) != milliseconds {
            self.last_wait.store(milliseconds, Relaxed);
        }
        self.meter.started(waited);
    }

    /// An admitted call is over. Decrement, then look at the phase; `drain` sets the phase, then looks at the count: so
    /// one of the two sees the other.
    pub(crate) fn ended(&self) {
        self.meter.ended();
        if self.is_closed() && self.meter.in_flight() == 0 {
            // Whoever waits in `drain` is woken by a waker that is foreign, and this is the middle of a call's end.
            contained(|| self.changed.notify_waiters());
        }
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_new_call_has_to_expect_the_wait_of_the_one_that_started_last() {
        let gate = Gate::new("waits", 1);
        assert_eq!(gate.expected_wait(), Duration::ZERO);
        for milliseconds in [1100, 20] {
            gate.admitted();
            gate.started(Duration::from_millis(milliseconds));
            assert_eq!(gate.expected_wait(), Duration::from_millis(milliseconds));
        }
    }
}
