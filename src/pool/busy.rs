//! Time that threads spend on calls, which can be read while they do.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Number of bits of [`BusyTime`] that hold microseconds.
const TIME_BITS: u32 = 52;

/// A thread, in the high bits of [`BusyTime`].
const THREAD: u64 = 1 << TIME_BITS;

/// The total time that some threads were busy.
///
/// It holds the number of threads that are busy now, times [`THREAD`], plus the sum of the times at
/// which threads have stopped, minus the sum of those at which they have started. Times are in
/// microseconds since an epoch. All of it is one word, so that a reader finds a thread either busy
/// or stopped. A read-modify-write at the start and at the end of a busy period maintains it.
///
/// The difference of the sums must remain below 2^51 in magnitude: 71 years of one thread.
#[derive(Debug, Default)]
pub(super) struct BusyTime(AtomicU64);

impl BusyTime {
    /// Records that a thread has become busy at `now`.
    pub(super) fn start(&self, now: u64) {
        self.0.fetch_add(THREAD.wrapping_sub(now), Relaxed);
    }

    /// Records that a thread has stopped at `now`.
    pub(super) fn stop(&self, now: u64) {
        self.0.fetch_add(now.wrapping_sub(THREAD), Relaxed);
    }

    /// Returns the total until `now`, in microseconds.
    pub(super) fn total(&self, now: u64) -> u64 {
        let word = self.0.load(Relaxed);
        // Rounds to the nearest multiple of `THREAD`, because the rest may be negative.
        let threads = word.wrapping_add(THREAD / 2) >> TIME_BITS;
        let total = word.wrapping_sub(threads << TIME_BITS).wrapping_add(threads.wrapping_mul(now));
        // Negative only if a thread has started after `now`.
        if total > i64::MAX as u64 { 0 } else { total }
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn running_period_counts_until_now() {
        let busy = BusyTime::default();
        assert_eq!(busy.total(5), 0);
        busy.start(10);
        assert_eq!([10, 11, 60].map(|now| busy.total(now)), [0, 1, 50]);
        assert_eq!(busy.total(9), 0, "read with a time before the start");
        busy.stop(70);
        assert_eq!(busy.total(1000), 60);
    }

    proptest! {
        /// Thousands of threads that start and stop in any order.
        #[test]
        fn total_is_the_sum_of_all_periods(
            steps in prop::collection::vec((0..4000_usize, 0..1_u64 << 30), 1..200),
        ) {
            let (busy, mut now, mut total) = (BusyTime::default(), 0, 0);
            let mut started = vec![None; 4000];
            for (thread, step) in steps {
                now += step;
                match started[thread].take() {
                    None => {
                        busy.start(now);
                        started[thread] = Some(now);
                    }
                    Some(since) => {
                        busy.stop(now);
                        total += now - since;
                    }
                }
                let running: u64 = started.iter().flatten().map(|since| now - since).sum();
                prop_assert_eq!(busy.total(now), total + running);
            }
        }
    }
}
