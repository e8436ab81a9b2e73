//! Counts what a pool does: always in atomics for `Stats`, with feature `metrics` in the installed recorder as well, and
//! with feature `tracing` as one event for each call that ended badly.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

#[cfg(feature = "metrics")]
use super::recorder::Recorder;
use super::{Rejection, Stats};

#[derive(Debug)]
pub(crate) struct Meter {
    #[cfg(feature = "tracing")]
    pool: Arc<str>,
    /// Each thread counts in one of them, and readers add them up: counters that all threads share would be passed from
    /// core to core a dozen times a call, which was a third of the cost of a call at full load.
    stripes: Box<[Stripe]>,
    #[cfg(feature = "metrics")]
    recorder: Recorder,
}

/// As many as keep a handful of busy threads apart. A power of two.
const STRIPES: usize = 16;

/// Counters of some threads. They only go up, so what is under way is a difference of two, and each step of a call costs as
/// few as possible.
#[derive(Debug, Default)]
#[repr(align(128))] // two lines: processors fetch them in pairs
struct Stripe {
    abandoned: AtomicU64,
    admitted: AtomicU64,
    /// Calls that are over.
    ended: AtomicU64,
    /// Those of them that have no output.
    failed: AtomicU64,
    panicked: AtomicU64,
    /// Calls that left the queue without having been polled.
    passed_over: AtomicU64,
    /// Polls that are over.
    polled: AtomicU64,
    queue_wait: AtomicU64,
    rejected: AtomicU64,
    /// Polls after the first.
    resumed: AtomicU64,
    resume_wait: AtomicU64,
    run_time: AtomicU64,
    /// Woken calls that left the queue without having been polled.
    skipped: AtomicU64,
    /// First polls.
    started: AtomicU64,
    woken: AtomicU64,
}

/// Feature `metrics` or nothing, in one line a call site.
macro_rules! record {
    ($meter:ident, $($call:tt)+) => {
        #[cfg(feature = "metrics")]
        $meter.recorder.get().$($call)+;
    };
}

impl Meter {
    #[cfg_attr(not(any(feature = "metrics", feature = "tracing")), expect(unused_variables))]
    pub(crate) fn new(pool: &Arc<str>) -> Self {
        Self {
            #[cfg(feature = "tracing")]
            pool: pool.clone(),
            stripes: (0..STRIPES).map(|_| Stripe::default()).collect(),
            #[cfg(feature = "metrics")]
            recorder: Recorder::new(pool.clone()),
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        // What goes down is read first: a level may be caught too high, never below zero.
        let (polled, passed_over, skipped) =
            (self.sum(|it| &it.polled), self.sum(|it| &it.passed_over), self.sum(|it| &it.skipped));
        let (failed, ended) = (self.sum(|it| &it.failed), self.sum(|it| &it.ended));
        let (started, resumed) = (self.sum(|it| &it.started), self.sum(|it| &it.resumed));
        let (admitted, woken) = (self.sum(|it| &it.admitted), self.sum(|it| &it.woken));
        Stats {
            abandoned: self.sum(|it| &it.abandoned),
            active: level(started + resumed, polled),
            completed: ended.saturating_sub(failed),
            in_flight: level(admitted, ended),
            panicked: self.sum(|it| &it.panicked),
            queued: level(admitted, started + passed_over),
            queue_wait: Duration::from_nanos(self.sum(|it| &it.queue_wait)),
            rejected: self.sum(|it| &it.rejected),
            resumed: level(woken, resumed + skipped),
            resume_wait: Duration::from_nanos(self.sum(|it| &it.resume_wait)),
            run_time: Duration::from_nanos(self.sum(|it| &it.run_time)),
            slots_taken: 0, // the gate knows
            started,
        }
    }

    /// Calls that were admitted and have not ended. Falls before their caller is woken.
    ///
    /// Never too low once no call is admitted any more: then the last one to end sees every other's end, for these
    /// operations have one order.
    pub(crate) fn in_flight(&self) -> usize {
        let ended = self.sum(|it| &it.ended); // first: see above
        level(self.sum(|it| &it.admitted), ended)
    }

    fn sum(&self, counter: impl Fn(&Stripe) -> &AtomicU64) -> u64 {
        self.stripes.iter().fold(0, |sum, stripe| sum.wrapping_add(counter(stripe).load(SeqCst)))
    }

    fn here(&self) -> &Stripe {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static HERE: usize = NEXT.fetch_add(1, Relaxed) % STRIPES;
        }
        &self.stripes[HERE.try_with(|here| *here).unwrap_or(0)]
    }

