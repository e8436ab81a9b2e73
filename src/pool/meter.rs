//! Counts what a pool does: always in atomics for `Stats`, with feature `metrics` in the installed recorder as well, and
//! with feature `tracing` as one event for each call that ended badly.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
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
    abandoned: AtomicU64,
    active: AtomicUsize,
    completed: AtomicU64,
    panicked: AtomicU64,
    queued: AtomicUsize,
    queue_wait: AtomicU64,
    rejected: AtomicU64,
    resumed: AtomicUsize,
    resume_wait: AtomicU64,
    run_time: AtomicU64,
    started: AtomicU64,
    #[cfg(feature = "metrics")]
    recorder: Recorder,
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
            abandoned: AtomicU64::new(0),
            active: AtomicUsize::new(0),
            completed: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
            queued: AtomicUsize::new(0),
            queue_wait: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            resumed: AtomicUsize::new(0),
            resume_wait: AtomicU64::new(0),
            run_time: AtomicU64::new(0),
            started: AtomicU64::new(0),
            #[cfg(feature = "metrics")]
            recorder: Recorder::new(pool.clone()),
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            abandoned: self.abandoned.load(Relaxed),
            active: self.active.load(Relaxed),
            completed: self.completed.load(Relaxed),
            in_flight: 0, // the gate knows
            panicked: self.panicked.load(Relaxed),
            queued: self.queued.load(Relaxed),
            queue_wait: Duration::from_nanos(self.queue_wait.load(Relaxed)),
            rejected: self.rejected.load(Relaxed),
            resumed: self.resumed.load(Relaxed),
            resume_wait: Duration::from_nanos(self.resume_wait.load(Relaxed)),
            run_time: Duration::from_nanos(self.run_time.load(Relaxed)),
            slots_taken: 0, // likewise
            started: self.started.load(Relaxed),
        }
    }

    pub(crate) fn queued(&self) {
        self.queued.fetch_add(1, Relaxed);
        record!(self, queue_depth.increment(1));
    }

    /// A call leaves the queue without having been polled.
    pub(crate) fn unqueued(&self) {
        self.queued.fetch_sub(1, Relaxed);
        record!(self, queue_depth.decrement(1));
    }

    pub(crate) fn started(&self, waited: Duration) {
        self.unqueued();
        self.started.fetch_add(1, Relaxed);
        self.queue_wait.fetch_add(nanos(waited), Relaxed);
        record!(self, queue_wait.record(waited));
    }

    pub(crate) fn woken(&self) {
        self.resumed.fetch_add(1, Relaxed);
    }

    pub(crate) fn resumed(&self, waited: Duration) {
        self.resumed.fetch_sub(1, Relaxed);
        self.resume_wait.fetch_add(nanos(waited), Relaxed);
        record!(self, resume_wait.record(waited));
    }

    /// A woken call leaves the queue without having been polled.
    pub(crate) fn unresumed(&self) {
        self.resumed.fetch_sub(1, Relaxed);
    }

    pub(crate) fn active(&self) {
        self.active.fetch_add(1, Relaxed);
        record!(self, active.increment(1));
    }

    pub(crate) fn idle(&self) {
        self.active.fetch_sub(1, Relaxed);
        record!(self, active.decrement(1));
    }

    /// A call that was started is over, after polls that took `ran` together.
    pub(crate) fn ran(&self, ran: Duration) {
        self.run_time.fetch_add(nanos(ran), Relaxed);
        record!(self, run.record(ran));
    }

    pub(crate) fn completed(&self) {
        self.completed.fetch_add(1, Relaxed);
    }

    pub(crate) fn rejected(&self, rejection: Rejection) {
        self.rejected.fetch_add(1, Relaxed);
        record!(self, rejected(rejection).increment(1));
        #[cfg(feature = "tracing")]
        tracing::event!(tracing::Level::DEBUG, pool = &*self.pool, reason = rejection.as_str(), "call rejected");
        let _ = rejection;
    }

    /// The caller left before the call ended.
    pub(crate) fn abandoned(&self, detached: bool) {
        self.abandoned.fetch_add(1, Relaxed);
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
        self.panicked.fetch_add(1, Relaxed);
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
