//! Decides call by call whether the first poll of a service's calls runs on the caller's thread,
//! for [`OffloadLayer::adaptive`](super::OffloadLayer::adaptive).

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::pool::Pool;

/// Longest run that costs the caller's thread less than a hop to the pool costs the call. A longer
/// one delays the other tasks of the thread noticeably.
const SHORT: Duration = Duration::from_micros(50);

/// Number of short runs in a row after which calls run on the caller's thread.
const SHORT_RUNS: u8 = 64;

/// A run of this length on the caller's thread was a mistake.
const LONG: Duration = Duration::from_millis(1);

/// Time after such a mistake during which every call is offloaded, in milliseconds.
const PAUSE_MS: u64 = 60_000;

/// What is known of the calls of one service and its clones.
#[derive(Debug)]
pub(super) struct Route {
    pool: Arc<dyn Pool>,
    created: Instant,
    /// A [`Trust`]. It is written only by runs that change it, so it is read without contention
    /// while calls are short.
    trust: AtomicU64,
    /// `true` while a call runs on a caller's thread. At most one does at a time, so that a route
    /// that becomes slow blocks one thread and not all.
    ///
    /// A call sets it and then loads `trust`. The previous one stored its mistake in `trust` and
    /// then cleared the flag. So a call cannot miss the mistake of the one before it.
    is_occupied: AtomicBool,
}

/// Permission to run one call on this thread. Released when it is dropped, after the run.
pub(super) struct InPlace(Arc<Route>);

/// Measures the first poll of one call. A probe that is dropped before that records nothing.
pub(super) struct Probe {
    route: Arc<Route>,
    is_in_place: bool,
    /// `Some` during the first poll.
    started: Option<Instant>,
    /// `true` if the first poll has returned the response.
    is_complete: bool,
}

/// The first poll of a call.
#[derive(Debug, Clone, Copy)]
struct Run {
    took: Duration,
    is_complete: bool,
    is_in_place: bool,
}

/// How long calls took. Pure: time is an argument, in milliseconds after the route was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trust {
    /// Number of short runs in a row, at most `SHORT_RUNS`.
    short_runs: u8,
    /// Runs before this time do not count.
    paused_until: u64,
}

impl Route {
    pub(super) fn new(pool: Arc<dyn Pool>) -> Self {
        Self { pool, created: Instant::now(), trust: AtomicU64::new(0), is_occupied: AtomicBool::new(false) }
    }

    /// Returns `Some` if the next call should run on this thread.
    pub(super) fn try_run_in_place(self: &Arc<Self>) -> Option<InPlace> {
        // Calls that take long only get here.
        if !self.is_trusted() || self.is_occupied.swap(true, Acquire) {
            return None;
        }
        let in_place = InPlace(self.clone());
        self.is_trusted().then_some(in_place)
    }

    /// Returns a probe for the next call, which is offloaded or has the permission `in_place`.
    pub(super) fn probe(self: &Arc<Self>, in_place: Option<&InPlace>) -> Probe {
        Probe { route: self.clone(), is_in_place: in_place.is_some(), started: None, is_complete: false }
    }

    fn is_trusted(&self) -> bool {
        Trust::decode(self.trust.load(Relaxed)).short_runs == SHORT_RUNS
    }

    /// Records a run that has just ended.
    fn record(&self, run: Run, now: Instant) {
        let now = u64::try_from(now.saturating_duration_since(self.created).as_millis()).unwrap_or(u64::MAX);
        let changed = |trust| {
            let trust = Trust::decode(trust);
            let next = trust.after(run, now);
            (next != trust).then(|| next.encode())
        };
        let _ = self.trust.fetch_update(Relaxed, Relaxed, changed);
        if run.is_in_place {
            self.pool.admission().metrics().ran_in_place(run.is_mistake().then_some(run.took));
        }
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        self.0.is_occupied.store(false, Release);
    }
}

impl Probe {
    pub(super) fn start(mut self) -> Self {
        self.started = Some(Instant::now());
        self
    }

    /// Records the first poll, which was pending or has returned a response.
    pub(super) fn finish(mut self, is_complete: bool) {
        self.is_complete = is_complete;
    }
}

impl Drop for Probe {
    /// Also records a poll that panicked.
    fn drop(&mut self) {
        let Some(started) = self.started else { return };
        let now = Instant::now();
        let took = now.saturating_duration_since(started);
        let Self { is_complete, is_in_place, .. } = *self;
        self.route.record(Run { took, is_complete, is_in_place }, now);
    }
}

impl Run {
    fn is_mistake(self) -> bool {
        self.is_in_place && self.took > LONG
    }
}

impl Trust {
    fn after(self, run: Run, now: u64) -> Self {
        if run.is_mistake() {
            Self { short_runs: 0, paused_until: now.saturating_add(PAUSE_MS) }
        } else if run.took > SHORT || !run.is_complete {
            Self { short_runs: 0, ..self }
        } else if now < self.paused_until || self.short_runs == SHORT_RUNS {
            self
        } else {
            Self { short_runs: self.short_runs + 1, ..self }
        }
    }

    fn encode(self) -> u64 {
        // 56 bits of milliseconds are two million years.
        self.paused_until << 8 | u64::from(self.short_runs)
    }

    fn decode(trust: u64) -> Self {
        let [short_runs, ..] = trust.to_le_bytes();
        Self { short_runs, paused_until: trust >> 8 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEW: Trust = Trust { short_runs: 0, paused_until: 0 };
    const TRUSTED: Trust = Trust { short_runs: SHORT_RUNS, paused_until: 0 };

    fn run(took: Duration) -> Run {
        Run { took, is_complete: true, is_in_place: false }
    }

    #[test]
    fn service_is_trusted_after_64_short_runs_in_a_row() {
        let trust = |runs| (0..runs).fold(NEW, |trust, _| trust.after(run(SHORT), 0));
        assert_ne!(trust(63), TRUSTED);
        assert_eq!(trust(64), TRUSTED);
        assert_eq!(trust(1000), TRUSTED);
    }

    #[test]
    fn longer_run_ends_the_trust() {
        assert_eq!(TRUSTED.after(run(SHORT + Duration::from_nanos(1)), 0), NEW);
    }

    #[test]
    fn run_that_awaits_ends_the_trust() {
        assert_eq!(TRUSTED.after(Run { is_complete: false, ..run(Duration::ZERO) }, 0), NEW);
    }

    #[test]
    fn trust_survives_its_encoding() {
        let trust = Trust { short_runs: 63, paused_until: u64::MAX >> 8 };
        assert_eq!(Trust::decode(trust.encode()), trust);
    }

    proptest! {
        /// The promise of `OffloadLayer::adaptive`.
        #[test]
        fn at_most_one_mistake_per_minute(runs in prop::collection::vec((0_u64..3, 0_u64..2_000), 0..2000)) {
            let (mut trust, mut now, mut mistake) = (NEW, 0, None);
            for (milliseconds, pause) in runs {
                now += pause;
                let run = Run { is_in_place: trust == TRUSTED, ..run(Duration::from_millis(milliseconds)) };
                let run = if milliseconds == 0 || pause % 8 > 0 { Run { took: Duration::ZERO, ..run } } else { run };
                if run.is_mistake() {
                    prop_assert!(mistake.is_none_or(|mistake| now >= mistake + PAUSE_MS));
                    mistake = Some(now);
                }
                trust = trust.after(run, now);
            }
        }
    }
}
