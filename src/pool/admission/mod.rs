#[cfg(all(test, not(tower_offload_loom)))]
mod tests;

use std::{
    pin::pin,
    sync::{
        Arc, TryLockError,
        atomic::{
            AtomicU8, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use tokio::{runtime::Handle, sync::Notify, time::Instant};

use super::{
    error::CallError,
    key::CallKey,
    metrics::Metrics,
    nested::NestedWaits,
    overload::{Arrival, Change, Fate, OverloadDetector},
    permits::PermitKind,
    policy::QueuePolicy,
    priority::Priority,
    semaphore::Semaphore,
    stats::{PoolShutdownReport, PoolStats},
};
use crate::{
    panic::ignore_panic,
    sync::{AtomicBool, Mutex, Padded, lock, set_flag},
};

/// Number of calls that may wait for their first poll by default: a burst that a machine can work
/// off, at some hundred kilobytes of memory.
pub(super) const DEFAULT_QUEUE_CAPACITY: usize = 1024;

/// Number of times that more calls may wait during an overload if the key or the group of each
/// further one has no other call in the queue. A few busy keys then do not lock out others. A
/// service with one key per client would be without protection if there were no such bound.
const GROUPS_PER_PERMIT: usize = 8;

/// Number of times longer than the limit of an overload that a queue is long: then every eighth
/// call is enough to see whether it grows, so that the others do not write to shared memory.
const LONG_QUEUE: usize = 8;

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const HALTED: u8 = 2;

/// Admission control of a [`Pool`](super::Pool): its name, its bound, its counters, and whether it
/// accepts calls.
///
/// Every pool owns one. A call acquires a permit here before it is passed to the pool, and releases
/// it at its first poll. Every pool is therefore bounded, measured and shut down in the same way,
/// however it runs its calls.
#[derive(Debug)]
pub struct Admission {
    name: Arc<str>,
    capacity: usize,
    /// Maximum number of threads that run calls. `None` if it is not known.
    max_threads: Option<usize>,
    semaphore: Semaphore,
    overload: Option<Overload>,
    /// `OPEN`, `CLOSED` or `HALTED`. It only increases.
    phase: AtomicU8,
    /// Notified when `phase` changes, and when the last call ends in a closed pool.
    changed: Notify,
    /// Queue wait of the call that started last, in whole milliseconds. Written only when it
    /// changes, so that threads do not contend for it while no call waits.
    last_wait: Padded<AtomicU64>,
    metrics: Metrics,
    /// Largest idle time that was returned, in nanoseconds. A thread that stops after the clock was
    /// read and before its time is read makes the result too small.
    idle: AtomicU64,
    nested_waits: NestedWaits,
}

/// The part of an admission that detects overload.
#[derive(Debug)]
struct Overload {
    /// Number of calls that may wait during an overload.
    limit: usize,
    /// `true` if an arrival that finds fewer than `limit` calls changes nothing. Written under the
    /// lock of `detector`. A reader that sees an old value takes the lock once too often, or leaves
    /// one arrival out.
    is_idle: AtomicBool,
    /// `true` while the pool is overloaded. Written under the lock of `detector`.
    is_overloaded: AtomicBool,
    /// `true` if the queue has to be cut to `limit` because the pool has become overloaded.
    has_excess: AtomicBool,
    detector: Mutex<OverloadDetector>,
}

impl Overload {
    fn new(threads: usize) -> Self {
        let detector = OverloadDetector::new(threads);
        Self {
            limit: detector.limit(),
            is_idle: AtomicBool::new(true),
            is_overloaded: AtomicBool::new(false),
            has_excess: AtomicBool::new(false),
            detector: Mutex::new(detector),
        }
    }
}

impl Admission {
    /// Creates the admission control of a pool in which at most `queue_capacity` calls wait to be
    /// started. The name labels metrics and events.
    ///
    /// # Panics
    ///
    /// Panics if `queue_capacity` is 0, because such a pool would admit no call.
    pub fn new(name: impl Into<Arc<str>>, queue_capacity: usize) -> Self {
        assert!(queue_capacity > 0, "a pool with `queue_capacity` 0 admits no call: give it at least 1");
        let name = name.into();
        Self {
            metrics: Metrics::new(&name),
            name,
            capacity: queue_capacity,
            max_threads: None,
            semaphore: Semaphore::with_shares(queue_capacity),
            overload: None,
            phase: AtomicU8::new(OPEN),
            changed: Notify::new(),
            last_wait: Padded(AtomicU64::new(0)),
            idle: AtomicU64::new(0),
            nested_waits: NestedWaits::default(),
        }
    }

    /// Sets the maximum number of threads, and detects overload if the policy is
    /// [`QueuePolicy::AcceptBursts`](super::QueuePolicy::AcceptBursts).
    pub(super) fn with_policy(mut self, policy: QueuePolicy, threads: usize) -> Self {
        self.max_threads = Some(threads);
        self.metrics.set_max_threads(threads);
        // A shorter queue never stands.
        let overload = (policy == QueuePolicy::AcceptBursts).then(|| Overload::new(threads));
        self.overload = overload.filter(|overload| overload.limit < self.capacity);
        self
    }

    /// Returns the name of the pool, as used in metrics and events.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the maximum number of calls that wait to be started.
    pub fn queue_capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the counters and gauges of the pool.
    pub fn stats(&self) -> PoolStats {
        let threads = self.max_threads.map_or(0, |threads| u32::try_from(threads).unwrap_or(u32::MAX));
        let (busy_time, age) = self.metrics.busy_time_and_age();
        let idle = age.saturating_mul(threads).saturating_sub(busy_time);
        let idle = u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX);
        let idle = self.idle.fetch_max(idle, Relaxed).max(idle);
        let idle_time = Duration::from_nanos(idle);
        PoolStats { permits_in_use: self.semaphore.in_use().total(), busy_time, idle_time, ..self.metrics.stats() }
    }

    /// Returns the queue wait of the call that started last.
    /// [`Pool::expected_wait`](super::Pool::expected_wait) is more precise if the pool can inspect
    /// its queue.
    pub fn expected_wait(&self) -> Duration {
        Duration::from_millis(self.last_wait.load(Relaxed))
    }

    /// Rejects every new call with [`CallError::Closed`]. Admitted calls continue.
    pub fn close(&self) {
        let _ = self.phase.compare_exchange(OPEN, CLOSED, SeqCst, SeqCst);
        self.on_phase_change();
    }

    /// Closes the pool and stops polling: a runnable that is run from now on drops its call, which
    /// fails with [`CallError::Closed`]. [`cancelled`](super::cancelled) returns `true` in work
    /// that is running.
    pub fn halt(&self) {
        self.phase.store(HALTED, SeqCst);
        self.on_phase_change();
    }

    /// Ends the waits for a permit and for `changed`. The wakers are user code, and this also runs
    /// when the last handle of a pool is dropped.
    fn on_phase_change(&self) {
        self.semaphore.close();
        ignore_panic(|| self.changed.notify_waiters());
    }

    /// Returns `true` once [`close`](Self::close) or [`halt`](Self::halt) was called.
    pub fn is_closed(&self) -> bool {
        self.phase.load(SeqCst) != OPEN
    }

    /// Returns `true` once [`halt`](Self::halt) was called.
    #[inline]
    pub fn is_halted(&self) -> bool {
        self.phase.load(SeqCst) == HALTED
    }

    /// Closes the pool, waits up to `timeout` until every admitted call has ended, and then halts
    /// it.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped early, the pool remains closed and is not halted.
    pub async fn shutdown(&self, timeout: Duration) -> PoolShutdownReport {
        self.close();
        assert!(
            Handle::try_current().is_ok(),
            "a pool's shutdown needs tokio's timer: await it inside `#[tokio::main]` or `runtime.block_on(..)`"
        );
        let drained = self.wait_until(|| self.metrics.in_flight() == 0);
        let _ = tokio::time::timeout(timeout, drained).await;
        let stats = self.stats();
        self.halt();
        PoolShutdownReport::new(&stats)
    }

    #[inline]
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    #[inline]
    pub(super) fn nested_waits(&self) -> &NestedWaits {
        &self.nested_waits
    }

    /// Waits until the pool is closed.
    pub(crate) async fn closed(&self) {
        self.wait_until(|| self.is_closed()).await;
    }

    /// Acquires a permit for the queue, if one is available. [`Priority::Low`] calls can use only
    /// half of the permits, so they are rejected before others. A call with a key is rejected with
    /// [`CallError::KeyLimited`] if its key has used its share (see [`pool`](super#keys)). An
    /// overload has no effect on a call with an exempt permit, nor the call on an overload.
    ///
    /// The caller must [`report`](Self::report) the change, once nothing is lost if that panics.
    #[inline]
    pub(super) fn try_acquire(
        &self,
        priority: Priority,
        key: Option<CallKey>,
        kind: PermitKind,
    ) -> (Result<(), CallError>, Change) {
        if self.is_closed() {
            return (Err(CallError::Closed), Change::None);
        }
        let is_crowded = priority == Priority::Low && self.semaphore.is_used(kind, 2);
        let acquired = match is_crowded {
            true => Err(CallError::Overloaded),
            false => self.semaphore.try_acquire_share(kind, key),
        };
        let Some(overload) = self.overload.as_ref().filter(|_| kind == PermitKind::Limited) else {
            return (acquired, Change::None);
        };
        let fate = match acquired {
            Ok(()) => Fate::Admitted,
            Err(CallError::KeyLimited) => Fate::RejectedEarly,
            Err(_) if is_crowded => Fate::RejectedEarly,
            // Exempt calls fill the queue, which says nothing about those that an overload
            // concerns.
            Err(_) if !self.semaphore.is_limit_reached() => return (acquired, Change::None),
            Err(_) => Fate::Rejected,
        };
        (acquired, self.observe(overload, fate))
    }

    /// Records an arrival, if it may change something.
    #[inline]
    fn observe(&self, overload: &Overload, fate: Fate) -> Change {
        // An admitted call finds itself in the queue.
        let itself = usize::from(fate == Fate::Admitted);
        let limit = overload.limit.saturating_add(itself);
        let is_one_of_many = || self.semaphore.is_one_of_many(overload.limit.saturating_mul(LONG_QUEUE));
        if fate == Fate::Admitted && !overload.is_overloaded.load(Relaxed) && is_one_of_many() {
            return Change::None;
        }
        if overload.is_idle.load(Relaxed) && !self.semaphore.is_in_use(|in_use| in_use.limited() >= limit) {
            return Change::None;
        }
        self.observe_arrival(overload, fate)
    }

    /// Records an arrival, and changes the number of calls that may wait if the pool becomes
    /// overloaded or recovers.
    #[inline(never)] // Keeps it out of the path of calls that change nothing.
    fn observe_arrival(&self, overload: &Overload, fate: Fate) -> Change {
        let mut detector = match overload.detector.try_lock() {
            Ok(detector) => detector,
            // Many calls arrive, so one of them makes no difference. In an overload, the share of
            // the admitted ones counts.
            Err(TryLockError::WouldBlock) if fate == Fate::Admitted && !overload.is_overloaded.load(Relaxed) => {
                return Change::None;
            }
            Err(_) => lock(&overload.detector),
        };
        // An admitted call finds itself in the queue.
        let waiting = self.semaphore.refresh_in_use().limited() - usize::from(fate == Fate::Admitted);
        let arrival = Arrival { waiting, started: self.semaphore.limited_released(), fate };
        let change = detector.observe(arrival, Instant::now);
        set_flag(&overload.is_idle, detector.is_idle(), Relaxed);
        set_flag(&overload.is_overloaded, detector.is_overloaded(), SeqCst);
        match change {
            Change::None => {}
            Change::Overloaded | Change::ProbeFailed => {
                let first_limit = overload.limit.saturating_mul(GROUPS_PER_PERMIT);
                self.semaphore.set_limit(overload.limit, first_limit.min(self.capacity));
                overload.has_excess.store(true, Relaxed);
            }
            Change::ProbeStarted | Change::Recovered => {
                self.semaphore.set_limit(self.capacity, self.capacity);
                overload.has_excess.store(false, Relaxed);
            }
        }
        change
    }

    /// Reports a change that [`try_acquire`](Self::try_acquire) has made. Waiters, recorders and
    /// subscribers are user code, which may panic.
    #[inline]
    pub(super) fn report(&self, change: Change) {
        if change != Change::None {
            self.report_change(change);
        }
    }

    #[cold]
    fn report_change(&self, change: Change) {
        let Some(overload) = &self.overload else { return };
        if matches!(change, Change::ProbeStarted | Change::Recovered) {
            self.semaphore.serve_waiters();
        }
        if matches!(change, Change::Overloaded | Change::Recovered) {
            self.metrics.overload_changed(change == Change::Overloaded, || overload.is_overloaded.load(SeqCst));
        }
    }

    /// Returns the number of calls that are not exempt to which the queue has to be cut, once after
    /// the pool has become overloaded.
    pub(super) fn take_excess(&self) -> Option<usize> {
        let overload = self.overload.as_ref()?;
        let has_excess = overload.has_excess.load(Relaxed) && overload.has_excess.swap(false, Relaxed);
        has_excess.then_some(overload.limit)
    }

    /// Returns `true` if a call without a key, or with one that has no permit, could get one.
    pub(crate) fn has_room(&self) -> bool {
        !self.semaphore.is_used(PermitKind::Limited, 1)
    }

    /// Waits for a permit for the queue. Keys take turns, calls of a key are served in order of
    /// arrival, and a key that has used its share waits until it has less.
    pub(super) async fn acquire(&self, kind: PermitKind, key: Option<CallKey>) -> Result<(), CallError> {
        self.semaphore.acquire(kind, key).await.map_err(|_| CallError::Closed)
    }

    /// Releases a permit for the queue that was acquired like this.
    #[inline]
    pub(super) fn release(&self, kind: PermitKind, key: Option<CallKey>) {
        self.semaphore.release_share(kind, key);
    }

    /// Records that a call is about to be polled for the first time. It has waited in the queue for
    /// `waited` nanoseconds, and before that for capacity for `delay`.
    pub(super) fn on_start(&self, waited: u64, delay: u64) {
        let milliseconds = waited / 1_000_000;
        if self.last_wait.load(Relaxed) != milliseconds {
            self.last_wait.store(milliseconds, Relaxed);
        }
        self.metrics.started(waited, delay);
    }

    /// Records that an admitted call has ended: its work has ended, and everything that it held is
    /// released. Called before the caller is notified. `run_time` is the total of the call's polls
    /// in nanoseconds, or `None` if it was never polled. With `ends_poll`, this also ends its last
    /// poll, which is not recorded yet.
    ///
    /// This thread counts the end and then loads the phase. `shutdown` stores the phase and then
    /// loads the count. At least one of them sees the other's write.
    pub(super) fn on_complete(&self, run_time: Option<u64>, ends_poll: bool) {
        self.metrics.ended(run_time, ends_poll);
        if self.is_closed() && self.metrics.in_flight() == 0 {
            // Wakes tasks that wait in `shutdown`. Their wakers are user code.
            ignore_panic(|| self.changed.notify_waiters());
        }
    }

    /// Waits for a condition whose changes `changed` reports.
    async fn wait_until(&self, condition: impl Fn() -> bool) {
        loop {
            let mut changed = pin!(self.changed.notified());
            // Enabled before the check, so that a change between the check and the wait is not
            // lost.
            changed.as_mut().enable();
            if condition() {
                return;
            }
            changed.await;
        }
    }
}
