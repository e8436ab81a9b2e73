use std::{fmt, time::Duration};

use tokio::time::Instant;

/// Order in which the waiting calls of one [`Priority`](crate::pool::Priority) start, and whether
/// calls that waited for too long are shed.
///
/// ```
/// use tower_offload::{ThreadPool, pool::Codel};
///
/// let pool = ThreadPool::builder().queue_policy(Codel::default()).build()?;
/// # let _ = pool;
/// # Ok::<(), tower_offload::pool::ThreadPoolBuildError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueuePolicy {
    /// First in, first out. Every queued call starts, however long it waited, and a call is
    /// rejected either at once, because the queue is full, or never. With the default capacity and
    /// calls of 5 ms on two threads, an overload makes each call wait for 2.5 s.
    Fifo,
    /// First in, first out, and bursts wait. If the queue does not drain, calls are rejected at
    /// once until it does, so that the others wait only briefly. No setting depends on the duration
    /// of calls, which is why this is the default.
    ///
    /// This applies to requests: to the calls of an [`OffloadLayer`](crate::OffloadLayer) and of an
    /// `axum::blocking` handler, whose callers get an answer if they are rejected, and to those of
    /// a `ProcessPool` as a service. Other calls were accepted before, by the program or by a
    /// background: those of [`run`](crate::pool::Pool::run), the tasks of a
    /// [`Background`](crate::Background), a [`BlockingBody`](crate::offload::BlockingBody), and
    /// what [`backpressure`](crate::OffloadLayer::backpressure) reserves. They are rejected only if
    /// the queue is full, are never shed, and are no reason for an overload. In the queue they are
    /// equal: a call of a layer waits for all that came before it, however many these are. Give the
    /// layer [`Priority::High`](crate::Priority::High) or a pool of its own if it must not.
    ///
    /// The pool becomes *overloaded* while at least two calls per thread, and at least four, wait
    /// for two windows of time, and the queue still grows after the first: by over an eighth of the
    /// calls that start, and by more than chance explains. A window takes at least 20 ms, and at
    /// least four calls per thread start in it. The queue of a burst shrinks, and that of a fixed
    /// number of callers who wait for their answers stays the same, so neither is an overload. Nor
    /// are calls that are rejected early because of their key or priority.
    ///
    /// During an overload at most two calls per thread wait, and at least four. The pool rejects
    /// others with [`CallError::Overloaded`](crate::CallError::Overloaded), and at its start also
    /// the oldest of those that wait, with [`CallError::Expired`](crate::CallError::Expired). A
    /// call of a [key](crate::pool#keys) or group that has no other call in the queue may wait
    /// until the queue is eight times as long, so that a few busy keys do not lock out others.
    /// Calls without a key are one group. With a
    /// [`queue_capacity`](crate::pool::ThreadPoolBuilder::queue_capacity) of at most two per
    /// thread, or four, the queue is never longer, and this is the same as `Fifo`.
    ///
    /// The overload ends when fewer than an eighth of the arriving calls are rejected, or after a
    /// pause of 20 ms in which the queue became empty. To find out whether it is only kept up by
    /// rejected callers who return, the limit is lifted from time to time: first after a second or
    /// more, and then for less than 1 % of the time. If the queue grows quickly, that ends after
    /// two windows, and otherwise after at most 1.5 s.
    #[default]
    AcceptBursts,
    /// Sheds calls to keep waits short. See [`Codel`].
    Codel(Codel),
}

impl QueuePolicy {
    pub(in crate::pool) fn validate(&self) -> Result<(), InvalidPolicy> {
        match self {
            Self::Fifo | Self::AcceptBursts => Ok(()),
            Self::Codel(codel) => codel.validate(),
        }
    }
}

impl From<Codel> for QueuePolicy {
    fn from(codel: Codel) -> Self {
        Self::Codel(codel)
    }
}

