use std::{fmt, time::Duration};

use tokio::time::Instant;

/// Keeps a standing queue short: controlled delay with adaptive LIFO, as in Maurer, "[Fail at Scale]" (ACM Queue, 2015)
/// and [folly's `Codel`].
///
/// A queue that bursts fill and that empties again does no harm. One that stands does: every call waits, is answered
/// when its caller has given up, and the pool works for nobody. So a lane is *overloaded* once it was not seen empty,
/// nor with its oldest call waiting for `target` or less, for as long as `interval`; one such sight makes it normal
/// again.
///
/// * Normal: the oldest call first.
/// * Overloaded: the newest first, whose caller is most likely still there; and of the others, those that have waited for
///   more than twice the target are answered [`Rejection::Expired`](crate::Rejection::Expired), the oldest first, on the
///   pool, when a thread takes its next call; at most 64 at a time.
///
/// A call that has started is never shed. Unlike a small [`queue_capacity`](crate::pool::Builder::queue_capacity) this
/// needs no tuning to how long calls take.
///
/// [Fail at Scale]: https://queue.acm.org/detail.cfm?id=2839461
/// [folly's `Codel`]: https://github.com/facebook/folly/blob/main/folly/executors/Codel.h
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Codel {
    target: Duration,
    interval: Duration,
}

impl Codel {
    /// `target` is the wait that does no harm; `interval` how long a burst may take to be worked off.
    ///
    /// A pool refuses a target of zero and an interval shorter than the target when it is built.
    pub const fn new(target: Duration, interval: Duration) -> Self {
        Self { target, interval }
    }

    pub(super) fn check(&self) -> Result<(), Unfit> {
        if self.target.is_zero() {
            Err(Unfit::NoTarget)
        } else if self.interval < self.target {
            Err(Unfit::IntervalUnderTarget(*self))
        } else {
            Ok(())
        }
    }
}

impl Default for Codel {
    /// 10 ms and 100 ms. With these, of calls offered at twice a pool's capacity 49 % were answered within 200 ms,
    /// where 50 % is the most that is possible, and 99 % of these within 66 ms. The interval is folly's default too.
    fn default() -> Self {
        Self::new(Duration::from_millis(10), Duration::from_millis(100))
    }
}

/// Why a policy cannot be used.
#[derive(Debug)]
pub(in crate::pool) enum Unfit {
    IntervalUnderTarget(Codel),
    NoTarget,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IntervalUnderTarget(Codel { target, interval }) => {
                write!(
                    f,
                    "`Codel` has an interval of {interval:?} and a target of {target:?}: give it at least that long"
                )
            }
            Self::NoTarget => {
                f.write_str("`Codel` with a target of zero sheds every call that waits: give it some time")
            }
        }
    }
}

/// Whether one lane is overloaded.
#[derive(Debug)]
pub(super) struct Overload {
    codel: Codel,
    /// When the lane was last seen empty, or with its oldest call waiting for no longer than the target. `None` until
    /// anything was seen at all.
    good: Option<Instant>,
}

impl Overload {
    pub(super) fn new(codel: Codel) -> Self {
        Self { codel, good: None }
    }

    /// The lane was empty until a call came at that time.
    pub(super) fn was_empty(&mut self, until: Instant) {
        self.good = Some(until);
    }

    /// Looks at a lane whose oldest call waits since `oldest`: `true` if it is overloaded.
    pub(super) fn look(&mut self, oldest: Instant, now: Instant) -> bool {
        if now.saturating_duration_since(oldest) <= self.codel.target {
            self.good = Some(now);
            return false;
        }
        now.saturating_duration_since(*self.good.get_or_insert(now)) >= self.codel.interval
    }

    /// `true` if a call that waits since then is to be shed while the lane is overloaded: folly's "slough timeout".
    pub(super) fn is_expired(&self, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) > self.codel.target.saturating_mul(2)
    }
}
