use std::time::Duration;

use tokio::time::Instant;

/// Time until which the result of a call is wanted.
///
/// A call that has not started at its deadline never starts, and a caller that awaits a call is
/// answered at the deadline, with
/// [`CallError::DeadlineExceeded`](crate::CallError::DeadlineExceeded). A result that comes later
/// is dropped. See [deadlines](crate::pool#deadlines).
///
/// A call gets a deadline from its options ([`CallOptions`](super::CallOptions),
/// [`OffloadLayer::timeout`](crate::OffloadLayer::timeout)), from the offloaded work that makes it,
/// or from an enclosing [`scope`](Self::scope). The earliest one applies.
///
/// ```
/// use std::time::Duration;
/// use tower_offload::{CallError, ThreadPool, pool::{Deadline, Pool}};
///
/// # #[tokio::main]
/// # async fn main() {
/// let pool = ThreadPool::cpu();
/// let deadline = Deadline::after(Duration::from_secs(2));
/// let both = deadline.scope(async { (pool.run(|| "fast").await, pool.run(|| "slow").await) });
/// assert_eq!(both.await, (Ok("fast"), Ok("slow"))); // or `Err(CallError::DeadlineExceeded)`
///
/// let expired = Deadline::after(Duration::ZERO);
/// let ended = expired.scope(async { pool.run(|| ()).await }).await;
/// assert_eq!(ended, Err(CallError::DeadlineExceeded));
/// # }
/// ```
///
/// # In an HTTP stack
///
/// A middleware outside of the layer can attach a deadline to the extensions of a request, where
/// the layer's [`timeout`](crate::OffloadLayer::timeout) finds it:
///
/// ```
/// # use tower_offload::{OffloadLayer, ThreadPool, pool::Deadline};
/// let layer = OffloadLayer::new(ThreadPool::cpu())
///     .timeout(|head| head.extensions().get::<Deadline>()?.remaining());
/// # use axum::{Router, routing::get};
/// # let _: Router = Router::new().route("/", get(async || "")).layer(layer);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Deadline(
    /// `None`: there is no deadline.
    Option<Instant>,
);

impl Deadline {
    /// No deadline. The default.
    pub const NONE: Self = Self(None);

    /// Returns the deadline that passes after `timeout`. If the clock cannot represent it, there is
    /// no deadline.
    pub fn after(timeout: Duration) -> Self {
        Self(Instant::now().checked_add(timeout))
    }

    /// Returns the earlier one of two deadlines.
    #[must_use]
    pub fn earlier(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some(one), Some(two)) => Self(Some(one.min(two))),
            (one, two) => Self(one.or(two)),
        }
    }

    /// Returns the time until the deadline: zero once it has passed, and `None` if there is none.
    pub fn remaining(&self) -> Option<Duration> {
        // The clock is not read without a deadline.
        self.0.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Returns `true` if the deadline has passed.
    pub fn has_passed(&self) -> bool {
        self.remaining().is_some_and(|remaining| remaining.is_zero())
    }

    /// Returns the deadline as nanoseconds after `start`.
    #[inline]
    pub(super) fn nanos_after(self, start: Instant) -> u64 {
        let nanos = |at: Instant| u64::try_from(at.saturating_duration_since(start).as_nanos());
        self.0.map_or(Self::NO_NANOS, |at| nanos(at).unwrap_or(Self::NO_NANOS))
    }

    /// Returns the deadline of which [`nanos_after`](Self::nanos_after) has returned `nanos`.
    pub(super) fn from_nanos_after(start: Instant, nanos: u64) -> Self {
        Self((nanos != Self::NO_NANOS).then(|| start.checked_add(Duration::from_nanos(nanos))).flatten())
    }

    /// The nanoseconds of no deadline. Deadlines after 584 years have the same.
    pub(super) const NO_NANOS: u64 = u64::MAX;

    /// Returns the time of the deadline.
    pub(super) fn at(self) -> Option<Instant> {
        self.0
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use super::*;

    #[test]
    fn timeout_beyond_the_clock_is_no_deadline() {
        assert_eq!(Deadline::after(Duration::MAX), Deadline::NONE);
        assert_eq!(Deadline::NONE.remaining(), None);
        assert!(!Deadline::NONE.has_passed());
        assert!(Deadline::after(Duration::ZERO).has_passed());
    }

    #[test]
    fn earlier_deadline_wins_over_a_later_one_and_over_none() {
        let (soon, late) = (Deadline::after(Duration::from_secs(1)), Deadline::after(Duration::from_secs(2)));
        for other in [late, Deadline::NONE] {
            assert_eq!((soon.earlier(other), other.earlier(soon)), (soon, soon));
        }
    }

    #[test]
    fn nanoseconds_of_a_deadline_are_converted_back() {
        let start = Instant::now();
        for deadline in [Deadline::NONE, Deadline(start.checked_add(Duration::from_millis(1500)))] {
            assert_eq!(Deadline::from_nanos_after(start, deadline.nanos_after(start)), deadline);
        }
        let millennia = Deadline::after(Duration::from_secs(60 * 60 * 24 * 365_000));
        assert_eq!(Deadline::from_nanos_after(start, millennia.nanos_after(start)), Deadline::NONE);
    }
}