/// Keeps a standing queue short: controlled delay with adaptive LIFO, as described in Maurer,
/// "[Fail at Scale]" (ACM Queue, 2015) and implemented in [folly's `Codel`].
///
/// A queue that fills in a burst and empties again does no harm. A queue that never empties does:
/// every call waits, callers give up before they are answered, and the pool works for nothing. The
/// queue of one priority is therefore *overloaded* once, for all of `interval`, it was never empty
/// and its oldest call always waited for more than `target`. It recovers as soon as either is no
/// longer true.
///
/// * Not overloaded: the oldest call starts first.
/// * Overloaded: the newest call starts first, since its caller is the most likely to be still
///   waiting. Calls that have waited for more than twice the target fail with
///   [`CallError::Expired`](crate::CallError::Expired), oldest first and at most 64 at a time, on
///   the pool thread that takes the next call.
///
/// A started call is never shed. Unlike a small
/// [`queue_capacity`](crate::pool::ThreadPoolBuilder::queue_capacity), this policy needs no tuning
/// to the duration of calls.
///
/// [Fail at Scale]: https://queue.acm.org/detail.cfm?id=2839461
/// [folly's `Codel`]: https://github.com/facebook/folly/blob/main/folly/executors/Codel.h
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Codel {
    target: Duration,
    interval: Duration,
}

impl Codel {
    /// Creates a policy from the acceptable wait (`target`) and the time within which the pool must
    /// work off a burst (`interval`).
    ///
    /// Building a pool fails if the target is zero or the interval is shorter than the target.
    pub const fn new(target: Duration, interval: Duration) -> Self {
        Self { target, interval }
    }

    fn validate(&self) -> Result<(), InvalidPolicy> {
        if self.target.is_zero() {
            Err(InvalidPolicy::ZeroTarget)
        } else if self.interval < self.target {
            Err(InvalidPolicy::IntervalBelowTarget(*self))
        } else {
            Ok(())
        }
    }
}

impl Default for Codel {
    /// Returns a policy with a target of 10 ms and an interval of 100 ms, which is folly's default
    /// interval too.
    ///
    /// Measured with calls offered at twice the capacity of a pool: 49 % were answered within
    /// 200 ms, of the 50 % that are possible, and 99 % of these within 66 ms.
    fn default() -> Self {
        Self::new(Duration::from_millis(10), Duration::from_millis(100))
    }
}

/// Reason why a [`QueuePolicy`] cannot be used.
#[derive(Debug)]
pub(in crate::pool) enum InvalidPolicy {
    ZeroTarget,
    IntervalBelowTarget(Codel),
}

impl fmt::Display for InvalidPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ZeroTarget => {
                f.write_str("`Codel` with a target of zero sheds every call that waits: use a longer target")
            }
            Self::IntervalBelowTarget(Codel { target, interval }) => {
                write!(f, "`Codel` interval {interval:?} is shorter than target {target:?}: use at least the target")
            }
        }
    }
}

/// Detects whether one lane of the queue is overloaded.
#[derive(Debug)]
pub(super) struct OverloadDetector {
    codel: Codel,
    /// Last time at which the lane was empty or its oldest call had waited for at most the target.
    /// `None` until the first observation.
    last_good: Option<Instant>,
}

impl OverloadDetector {
    pub(super) fn new(codel: Codel) -> Self {
        Self { codel, last_good: None }
    }

    /// Records that the lane was empty until a call arrived at `until`.
    pub(super) fn on_empty(&mut self, until: Instant) {
        self.last_good = Some(until);
    }

    /// Records the arrival of the lane's oldest call and returns `true` if the lane is overloaded.
    pub(super) fn is_overloaded(&mut self, oldest: Instant, now: Instant) -> bool {
        if now.saturating_duration_since(oldest) <= self.codel.target {
            self.last_good = Some(now);
            return false;
        }
        now.saturating_duration_since(*self.last_good.get_or_insert(now)) >= self.codel.interval
    }

    /// Returns `true` if a call that arrived at `since` is shed while the lane is overloaded. Folly
    /// calls the limit "slough timeout".
    pub(super) fn is_expired(&self, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) > self.codel.target.saturating_mul(2)
    }
}
