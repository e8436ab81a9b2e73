//! Counts the events of a pool: always in atomics, for [`PoolStats`]; with feature `metrics` also
//! in the installed recorder; with feature `tracing` as one event for each call that ended badly.

#[cfg(feature = "metrics")]
mod recorder;

use std::{
    any::Any,
    cell::Cell,
    sync::{
        Arc,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    busy::BusyTime,
    error::{CallError, CancelReason},
    stall::Observation,
    stats::PoolStats,
    time::{self, PoolTime},
};
use crate::{
    panic::ignore_panic,
    sync::{Mutex, lock},
};

/// Number of stripes, a power of two. It keeps a handful of busy threads apart.
const STRIPES: usize = 16;

#[derive(Debug)]
pub(crate) struct Metrics {
    #[cfg(feature = "tracing")]
    pool: Arc<str>,
    #[cfg(feature = "tracing")]
    overload: OverloadWarning,
    #[cfg(feature = "tracing")]
    overload_change: OverloadWarning,
    /// `true` if an overload was reported whose end was not.
    #[cfg(feature = "tracing")]
    has_warned: std::sync::atomic::AtomicBool,
    /// Each thread counts in one stripe, and readers add the stripes up. Counters shared by all
    /// threads would be passed between cores a dozen times per call, which took a third of the cost
    /// of a call at full load.
    stripes: Box<[Stripe; STRIPES]>,
    /// Time at which the pool was created.
    created: PoolTime,
    stall: Mutex<Stall>,
    /// Number of times that the pool became overloaded.
    overloads: AtomicU64,
    #[cfg(feature = "metrics")]
    recorder: recorder::Recorder,
}

/// The stalls that the monitor of the pool has found. Written by the monitor only.
#[derive(Debug, Default)]
struct Stall {
    /// Number of times that the pool was stalled.
    count: u64,
    /// Last progress of a pool that is stalled.
    since: Option<Instant>,
}

/// Counters that some of the threads share. They only increase, so that each step of a call updates
/// few of them; gauges are computed as differences. The alignment is two cache lines of 64 bytes,
/// since processors prefetch pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe {
    rejected: AtomicU64,
    /// Calls that started and stopped waiting for capacity.
    delayed: AtomicU64,
    undelayed: AtomicU64,
    admitted: AtomicU64,
    /// Calls that left the queue without having been polled.
    passed_over: AtomicU64,
    /// First polls.
    started: AtomicU64,
    queue_wait: AtomicU64,
    woken: AtomicU64,
    /// Polls after the first.
    resumed: AtomicU64,
    resume_wait: AtomicU64,
    /// Woken calls that left the queue without having been polled.
    skipped: AtomicU64,
    /// Polls that have ended, without those that have ended their call.
    polled: AtomicU64,
    run_time: AtomicU64,
    abandoned: AtomicU64,
    panicked: AtomicU64,
    /// Calls that have ended, without those in `returned`.
    ended: AtomicU64,
    /// Calls that have ended with their last poll.
    returned: AtomicU64,
    /// Calls that have ended without an output.
    failed: AtomicU64,
    /// Time that calls ran after they were cancelled.
    cancelled_run_time: AtomicU64,
    busy: BusyTime,
    /// Calls whose first poll ran on the caller's thread.
    in_place: AtomicU64,
    /// Calls of these that occupied the thread for too long.
    misplaced: AtomicU64,
    /// Steps of workers. Only they change it, because callers that leave, and calls that run on
    /// their caller's thread, say nothing about the threads of the pool.
    progress: AtomicU64,
}

/// Expands to a call of the recorder with feature `metrics`, otherwise to nothing.
macro_rules! record {
    ($metrics:ident, $($call:tt)+) => {
        #[cfg(feature = "metrics")]
        $metrics.recorder.get().$($call)+;
    };
}

impl Metrics {
    #[cfg_attr(not(any(feature = "metrics", feature = "tracing")), expect(unused_variables))]
    pub(super) fn new(pool: &Arc<str>) -> Self {
        Self {
            #[cfg(feature = "tracing")]
            pool: pool.clone(),
            #[cfg(feature = "tracing")]
            overload: OverloadWarning::new(),
            #[cfg(feature = "tracing")]
            overload_change: OverloadWarning::new(),
            #[cfg(feature = "tracing")]
            has_warned: std::sync::atomic::AtomicBool::default(),
            created: time::now(),
            stripes: Box::default(),
            stall: Mutex::default(),
            overloads: AtomicU64::new(0),
            #[cfg(feature = "metrics")]
            recorder: recorder::Recorder::new(pool.clone()),
        }
    }

