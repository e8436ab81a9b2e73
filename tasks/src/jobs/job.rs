//! The public properties of a job: its kind, its retries and its uniqueness.

use std::time::Duration;

use riverqueue::{DefaultRetryPolicy, JobRow, RetryPolicy, UniqueOpts, WorkError, jiff::Timestamp};
use serde::{Serialize, de::DeserializeOwned};

/// Arguments of a job. Each kind of job has its own type.
///
/// The arguments are stored as JSON of at most [64 KiB](crate::Json::MAX_BYTES). Jobs outlive the
/// program that enqueued them, so a new version must be able to read the arguments of the old one.
/// Add fields with `#[serde(default)]`.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tower_offload_tasks::jobs::Job;
///
/// #[derive(Serialize, Deserialize)]
/// struct Report {
///     customer: u64,
/// }
///
/// impl Job for Report {
///     const KIND: &'static str = "report";
/// }
/// ```
pub trait Job: Serialize + DeserializeOwned + Send + 'static {
    /// The kind of the job, in the queue and as the name of its task. River clients in other
    /// languages identify the job by it.
    ///
    /// It has 2 to 127 bytes: letters, digits and characters of `_-[]<>/.·:+`, of which the first
    /// is a letter, a digit or `_`. This is River's rule.
    const KIND: &'static str;

    /// The queue of the job, unless [`Enqueue::queue`](super::Enqueue::queue) sets another one.
    /// Default: `default`, like in River.
    const QUEUE: &'static str = "default";

    /// The maximum number of attempts, unless
    /// [`Enqueue::max_attempts`](super::Enqueue::max_attempts) sets another one. An attempt counts
    /// even if its process crashes. Default: 25, like in River.
    const MAX_ATTEMPTS: u16 = 25;
}

/// Delay before the next attempt of a job that failed.
///
/// The default is River's policy: `n`⁴ seconds after the `n`th failure (1 s, 16 s, 81 s, ..., three
/// weeks for all 25 attempts), with a random deviation of up to 10 %, so that jobs that failed
/// together are not retried together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff(BackoffKind);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum BackoffKind {
    #[default]
    River,
    Fixed(Duration),
    Exponential {
        first: Duration,
        max: Duration,
    },
}

impl Backoff {
    /// Waits for the same delay after every failure.
    pub fn fixed(delay: Duration) -> Self {
        Self(BackoffKind::Fixed(delay))
    }

    /// Waits for `first` after the first failure and twice as long after each further one, but
    /// never longer than `max`.
    pub fn exponential(first: Duration, max: Duration) -> Self {
        Self(BackoffKind::Exponential { first, max })
    }

    /// Returns the delay after this number of failures, or `None` for River's policy.
    pub(super) fn delay(self, failures: u32) -> Option<Duration> {
        match self.0 {
            BackoffKind::River => None,
            BackoffKind::Fixed(delay) => Some(delay),
            BackoffKind::Exponential { first, max } => {
                let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
                Some(first.saturating_mul(factor).min(max))
            }
        }
    }

    /// Returns the delay before the next attempt of a job that has just failed.
    pub(super) fn retry_delay(self, job: &JobRow, error: &WorkError, now: Timestamp) -> Duration {
        let failures = u32::try_from(job.errors.len()).unwrap_or(u32::MAX).saturating_add(1);
        self.delay(failures).unwrap_or_else(|| DefaultRetryPolicy::default().next_retry(job, error, now))
    }

    /// Returns the delay like [`delay`](Self::delay). For River's policy it is the delay without
    /// the random deviation.
    pub(super) fn mean_delay(self, failures: u32) -> Duration {
        let river = || Duration::from_secs(u64::from(failures).saturating_pow(4).min(MAX_RIVER_SECONDS));
        self.delay(failures).unwrap_or_else(river)
    }
}

/// About 292 years, the longest delay that River can represent.
const MAX_RIVER_SECONDS: u64 = (i64::MAX / 1_000_000_000).unsigned_abs();

/// Criterion for equal jobs, of which only one is enqueued.
///
/// It applies until the earlier job is cancelled, discarded or deleted. A job that succeeded still
/// counts, until River deletes it after a day.
#[derive(Debug, Clone)]
#[must_use = "it has no effect unless it is passed to `Enqueue::unique`"]
pub struct Unique {
    options: UniqueOpts,
    pub(super) is_by_content: bool,
}

impl Unique {
    /// Jobs are equal if they have the same kind and the same arguments. The order of the fields of
    /// objects does not matter, so maps can be compared.
    pub fn by_content() -> Self {
        Self { options: UniqueOpts::new().with_by_args(true), is_by_content: true }
    }

    /// Jobs are equal if they have the same kind.
    pub fn by_kind() -> Self {
        Self { options: UniqueOpts::new(), is_by_content: false }
    }

    /// Restricts the criterion to jobs of the same period.
    ///
    /// Periods start at multiples of their length since 1970, by the clock of the host that
    /// enqueues the job. The length is truncated to whole seconds and is at least one second.
    pub fn within(self, period: Duration) -> Self {
        Self { options: self.options.with_by_period(Duration::from_secs(period.as_secs().max(1))), ..self }
    }

    /// Restricts the criterion to jobs of the same queue.
    pub fn by_queue(self) -> Self {
        Self { options: self.options.with_by_queue(true), ..self }
    }

    pub(super) fn into_options(self) -> UniqueOpts {
        self.options
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::Backoff;

    #[test]
    fn delay_grows_to_its_maximum_without_overflow() {
        let backoff = Backoff::exponential(Duration::from_secs(1), Duration::from_secs(60));
        let delays: Vec<_> =
            [1, 2, 3, 6, 7, 33, u32::MAX].map(|failures| backoff.mean_delay(failures).as_secs()).into();
        assert_eq!(delays, [1, 2, 4, 32, 60, 60, 60]);
        assert_eq!(Backoff::fixed(Duration::from_secs(5)).mean_delay(9), Duration::from_secs(5));
        assert_eq!(Backoff::default().mean_delay(3), Duration::from_secs(81));
    }

    proptest! {
        #[test]
        fn delay_never_shrinks(failures in 0_u32..u32::MAX, first in 0_u64..10_000, max in 0_u64..1_000_000) {
            let backoff = Backoff::exponential(Duration::from_millis(first), Duration::from_millis(max));
            for backoff in [backoff, Backoff::default()] {
                prop_assert!(backoff.mean_delay(failures) <= backoff.mean_delay(failures + 1));
            }
        }
    }
}