    /// A call was admitted, and waits for its first poll.
    pub(crate) fn admitted(&self) {
        self.here().admitted.fetch_add(1, SeqCst);
        record!(self, queue_depth.increment(1));
    }

    /// A call leaves the queue without having been polled.
    pub(crate) fn passed_over(&self) {
        self.here().passed_over.fetch_add(1, Relaxed);
        record!(self, queue_depth.decrement(1));
    }

    /// The first poll begins.
    pub(crate) fn started(&self, waited: Duration) {
        let here = self.here();
        here.started.fetch_add(1, Relaxed);
        here.queue_wait.fetch_add(nanos(waited), Relaxed);
        record!(self, queue_depth.decrement(1));
        record!(self, queue_wait.record(waited));
        record!(self, active.increment(1));
    }

    pub(crate) fn woken(&self) {
        self.here().woken.fetch_add(1, Relaxed);
    }

    /// A later poll begins.
    pub(crate) fn resumed(&self, waited: Duration) {
        let here = self.here();
        here.resumed.fetch_add(1, Relaxed);
        here.resume_wait.fetch_add(nanos(waited), Relaxed);
        record!(self, resume_wait.record(waited));
        record!(self, active.increment(1));
    }

    /// A woken call leaves the queue without having been polled.
    pub(crate) fn skipped(&self) {
        self.here().skipped.fetch_add(1, Relaxed);
    }

    /// A poll is over.
    pub(crate) fn polled(&self) {
        self.here().polled.fetch_add(1, Relaxed);
        record!(self, active.decrement(1));
    }

    /// A call that was started is about to end, after polls that took `ran` together.
    pub(crate) fn ran(&self, ran: Duration) {
        self.here().run_time.fetch_add(nanos(ran), Relaxed);
        record!(self, run.record(ran));
    }

    /// A call is about to end without an output.
    pub(crate) fn failed(&self) {
        self.here().failed.fetch_add(1, Relaxed);
    }

    /// An admitted call is over.
    pub(crate) fn ended(&self) {
        self.here().ended.fetch_add(1, SeqCst);
    }

    pub(crate) fn rejected(&self, rejection: Rejection) {
        self.here().rejected.fetch_add(1, Relaxed);
        record!(self, rejected(rejection).increment(1));
        #[cfg(feature = "tracing")]
        tracing::event!(tracing::Level::DEBUG, pool = &*self.pool, reason = rejection.as_str(), "call rejected");
        let _ = rejection;
    }

    /// The caller left before the call ended.
    pub(crate) fn abandoned(&self, detached: bool) {
        self.here().abandoned.fetch_add(1, Relaxed);
        record!(self, abandoned.increment(1));
        #[cfg(feature = "tracing")]
        tracing::event!(tracing::Level::DEBUG, pool = &*self.pool, detached, "call abandoned by its caller");
        let _ = detached;
    }

    /// A detached call ended after its caller had left: nobody else will tell.
    pub(crate) fn detached_ended(&self, ran: Duration) {
        #[cfg(feature = "tracing")]
        tracing::event!(
            tracing::Level::INFO,
            pool = &*self.pool,
            run_seconds = ran.as_secs_f64(),
            "detached call ended"
        );
        let _ = ran;
    }

    /// `seen` says whether a caller will get the payload.
    pub(crate) fn panicked(&self, payload: &(dyn Any + Send), seen: bool) {
        self.here().panicked.fetch_add(1, Relaxed);
        record!(self, panicked.increment(1));
        #[cfg(feature = "tracing")]
        tracing::event!(
            tracing::Level::ERROR,
            pool = &*self.pool,
            caller_present = seen,
            message = crate::panic::panic_message(payload),
            "call panicked"
        );
        let _ = (payload, seen);
    }
}

/// Of two counters that are read while they change.
fn level(up: u64, down: u64) -> usize {
    usize::try_from(up.saturating_sub(down)).unwrap_or(usize::MAX)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
