use std::{fmt, time::Duration};

/// Counters and gauges of a pool, returned by [`Admission::stats`](super::Admission::stats).
///
/// The counters are read one after the other while calls are running. Each counter is exact, but
/// sums may be off by the calls that changed their state in between. Durations are totals over all
/// calls: divide by `started` for a mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Number of calls that were rejected, for any reason. That includes calls that had started and
    /// whose deadline passed: they also count in `started`, and in `completed` if their work
    /// returned.
    pub rejected: u64,
    /// Number of permits for the queue in use: by calls that wait for their first poll, by entries
    /// of calls whose caller has left, and by reservations of
    /// [`backpressure`](crate::offload::OffloadLayer::backpressure).
    pub permits_in_use: usize,
    /// Number of calls that were admitted and have not ended: queued, running, or parked until they
    /// are woken.
    pub in_flight: usize,
    /// Number of calls that wait for capacity, with [`wait`](crate::offload::OffloadLayer::wait):
    /// for a permit of their layer or of the queue.
    pub waiting: usize,
    /// Number of calls that wait for their first poll, including the `waiting` ones.
    pub queued: usize,
    /// Time that calls waited for their first poll, for capacity and in the queue.
    pub queue_wait: Duration,
    /// Number of calls that were polled at least once.
    pub started: u64,
    /// Number of threads that are polling a call.
    pub active: usize,
    /// Number of calls that were woken and wait for their next poll.
    pub woken: usize,
    /// Time that calls waited for a thread after they were woken.
    pub resume_wait: Duration,
    /// Time that calls ran: the sum of their polls. Added when a call ends.
    pub run_time: Duration,
    /// The part of `run_time` after the caller had left or the deadline had passed: work whose
    /// result no caller uses. Without [detached](crate::offload::OffloadLayer::detached) calls. The
    /// metric has it by reason.
    pub cancelled_run_time: Duration,
    /// Time that the pool's threads ran calls, including destructors, up to now: a call that runs
    /// counts while it runs. The utilization between two readings is the increase of `busy_time`
    /// divided by that of `busy_time` and `idle_time` together. It never decreases.
    pub busy_time: Duration,
    /// Time that the pool's threads did not run calls. Threads that an on-demand pool has not
    /// started count as idle. Zero if the maximum number of threads is not known, as for
    /// [`Inline`](super::Inline) and pools with an [`Admission`](super::Admission) of your own. It
    /// never decreases.
    pub idle_time: Duration,
    /// Number of calls whose caller left before they ended.
    pub abandoned: u64,
    /// Number of panics: of calls, whether or not a caller observed them, and of destructors that
    /// ran on the pool.
    pub panicked: u64,
    /// Number of calls whose work returned an output, whether or not a caller took it.
    pub completed: u64,
    /// Number of calls whose first poll ran on the caller's thread, with
    /// [`adaptive`](crate::offload::OffloadLayer::adaptive).
    pub in_place: u64,
    /// Number of these that occupied the caller's thread for more than 1 ms.
    pub misplaced: u64,
    /// Number of times that the pool became overloaded, with
    /// [`QueuePolicy::AcceptBursts`](super::QueuePolicy::AcceptBursts).
    pub overloads: u64,
    /// Number of times that the pool was stalled: calls waited for a thread, and for 10 s no call
    /// made progress. See [stalled pools](crate::pool#stalled-pools).
    pub stalls: u64,
    /// Time since the last progress of a pool that is stalled now; otherwise zero.
    pub stalled_for: Duration,
}

/// Calls that were left when the timeout of a pool's shutdown had passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolShutdownReport {
    /// Number of calls that never started. They are dropped and fail with
    /// [`CallError::Closed`](super::CallError::Closed).
    pub queued: usize,
    /// Number of calls that a thread is running. Only the work itself can stop early:
    /// [`cancelled`](super::cancelled) returns `true` inside it. The pool does not wait for it.
    pub running: usize,
    /// Number of calls that wait for something other than a thread. When one of them is woken, it
    /// is dropped on the pool and fails with [`CallError::Closed`](super::CallError::Closed).
    pub parked: usize,
}

impl PoolShutdownReport {
    pub(super) fn new(stats: &PoolStats) -> Self {
        // The gauges were read while threads were running, so the parts may exceed the sum.
        let running = stats.active.min(stats.in_flight);
        let queued = stats.queued.saturating_sub(stats.waiting).min(stats.in_flight - running);
        Self { queued, running, parked: stats.in_flight - running - queued }
    }

    /// Returns `true` if every call ended in time.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Formats the numbers that are not zero, for example as `calls: 3 never started, 1 still running`,
/// or as `every call ended`.
impl fmt::Display for PoolShutdownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queued, running, parked } = *self;
        if self.is_empty() {
            return f.write_str("every call ended");
        }
        let mut separator = "calls: ";
        let counts = [(queued, "never started"), (running, "still running"), (parked, "dropped while they waited")];
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{separator}{count} {what}")?;
            separator = ", ";
        }
        Ok(())
    }
}
