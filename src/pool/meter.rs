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

/// Counters of some threads. What goes up and down may go up in one stripe and down in another; the sum is right.
#[derive(Debug, Default)]
#[repr(align(128))] // two lines: processors fetch them in pairs
struct Stripe {
    abandoned: AtomicU64,
    active: AtomicU64,
    completed: AtomicU64,
    in_flight: AtomicU64,
    panicked: AtomicU64,
    queued: AtomicU64,
    queue_wait: AtomicU64,
    rejected: AtomicU64,
    resumed: AtomicU64,
    resume_wait: AtomicU64,
    run_time: AtomicU64,
    started: AtomicU64,
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
        Stats {
            abandoned: self.sum(|it| &it.abandoned),
            active: self.level(|it| &it.active),
            completed: self.sum(|it| &it.completed),
            in_flight: self.in_flight(),
            panicked: self.sum(|it| &it.panicked),
            queued: self.level(|it| &it.queued),
            queue_wait: Duration::from_nanos(self.sum(|it| &it.queue_wait)),
            rejected: self.sum(|it| &it.rejected),
            resumed: self.level(|it| &it.resumed),
            resume_wait: Duration::from_nanos(self.sum(|it| &it.resume_wait)),
            run_time: Duration::from_nanos(self.sum(|it| &it.run_time)),
            slots_taken: 0, // the gate knows
            started: self.sum(|it| &it.started),
        }
    }

    /// Calls that were admitted and have not ended. Falls before their caller is woken.
    ///
    /// Never too low once no call is admitted any more: then the last one to end sees every other's end, for these
    /// operations have one order.
    pub(crate) fn in_flight(&self) -> usize {
        self.level(|it| &it.in_flight)
    }

    fn sum(&self, counter: impl Fn(&Stripe) -> &AtomicU64) -> u64 {
        self.stripes.iter().fold(0, |sum, stripe| sum.wrapping_add(counter(stripe).load(SeqCst)))
    }

    /// Of something that goes up and down: while it does, the sum over the stripes may be caught below zero.
    fn level(&self, counter: impl Fn(&Stripe) -> &AtomicU64) -> usize {
        usize::try_from(self.sum(counter) as i64).unwrap_or(0)
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
        self.here().in_flight.fetch_add(1, SeqCst);
        self.queued();
    }

    /// An admitted call is over.
    pub(crate) fn ended(&self) {
        self.here().in_flight.fetch_sub(1, SeqCst);
    }

    fn queued(&self) {
        self.here().queued.fetch_add(1, Relaxed);
        record!(self, queue_depth.increment(1));
    }

    /// A call leaves the queue without having been polled.
    pub(crate) fn unqueued(&self) {
        self.here().queued.fetch_sub(1, Relaxed);
        record!(self, queue_depth.decrement(1));
    }

    pub(crate) fn started(&self, waited: Duration) {
        self.unqueued();
        self.here().started.fetch_add(1, Relaxed);
        self.here().queue_wait.fetch_add(nanos(waited), Relaxed);
        record!(self, queue_wait.record(waited));
    }

    pub(crate) fn woken(&self) {
        self.here().resumed.fetch_add(1, Relaxed);
    }

    pub(crate) fn resumed(&self, waited: Duration) {
        self.here().resumed.fetch_sub(1, Relaxed);
        self.here().resume_wait.fetch_add(nanos(waited), Relaxed);
        record!(self, resume_wait.record(waited));
    }

    /// A woken call leaves the queue without having been polled.
    pub(crate) fn unresumed(&self) {
        self.here().resumed.fetch_sub(1, Relaxed);
    }

    pub(crate) fn active(&self) {
        self.here().active.fetch_add(1, Relaxed);
        record!(self, active.increment(1));
    }

    pub(crate) fn idle(&self) {
        self.here().active.fetch_sub(1, Relaxed);
        record!(self, active.decrement(1));
    }

    /// A call that was started is over, after polls that took `ran` together.
    pub(crate) fn ran(&self, ran: Duration) {
        self.here().run_time.fetch_add(nanos(ran), Relaxed);
        record!(self, run.record(ran));
    }

    pub(crate) fn completed(&self) {
        self.here().completed.fetch_add(1, Relaxed);
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
            message = message(payload),
            "call panicked"
        );
        let _ = (payload, seen);
    }
}

/// The text of a panic, as the standard library's own hook finds it.
#[cfg(feature = "tracing")]
fn message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("Box<dyn Any>")
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
