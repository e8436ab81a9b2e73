//! Decides call by call whether the first poll of a service's calls runs on the caller's thread,
//! for [`OffloadLayer::adaptive`](super::OffloadLayer::adaptive).
#![expect(clippy::disallowed_types, reason = "a run takes real time, and a paused clock would show none")]

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use crate::pool::Pool;

/// Longest run that costs the caller's thread less than a hop to the pool costs the call. A longer
/// one delays the other tasks of the thread noticeably.
const SHORT: Duration = Duration::from_micros(50);

/// Score from which calls run on the caller's thread: that of 64 short runs in a row.
const TRUSTED: u8 = 64;

const MAX_SCORE: u8 = 128;

/// Amount by which a longer run lowers the score. Two in 64 runs, which may be due to other threads
/// of the machine, do not end the trust.
const PENALTY: u8 = 32;

/// A run of this length on the caller's thread was a mistake. So was one that panicked: it may have
/// called something that panics there and succeeds on the pool, such as `Handle::block_on`.
const LONG: Duration = Duration::from_millis(1);

/// Time after such a mistake during which every call is offloaded, in milliseconds.
const PAUSE_MS: u64 = 60_000;

/// Measurements of the calls of a layer and its clones.
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
    /// `true` if the first poll has not panicked.
    has_returned: bool,
}

/// The first poll of a call.
#[derive(Debug, Clone, Copy)]
struct Run {
    took: Duration,
    is_complete: bool,
    is_in_place: bool,
    has_panicked: bool,
}

/// How long calls took. Pure: time is an argument, in milliseconds after the route was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trust {
    /// At most `MAX_SCORE`. Short runs increase it by 1, and longer ones decrease it.
    score: u8,
    /// Short runs before this time do not count.
    paused_until: u64,
}

impl Route {
    pub(super) fn new(pool: Arc<dyn Pool>) -> Self {
        Self { pool, created: Instant::now(), trust: AtomicU64::new(0), is_occupied: AtomicBool::new(false) }
    }

    /// Returns `Some` if the next call should run on this thread.
    pub(super) fn try_run_in_place(self: &Arc<Self>) -> Option<InPlace> {
        // Services whose calls take long get no further.
        if !self.is_trusted() || self.is_occupied.swap(true, Acquire) {
            return None;
        }
        let in_place = InPlace(self.clone());
        self.is_trusted().then_some(in_place)
    }

    /// Returns a probe for the next call, which is offloaded or has the permission `in_place`.
    pub(super) fn probe(self: &Arc<Self>, in_place: Option<&InPlace>) -> Probe {
        Probe {
            route: self.clone(),
            is_in_place: in_place.is_some(),
            started: None,
            is_complete: false,
            has_returned: false,
        }
    }

    fn is_trusted(&self) -> bool {
        Trust::decode(self.trust.load(Relaxed)).score >= TRUSTED
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
            self.pool.admission().metrics().ran_in_place(run.has_blocked().then_some(run.took));
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
        (self.is_complete, self.has_returned) = (is_complete, true);
    }
}

impl Drop for Probe {
    /// Also records a poll that panicked.
    fn drop(&mut self) {
        let Some(started) = self.started else { return };
        let now = Instant::now();
        let took = now.saturating_duration_since(started);
        let Self { is_complete, is_in_place, has_returned, .. } = *self;
        self.route.record(Run { took, is_complete, is_in_place, has_panicked: !has_returned }, now);
    }
}

impl Run {
    fn has_blocked(self) -> bool {
        self.is_in_place && self.took > LONG
    }

    fn is_mistake(self) -> bool {
        self.has_blocked() || self.is_in_place && self.has_panicked
    }
}

impl Trust {
    fn after(self, run: Run, now: u64) -> Self {
        if run.is_mistake() {
            Self { score: 0, paused_until: now.saturating_add(PAUSE_MS) }
        } else if run.took > SHORT || !run.is_complete {
            Self { score: self.score.saturating_sub(PENALTY), ..self }
        } else if now < self.paused_until {
            self
        } else {
            Self { score: (self.score + 1).min(MAX_SCORE), ..self }
        }
    }

    fn encode(self) -> u64 {
        // 56 bits of milliseconds are two million years.
        self.paused_until << 8 | u64::from(self.score)
    }

    fn decode(trust: u64) -> Self {
        let [score, ..] = trust.to_le_bytes();
        Self { score, paused_until: trust >> 8 }
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEW: Trust = Trust { score: 0, paused_until: 0 };

    fn run(took: Duration) -> Run {
        Run { took, is_complete: true, is_in_place: false, has_panicked: false }
    }

    /// Returns what is known after this number of short runs.
    fn after_short_runs(runs: u32) -> Trust {
        (0..runs).fold(NEW, |trust, _| trust.after(run(SHORT), 0))
    }

    #[test]
    fn service_is_trusted_after_64_short_runs() {
        assert!(after_short_runs(63).score < TRUSTED);
        assert!(after_short_runs(64).score >= TRUSTED);
    }

    #[test]
    fn trust_survives_two_longer_runs_and_no_third() {
        let longer = run(SHORT + Duration::from_nanos(1));
        let trust = after_short_runs(1000).after(longer, 0).after(longer, 0);
        assert!(trust.score >= TRUSTED);
        assert!(trust.after(longer, 0).score < TRUSTED);
    }

    #[test]
    fn run_that_awaits_counts_as_longer() {
        let awaits = Run { is_complete: false, ..run(Duration::ZERO) };
        assert_eq!(after_short_runs(64).after(awaits, 0).score, TRUSTED - PENALTY);
    }

    #[test]
    fn panic_on_the_callers_thread_is_a_mistake() {
        let panicked = Run { is_complete: false, has_panicked: true, ..run(Duration::ZERO) };
        let trust = after_short_runs(1000);
        assert_eq!(trust.after(panicked, 5).score, MAX_SCORE - PENALTY, "on the pool");
        let paused = trust.after(Run { is_in_place: true, ..panicked }, 5);
        assert_eq!(paused, Trust { score: 0, paused_until: 5 + PAUSE_MS });
    }

    #[test]
    fn trust_survives_its_encoding() {
        let trust = Trust { score: 63, paused_until: u64::MAX >> 8 };
        assert_eq!(Trust::decode(trust.encode()), trust);
    }

    proptest! {
        /// The promise of `OffloadLayer::adaptive`.
        #[test]
        fn at_most_one_mistake_per_minute(runs in prop::collection::vec((0_u64..3, 0_u64..2_000), 0..2000)) {
            let (mut trust, mut now, mut mistake) = (NEW, 0, None);
            for (milliseconds, pause) in runs {
                now += pause;
                let run = Run { is_in_place: trust.score >= TRUSTED, ..run(Duration::from_millis(milliseconds)) };
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
