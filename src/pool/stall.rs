//! Detection of pools that make no progress.

use std::time::Duration;

use tokio::time::Instant;

/// Time without progress after which a pool with queued calls is stalled. Longer than most calls
/// and shorter than most timeouts of clients, so that the event precedes their errors.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Number of observations per stall timeout.
pub(super) const OBSERVATIONS: u32 = 10;

/// State of a pool as its monitor sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Observation {
    /// Counter that changes whenever a worker makes progress: it takes an entry, or gives its
    /// thread back.
    pub(super) progress: u64,
    /// Number of calls that wait for a thread.
    pub(super) queued: usize,
    /// Number of threads that poll a call.
    pub(super) active: usize,
}

/// Change that an observation reveals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// The pool is stalled, since this time.
    Stalled(Instant),
    /// The pool makes progress again.
    Recovered,
}

/// Decides whether a pool is stalled: calls wait for a thread, and for all of `timeout` no call has
/// made progress. Pure: time is an argument.
#[derive(Debug)]
pub(super) struct StallDetector {
    timeout: Duration,
    /// Progress at the last observation, and the time of the first observation that saw this value
    /// with calls waiting. `None` while no call waits.
    last: Option<(u64, Instant)>,
    /// Time without progress at the last observation.
    waited: Duration,
    is_stalled: bool,
}

impl StallDetector {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, last: None, waited: Duration::ZERO, is_stalled: false }
    }

    pub(super) fn observe(&mut self, now: Instant, observation: Observation) -> Change {
        let Observation { progress, queued, .. } = observation;
        let since = match self.last {
            Some((last, since)) if last == progress && queued > 0 => since,
            _ => now,
        };
        self.last = (queued > 0).then_some((progress, since));
        self.waited = now.saturating_duration_since(since);
        let was_stalled = std::mem::replace(&mut self.is_stalled, queued > 0 && self.waited >= self.timeout);
        match (was_stalled, self.is_stalled) {
            (false, true) => Change::Stalled(since),
            (true, false) => Change::Recovered,
            _ => Change::None,
        }
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// Returns `true` if calls wait and none has made progress since the last observation.
    pub(super) fn is_slow(&self) -> bool {
        !self.waited.is_zero()
    }

    /// Returns `true` if no call waits, so that there is nothing to observe.
    pub(super) fn is_idle(&self) -> bool {
        self.last.is_none()
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// Observes `(progress, queued)` once per second. Returns the changes and their seconds.
    fn changes(observations: impl IntoIterator<Item = (u64, usize)>) -> Vec<(u64, Change)> {
        let (mut detector, start) = (StallDetector::new(TIMEOUT), Instant::now());
        let observe = |(second, (progress, queued)): (u64, (u64, usize))| {
            let now = start + Duration::from_secs(second);
            let change = detector.observe(now, Observation { progress, queued, active: 1 });
            (change != Change::None).then_some((second, change))
        };
        (0..).zip(observations).filter_map(observe).collect()
    }

    #[test]
    fn pool_is_stalled_once_until_it_progresses() {
        let stuck = (0..25).map(|_| (7, 3)).chain([(8, 2), (8, 2), (9, 0)]);
        let changes = changes(stuck);
        assert!(matches!(changes[..], [(10, Change::Stalled(_)), (25, Change::Recovered)]), "{changes:?}");
    }

    #[test]
    fn pool_whose_queue_empties_is_not_stalled() {
        assert_eq!(changes((0..100).map(|second| (7, usize::from(second % 10 != 0)))), []);
        assert_eq!(changes((0..100).map(|_| (7, 0))), [], "every thread is busy and no call waits");
    }

    #[test]
    fn slow_progress_is_progress() {
        assert_eq!(changes((0..100).map(|second| (second / 9, 5))), []);
    }

    proptest! {
        /// The detector reports a stall exactly if the same value was observed over the timeout.
        #[test]
        fn stall_is_reported_if_and_only_if_nothing_happened(
            steps in prop::collection::vec((0..2_u64, 0..8_usize), 1..200),
        ) {
            let observations: Vec<_> = steps
                .iter()
                // Progress is rare, and so is an empty queue.
                .scan(0, |sum, (progress, queued)| {
                    *sum += u64::from(*progress == 1 && *queued == 1);
                    Some((*sum, *queued))
                })
                .collect();
            let is_stalled = |end: usize| {
                end >= 10 && observations[end - 10..=end].iter().all(|(progress, queued)| {
                    *queued > 0 && *progress == observations[end].0
                })
            };
            let mut stalled = false;
            let mut expected = Vec::new();
            for end in 0..observations.len() {
                if std::mem::replace(&mut stalled, is_stalled(end)) != stalled {
                    expected.push((end as u64, stalled));
                }
            }
            let found: Vec<_> = changes(observations)
                .into_iter()
                .map(|(second, change)| (second, matches!(change, Change::Stalled(_))))
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}
