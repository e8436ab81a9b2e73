use std::{fmt, time::Duration};

use tokio::time::Instant;

use super::time::{self, PoolTime};

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
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Deadline(
    /// `PoolTime::MAX` if there is no deadline, which is later than all others.
    PoolTime,
);

impl Deadline {
    /// No deadline. The default.
    pub const NONE: Self = Self(PoolTime::MAX);

    /// Returns the deadline that passes after `timeout`. After more than five centuries, there is
    /// no deadline.
    pub fn after(timeout: Duration) -> Self {
        Self(time::after(time::now(), timeout))
    }

    /// Returns the earlier one of two deadlines.
    #[must_use]
    #[inline]
    pub fn earlier(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    /// Returns the time until the deadline: zero once it has passed, and `None` if there is none.
    pub fn remaining(&self) -> Option<Duration> {
        // The clock is not read without a deadline.
        (*self != Self::NONE).then(|| Duration::from_nanos(self.0.saturating_sub(time::now())))
    }

    /// Returns `true` if the deadline has passed.
    #[inline]
    pub fn has_passed(&self) -> bool {
        *self != Self::NONE && self.has_passed_at(time::now())
    }

    /// Returns `true` if the deadline has passed at this time.
    #[inline]
    pub(super) fn has_passed_at(self, time: PoolTime) -> bool {
        self.0 <= time
    }

    /// Returns the time since the deadline. Zero if it has not passed at `time`.
    pub(super) fn overrun_at(self, time: PoolTime) -> PoolTime {
        time.saturating_sub(self.0)
    }

    /// Returns the time of the deadline.
    pub(super) fn at(self) -> Option<Instant> {
        (self != Self::NONE).then(|| time::instant(self.0))
    }
}

impl Default for Deadline {
    fn default() -> Self {
        Self::NONE
    }
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Deadline").field(&self.at()).finish()
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
    fn deadline_after_millennia_is_none() {
        let centuries = |centuries: u64| Duration::from_secs(60 * 60 * 24 * 36_525 * centuries);
        assert_ne!(Deadline::after(centuries(5)), Deadline::NONE);
        assert_eq!(Deadline::after(centuries(10)), Deadline::NONE);
    }
}