    /// Sets the maximum number of threads. Called before the pool is used.
    pub(super) fn set_max_threads(&mut self, threads: usize) {
        #[cfg(feature = "metrics")]
        self.recorder.set_max_threads(threads);
        let _ = threads;
    }

    /// Reads the counters. `permits_in_use`, `busy_time` and `idle_time` are not known here.
    pub(super) fn stats(&self) -> PoolStats {
        // The subtrahends are loaded first, so that a concurrent update can overstate a gauge but
        // never underflow it.
        let (polled, passed_over, skipped) =
            (self.sum(|it| &it.polled), self.sum(|it| &it.passed_over), self.sum(|it| &it.skipped));
        let (failed, ended, returned) =
            (self.sum(|it| &it.failed), self.sum(|it| &it.ended), self.sum(|it| &it.returned));
        let (polled, ended) = (polled + returned, ended + returned);
        let undelayed = self.sum(|it| &it.undelayed);
        let (started, resumed) = (self.sum(|it| &it.started), self.sum(|it| &it.resumed));
        let (admitted, woken) = (self.sum(|it| &it.admitted), self.sum(|it| &it.woken));
        let waiting = gauge(self.sum(|it| &it.delayed), undelayed);
        let Stall { count: stalls, since: stalled_since } = *lock(&self.stall);
        PoolStats {
            rejected: self.sum(|it| &it.rejected),
            permits_in_use: 0,
            in_flight: gauge(admitted, ended),
            waiting,
            queued: waiting + gauge(admitted, started + passed_over),
            queue_wait: Duration::from_nanos(self.sum(|it| &it.queue_wait)),
            started,
            active: gauge(started + resumed, polled),
            woken: gauge(woken, resumed + skipped),
            resume_wait: Duration::from_nanos(self.sum(|it| &it.resume_wait)),
            run_time: Duration::from_nanos(self.sum(|it| &it.run_time)),
            cancelled_run_time: Duration::from_nanos(self.sum(|it| &it.cancelled_run_time)),
            busy_time: Duration::ZERO,
            idle_time: Duration::ZERO,
            abandoned: self.sum(|it| &it.abandoned),
            panicked: self.sum(|it| &it.panicked),
            completed: ended.saturating_sub(failed),
            in_place: self.sum(|it| &it.in_place),
            misplaced: self.sum(|it| &it.misplaced),
            overloads: self.overloads.load(Relaxed),
            stalls,
            stalled_for: stalled_since.map(|since| since.elapsed()).unwrap_or_default(),
        }
    }

    /// Reads what decides whether the pool is stalled.
    pub(super) fn observe(&self) -> Observation {
        let progress = self.sum(|it| &it.progress);
        let stats = self.stats();
        Observation { progress, queued: stats.queued.saturating_sub(stats.waiting) + stats.woken, active: stats.active }
    }

