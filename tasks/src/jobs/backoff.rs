use std::time::Duration;

/// How long a job waits after an attempt that failed.
///
/// Default: River's own, the fourth power of the number of failures in seconds (1 s, 16 s, 81 s, .. 3 weeks for all of 25), a tenth more or
/// less at random so that what failed together does not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Kind {
    Exponential {
        first: Duration,
        most: Duration,
    },
    Fixed(Duration),
    #[default]
    River,
}

impl Backoff {
    /// Always so long.
    pub fn fixed(delay: Duration) -> Self {
        Self(Kind::Fixed(delay))
    }

    /// So long after the first failure, twice as long after each further one, and never longer than `most`.
    pub fn exponential(first: Duration, most: Duration) -> Self {
        Self(Kind::Exponential { first, most })
    }

    /// How long after so many failures. `None` if River says so.
    pub(super) fn delay(self, failures: u32) -> Option<Duration> {
        match self.0 {
            Kind::Exponential { first, most } => {
                let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
                Some(first.saturating_mul(factor).min(most))
            }
            Kind::Fixed(delay) => Some(delay),
            Kind::River => None,
        }
    }

    /// As [`delay`](Self::delay); of River's the middle.
    pub(super) fn delay_after(self, failures: u32) -> Duration {
        let river = || Duration::from_secs(u64::from(failures).saturating_pow(4).min(MOST_OF_RIVER));
        self.delay(failures).unwrap_or_else(river)
    }
}

/// Some 292 years, as long as River can wait.
const MOST_OF_RIVER: u64 = (i64::MAX / 1_000_000_000).unsigned_abs();

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::Backoff;

    #[test]
    fn a_delay_grows_up_to_its_bound_whatever_the_number_of_failures() {
        let backoff = Backoff::exponential(Duration::from_secs(1), Duration::from_secs(60));
        let delays: Vec<_> =
            [1, 2, 3, 6, 7, 33, u32::MAX].map(|failures| backoff.delay_after(failures).as_secs()).into();
        assert_eq!(delays, [1, 2, 4, 32, 60, 60, 60]);
        assert_eq!(Backoff::fixed(Duration::from_secs(5)).delay_after(9), Duration::from_secs(5));
        assert_eq!(Backoff::default().delay_after(3), Duration::from_secs(81));
    }

    proptest! {
        #[test]
        fn more_failures_never_wait_shorter(failures in 0_u32..u32::MAX, first in 0_u64..10_000, most in 0_u64..1_000_000) {
            let backoff = Backoff::exponential(Duration::from_millis(first), Duration::from_millis(most));
            for backoff in [backoff, Backoff::default()] {
                prop_assert!(backoff.delay_after(failures) <= backoff.delay_after(failures + 1));
            }
        }
    }
}
