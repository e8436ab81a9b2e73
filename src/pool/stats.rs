use std::{fmt, time::Duration};

/// What a pool has done and is doing, as [`Gate::stats`](super::Gate::stats) saw it.
///
/// The counters are read one after the other while calls go on: each is right, their sum may be off by the calls of that
/// moment. Durations are sums over all calls; divide by `started` for a mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Calls whose caller left before they ended.
    pub abandoned: u64,
    /// Threads that are polling a call now.
    pub active: usize,
    /// Calls that ended with an output.
    pub completed: u64,
    /// Calls that were admitted and have not ended: queued, running, or parked until something wakes them.
    pub in_flight: usize,
    /// Panics: of calls, whoever saw them, and of what was dropped on the pool.
    pub panicked: u64,
    /// Calls that wait for their first poll now.
    pub queued: usize,
    /// How long calls waited for their first poll.
    pub queue_wait: Duration,
    /// Calls that were refused, for whatever reason.
    pub rejected: u64,
    /// Calls that were woken and wait for their next poll now.
    pub resumed: usize,
    /// How long calls waited for a thread after they were woken.
    pub resume_wait: Duration,
    /// How long calls ran: the sum of their polls.
    pub run_time: Duration,
    /// Places in the queue that are taken: by calls that wait for their first poll, by calls whose caller left and whose
    /// turn has not come yet, and by what [`backpressure`](crate::offload::OffloadLayer::backpressure) has reserved.
    pub slots_taken: usize,
    /// Calls that were polled for the first time.
    pub started: u64,
}

/// What a pool left undone at the end of its shutdown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Left {
    /// Calls that wait for something other than a thread. When that wakes them they are dropped on the pool and answered
    /// [`Rejection::Closed`](super::Rejection::Closed).
    pub parked: usize,
    /// Calls that never started. They are dropped and answered [`Rejection::Closed`](super::Rejection::Closed).
    pub queued: usize,
    /// Calls that a thread is working on. Nobody can stop them but they themselves
    /// ([`cancelled`](crate::pool::cancelled) is true for them now); they are not waited for.
    pub running: usize,
}

impl Left {
    pub(super) fn of(stats: &Stats) -> Self {
        // The three counters are read while threads go on: never claim more than there were.
        let running = stats.active.min(stats.in_flight);
        let queued = stats.queued.min(stats.in_flight - running);
        Self { running, queued, parked: stats.in_flight - running - queued }
    }

    /// `true` if every call ended in time.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { parked, queued, running } = self;
        if self.is_empty() {
            f.write_str("nothing")
        } else {
            write!(f, "{running} running, {queued} queued, {parked} parked")
        }
    }
}