    /// Records that a worker has taken an entry, or gives its thread back.
    #[inline]
    pub(super) fn progressed(&self) {
        let progress = &self.stripe().progress;
        // Not a read-modify-write, because any change of the value is progress. If threads share
        // the stripe, one of two changes at the same time may be lost.
        progress.store(progress.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// Records that the pool is stalled: calls wait, and none has made progress since `since`.
    /// `nested` is the number of threads whose call waits for another call of the pool.
    pub(super) fn stalled(&self, since: Instant, observation: Observation, nested: usize) {
        {
            let mut stall = lock(&self.stall);
            *stall = Stall { count: stall.count + 1, since: Some(since) };
        }
        record!(self, stalls.increment(1));
        record!(self, stalled.set(1));
        #[cfg(feature = "tracing")]
        tracing::event!(
            tracing::Level::WARN,
            pool = &*self.pool,
            stalled_seconds = since.elapsed().as_secs_f64(),
            queued = observation.queued,
            active = observation.active,
            nested,
            "pool stalled: calls wait, and no call has made progress"
        );
        let _ = (observation, nested);
    }

    /// Records that the queue grows and does not drain, so that fewer calls may wait, or that it
    /// drains again. `current` returns the present state, which another thread may have changed.
    /// The events are limited to one pair per interval, because clients can cause changes.
    pub(super) fn overload_changed(&self, is_overloaded: bool, current: impl Fn() -> bool) {
        if is_overloaded {
            self.overloads.fetch_add(1, Relaxed);
        }
        // The thread that sets the gauge last sees a change that it has not set, and sets it again.
        #[cfg(feature = "metrics")]
        loop {
            let state = current();
            self.recorder.get().overloaded.set(u8::from(state));
            if state == current() {
                break;
            }
        }
        #[cfg(feature = "tracing")]
        if is_overloaded && tracing::enabled!(tracing::Level::WARN) && self.overload_change.is_due() {
            self.has_warned.store(true, Relaxed);
            let overloads = self.overloads.load(Relaxed);
            tracing::event!(
                tracing::Level::WARN,
                pool = &*self.pool,
                overloads,
                "pool overloaded: calls are rejected until it drains"
            );
        } else if !is_overloaded && self.has_warned.swap(false, Relaxed) {
            tracing::event!(tracing::Level::INFO, pool = &*self.pool, "pool no longer overloaded");
        }
        let _ = current;
    }

    /// Records that the pool makes progress again.
    pub(super) fn recovered(&self) {
        let since = lock(&self.stall).since.take();
        record!(self, stalled.set(0));
        #[cfg(feature = "tracing")]
        tracing::event!(
            tracing::Level::INFO,
            pool = &*self.pool,
            stalled_seconds = since.map(|since| since.elapsed().as_secs_f64()),
            "pool recovered"
        );
        let _ = since;
    }

    /// Logs that the calls on all threads wait for calls of the same pool. `waits` is the number of
    /// waits that are ended because of that. Those that fail are also recorded as rejected.
    pub(super) fn deadlocked(&self, waits: usize) {
        #[cfg(feature = "tracing")]
        tracing::event!(
            tracing::Level::ERROR,
            pool = &*self.pool,
            waits,
            "pool deadlocked: every thread blocks on another call of the pool, use a second pool for those"
        );
        let _ = waits;
    }

    /// Returns the number of admitted calls that have not ended. It decreases before the caller of
    /// a call is woken.
    ///
    /// Once no call is admitted any longer, the result is never too low: `admitted`, `ended`
    /// and `returned` are `SeqCst`, so the thread that ends the last call sees the end of every
    /// other one.
    pub(super) fn in_flight(&self) -> usize {
        // Loaded first, as in `stats`.
        let ended = self.sum(|it| &it.ended) + self.sum(|it| &it.returned);
        gauge(self.sum(|it| &it.admitted), ended)
    }

    /// Returns the time that threads were busy and the time since the pool was created, both up to
    /// the same reading of the clock.
    pub(super) fn busy_time_and_age(&self) -> (Duration, Duration) {
        let now = time::now();
        let total = self.stripes.iter().map(|stripe| stripe.busy.total(now / 1000));
        let busy = Duration::from_micros(total.fold(0, u64::wrapping_add));
        (busy, Duration::from_nanos(now.saturating_sub(self.created)))
    }

    /// Records that this thread has become busy.
    #[inline]
    pub(super) fn busy(&self, now: PoolTime) {
        self.stripe().busy.start(now / 1000);
    }

    /// Records that this thread is no longer busy.
    #[inline]
    pub(super) fn idle(&self, now: PoolTime) {
        self.stripe().busy.stop(now / 1000);
    }

    /// Reports that this thread was busy for a number of nanoseconds. A panic of the recorder is
    /// ignored, because it would end the thread.
    pub(super) fn report_busy(&self, time: u64) {
        #[cfg(feature = "metrics")]
        ignore_panic(|| self.recorder.get().busy.increment(time / 1000));
        let _ = time;
    }

    fn sum(&self, counter: impl Fn(&Stripe) -> &AtomicU64) -> u64 {
        self.stripes.iter().fold(0, |sum, stripe| sum.wrapping_add(counter(stripe).load(SeqCst)))
    }

    /// Returns the stripe of the calling thread.
    #[inline]
    fn stripe(&self) -> &Stripe {
        thread_local! {
            /// `usize::MAX` at first: a constant needs no check whether it was initialized.
            static STRIPE: Cell<usize> = const { Cell::new(usize::MAX) };
        }
        #[cold]
        fn assign() -> usize {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let stripe = NEXT.fetch_add(1, Relaxed) % STRIPES;
            STRIPE.set(stripe);
            stripe
        }
        let stripe = STRIPE.get();
        let stripe = if stripe == usize::MAX { assign() } else { stripe };
        &self.stripes[stripe % STRIPES]
    }

    /// Records a call that was rejected, by the layer or by the pool.
    pub(crate) fn rejected(&self, error: CallError) {
        self.stripe().rejected.fetch_add(1, Relaxed);
        record!(self, rejected(error));
        #[cfg(feature = "tracing")]
        {
            let reason = error.as_str();
            tracing::event!(tracing::Level::DEBUG, pool = &*self.pool, reason, "call rejected");
            let lacks_capacity = error == CallError::Overloaded;
            if lacks_capacity && tracing::enabled!(tracing::Level::WARN) && self.overload.is_due() {
                let rejected = self.sum(|it| &it.rejected);
                let pool = &*self.pool;
                tracing::event!(tracing::Level::WARN, pool, reason, rejected, "pool overloaded: calls are rejected");
            }
        }
        let _ = error;
    }

    /// Records a call that waits for capacity before it is admitted or rejected.
    pub(crate) fn delayed(&self) {
        self.stripe().delayed.fetch_add(1, Relaxed);
        record!(self, queue_depth.increment(1));
    }

    /// Records the end of such a wait.
    pub(crate) fn undelayed(&self) {
        self.stripe().undelayed.fetch_add(1, Relaxed);
        record!(self, queue_depth.decrement(1));
    }

    /// Records a call that was admitted and waits for its first poll.
    #[inline]
    pub(super) fn admitted(&self) {
        self.stripe().admitted.fetch_add(1, SeqCst);
        record!(self, queue_depth.increment(1));
    }

    /// Records a call that leaves the queue without having been polled.
    pub(super) fn passed_over(&self) {
        self.stripe().passed_over.fetch_add(1, Relaxed);
        record!(self, queue_depth.decrement(1));
    }

    /// Records the start of the first poll of a call, which has waited in the queue for `waited`
    /// nanoseconds and before that for `delay`.
    ///
    /// A panic of the recorder is ignored here and at the end of a poll, because a start without
    /// its end, or the reverse, would make `active` wrong forever.
    pub(super) fn started(&self, waited: u64, delay: u64) {
        let waited = waited.saturating_add(delay);
        let stripe = self.stripe();
        stripe.started.fetch_add(1, Relaxed);
        stripe.queue_wait.fetch_add(waited, Relaxed);
        #[cfg(feature = "metrics")]
        ignore_panic(|| {
            let handles = self.recorder.get();
            handles.queue_depth.decrement(1);
            handles.queue_wait.record(Duration::from_nanos(waited));
            handles.active.increment(1);
        });
    }

    /// Records a parked call that was woken and queued.
    pub(super) fn woken(&self) {
        self.stripe().woken.fetch_add(1, Relaxed);
    }

    /// Records the start of a poll after the first, which has waited for `waited` nanoseconds since
    /// the wake-up.
    pub(super) fn resumed(&self, waited: u64) {
        let stripe = self.stripe();
        stripe.resumed.fetch_add(1, Relaxed);
        stripe.resume_wait.fetch_add(waited, Relaxed);
        ignore_panic(|| {
            record!(self, resume_wait.record(Duration::from_nanos(waited)));
            record!(self, active.increment(1));
        });
    }

    /// Records a woken call that leaves the queue without having been polled.
    pub(super) fn skipped(&self) {
        self.stripe().skipped.fetch_add(1, Relaxed);
    }

    /// Records the end of a poll.
    pub(super) fn polled(&self) {
        self.stripe().polled.fetch_add(1, Relaxed);
        ignore_panic(|| {
            record!(self, active.decrement(1));
        });
    }

    /// Records a call whose first poll ran on the caller's thread. `blocked` is how long it
    /// occupied the thread, if that was too long.
    pub(crate) fn ran_in_place(&self, blocked: Option<Duration>) {
        let stripe = self.stripe();
        stripe.in_place.fetch_add(1, Relaxed);
        let Some(blocked) = blocked else { return };
        stripe.misplaced.fetch_add(1, Relaxed);
        record!(self, misplaced.increment(1));
        #[cfg(feature = "tracing")]
        tracing::event!(
            tracing::Level::WARN,
            pool = &*self.pool,
            run_seconds = blocked.as_secs_f64(),
            "call blocked its caller's thread: calls of its service are offloaded for a minute"
        );
        let _ = blocked;
    }

    /// Records a call that is about to end without an output.
    pub(super) fn failed(&self) {
        self.stripe().failed.fetch_add(1, Relaxed);
    }

    /// Records the end of an admitted call: the nanoseconds of its polls if it was polled and, with
    /// `ends_poll`, the end of the last one.
    pub(super) fn ended(&self, run_time: Option<u64>, ends_poll: bool) {
        let stripe = self.stripe();
        if let Some(run_time) = run_time {
            stripe.run_time.fetch_add(run_time, Relaxed);
        }
        #[cfg(feature = "metrics")]
        ignore_panic(|| {
            let handles = self.recorder.get();
            if ends_poll {
                handles.active.decrement(1);
            }
            if let Some(run_time) = run_time {
                handles.run.record(Duration::from_nanos(run_time));
            }
        });
        let ended = if ends_poll { &stripe.returned } else { &stripe.ended };
        ended.fetch_add(1, SeqCst);
    }

    /// Records that the caller left before the call ended.
    pub(super) fn abandoned(&self, detached: bool) {
        self.stripe().abandoned.fetch_add(1, Relaxed);
        record!(self, abandoned.increment(1));
        #[cfg(feature = "tracing")]
        tracing::event!(tracing::Level::DEBUG, pool = &*self.pool, detached, "call abandoned by its caller");
        let _ = detached;
    }

    /// Records that a poll ran for `time` nanoseconds after its call was cancelled.
    pub(super) fn ran_cancelled(&self, reason: CancelReason, time: u64) {
        self.stripe().cancelled_run_time.fetch_add(time, Relaxed);
        ignore_panic(|| {
            record!(self, cancelled_run(reason).increment(time / 1000));
        });
        let _ = reason;
    }

    /// Logs the end of a detached call whose caller had left. This event is the only report of it.
    pub(super) fn detached_ended(&self, run_time: u64) {
        #[cfg(feature = "tracing")]
        tracing::event!(
            tracing::Level::INFO,
            pool = &*self.pool,
            run_seconds = Duration::from_nanos(run_time).as_secs_f64(),
            "detached call ended"
        );
        let _ = run_time;
    }

    /// Records a panic of work or of a destructor. `caller_present` is `true` if a caller receives
    /// the payload.
    pub(super) fn panicked(&self, payload: &(dyn Any + Send), caller_present: bool) {
        self.stripe().panicked.fetch_add(1, Relaxed);
        record!(self, panicked.increment(1));
        #[cfg(feature = "tracing")]
        tracing::event!(
            tracing::Level::ERROR,
            pool = &*self.pool,
            caller_present,
            message = crate::panic::panic_message(payload),
            "call panicked"
        );
        let _ = (payload, caller_present);
    }
}

impl Drop for Metrics {
    /// The monitor may not have seen that a stalled pool has ended all its calls.
    fn drop(&mut self) {
        if lock(&self.stall).since.is_some() {
            ignore_panic(|| self.recovered());
        }
        #[cfg(feature = "metrics")]
        ignore_panic(|| self.recorder.close());
    }
}

/// Limits the warnings of an overloaded pool, which may reject thousands of calls per second.
#[cfg(feature = "tracing")]
#[derive(Debug)]
struct OverloadWarning {
    created: Instant,
    /// Time of the last warning, in milliseconds after `created`, plus 1; 0 if there was none.
    last: AtomicU64,
}

#[cfg(feature = "tracing")]
impl OverloadWarning {
    const INTERVAL_MILLIS: u64 = 10_000;

    fn new() -> Self {
        Self { created: Instant::now(), last: AtomicU64::new(0) }
    }

    /// Returns `true` to one caller per interval.
    fn is_due(&self) -> bool {
        let now = u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        let last = self.last.load(Relaxed);
        (last == 0 || now.saturating_sub(last) >= Self::INTERVAL_MILLIS)
            && self.last.compare_exchange(last, now, Relaxed, Relaxed).is_ok()
    }
}

/// Returns the difference of two counters that are read while they change.
fn gauge(increments: u64, decrements: u64) -> usize {
    usize::try_from(increments.saturating_sub(decrements)).unwrap_or(usize::MAX)
}
