use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::runtime::Handle;
use tokio::sync::{AcquireError, Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::{Left, Rejection, Stats, meter::Meter};

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
    slots: Arc<Semaphore>,
    phase: AtomicU8,
    /// Calls that were admitted and have not ended. Falls before their caller is woken.
    in_flight: AtomicUsize,
    /// Wakes `closed` when the gate is closed, and `drain` when the last call ends after that.
    changed: Notify,
    /// How long the call waited that started last, in nanoseconds: what a new one has to expect.
    last_wait: AtomicU64,
    meter: Meter,
}

/// A place in a pool's queue, held by a call until its first poll.
#[derive(Debug)]
pub(crate) struct Slot(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Gate {
    /// A gate for a pool of that name which lets `queue_capacity` calls wait to be started.
    ///
    /// The name labels metrics and log lines. A capacity over 2⁶¹ − 1, the most that tokio's semaphore counts, means that
    /// much.
    ///
    /// # Panics
    ///
    /// If `queue_capacity` is 0: no call could ever pass.
    pub fn new(name: impl Into<Arc<str>>, queue_capacity: usize) -> Self {
        assert!(queue_capacity > 0, "a pool with `queue_capacity` 0 admits no call: give it at least 1");
        let (name, capacity) = (name.into(), queue_capacity.min(Semaphore::MAX_PERMITS));
        Self {
            meter: Meter::new(&name),
            name,
            capacity,
            slots: Arc::new(Semaphore::new(capacity)),
            phase: AtomicU8::new(OPEN),
            in_flight: AtomicUsize::new(0),
            changed: Notify::new(),
            last_wait: AtomicU64::new(0),
        }
    }

    /// The pool's name, as it stands in metrics and log lines.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many calls may wait to be started.
    pub fn queue_capacity(&self) -> usize {
        self.capacity
    }

    /// What the pool has done so far and is doing now.
    pub fn stats(&self) -> Stats {
        let slots_taken = self.capacity.saturating_sub(self.slots.available_permits());
        Stats { in_flight: self.in_flight.load(SeqCst), slots_taken, ..self.meter.stats() }
    }

    /// From now on every new call is answered with [`Rejection::Closed`]. Calls that were admitted go on.
    pub fn close(&self) {
        let _ = self.phase.compare_exchange(OPEN, CLOSED, SeqCst, SeqCst);
        self.slots.close();
        self.changed.notify_waiters();
    }

    /// Closes the gate, and from now on a job that is run drops its call, answered [`Rejection::Closed`], instead of
    /// polling it. [`cancelled`](crate::offload::cancelled) turns true for work that is running.
    pub fn halt(&self) {
        self.phase.store(HALTED, SeqCst);
        self.slots.close();
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
        let ended = self.until(|| self.in_flight.load(SeqCst) == 0);
        let _ = tokio::time::timeout(deadline, ended).await;
        let stats = self.stats();
        self.halt();
        Left::of(&stats)
    }

    /// How long a new call has to expect to wait: as long as the one did that started last.
    pub fn expected_wait(&self) -> Duration {
        Duration::from_nanos(self.last_wait.load(SeqCst))
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Takes a place at once or not at all.
    pub(crate) fn try_slot(&self) -> Result<Slot, Rejection> {
        match self.slots.clone().try_acquire_owned() {
            Ok(permit) => Ok(Slot(permit)),
            Err(TryAcquireError::Closed) => Err(Rejection::Closed),
            Err(TryAcquireError::NoPermits) => Err(Rejection::Overloaded),
        }
    }

    /// Waits for a place, first come first served.
    pub(crate) async fn slot(&self) -> Result<Slot, Rejection> {
        let permit = self.slots.clone().acquire_owned().await;
        permit.map(Slot).map_err(|_: AcquireError| Rejection::Closed)
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
        self.in_flight.fetch_add(1, SeqCst);
        self.meter.queued();
    }

    /// A call is about to be polled for the first time.
    pub(crate) fn started(&self, waited: Duration) {
        self.last_wait.store(u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX), SeqCst);
        self.meter.started(waited);
    }

    /// An admitted call is over. Decrement, then look at the phase; `drain` sets the phase, then looks at the count: so
    /// one of the two sees the other.
    pub(crate) fn ended(&self) {
        if self.in_flight.fetch_sub(1, SeqCst) == 1 && self.is_closed() {
            self.changed.notify_waiters();
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
