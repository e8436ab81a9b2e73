//! How many jobs of a queue this process claims, and how many run at the same time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use riverqueue::{Client, QueueConfig};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The slots of a queue in this process.
///
/// Only as many jobs are claimed as can run, so that other processes can run the others. While jobs
/// are short, more are claimed: a claim takes a few milliseconds, in which the workers would be
/// idle.
pub(super) struct Slots {
    pub(super) queue: String,
    concurrency: usize,
    /// Interval between claims without a notification, which may be lost.
    poll_interval: Duration,
    permits: Semaphore,
    /// Mean run time of the latest jobs, in microseconds. Greater than any run time before the
    /// first job has ended, and after a job had to wait for a long one.
    mean_run_time: AtomicU64,
    /// Number of jobs that are claimed although they cannot run yet.
    ahead: AtomicUsize,
    /// Changes with each wake-up.
    parity: AtomicBool,
}

/// Returns how many jobs to claim although they cannot run yet: as many as run within
/// [`MAX_AHEAD_TIME`], in powers of two, so that the number rarely changes.
fn ahead(concurrency: usize, mean_run_time: Duration) -> usize {
    let each = MAX_AHEAD_TIME.as_nanos() / mean_run_time.as_nanos().max(1);
    let each = usize::try_from(each).unwrap_or(usize::MAX).min(MAX_AHEAD);
    if each < MIN_AHEAD {
        return 0;
    }
    concurrency.saturating_mul(1 << each.ilog2()).min(MAX_AHEAD)
}

/// Time in which the jobs run that are claimed ahead. A claim takes a few milliseconds.
const MAX_AHEAD_TIME: Duration = Duration::from_millis(10);
/// Jobs are claimed ahead only if as many as this run in [`MAX_AHEAD_TIME`] in each slot.
const MIN_AHEAD: usize = 2;
/// Maximum number of jobs that are claimed ahead.
const MAX_AHEAD: usize = 32;
/// Number of jobs over which the mean of their run times is taken.
const MEAN_OF: u64 = 16;
/// Longest run time that is counted: more than a year, and small enough for the sum.
const MAX_MICROS: u64 = 1 << 50;

/// Minimum time between two claims. Jobs that finish in between share the next claim.
const FETCH_COOLDOWN: Duration = Duration::from_millis(2);
impl Slots {
    pub(super) fn new(queue: String, concurrency: usize, poll_interval: Duration) -> Self {
        Self {
            queue,
            concurrency,
            poll_interval,
            permits: Semaphore::new(concurrency),
            mean_run_time: AtomicU64::new(u64::MAX),
            ahead: AtomicUsize::new(0),
            parity: AtomicBool::new(false),
        }
    }

    /// Waits until another job may run.
    pub(super) async fn acquire(&self) -> SemaphorePermit<'_> {
        self.permits.acquire().await.expect("the semaphore is never closed")
    }

    /// Returns River's configuration of the queue.
    ///
    /// River applies a new configuration at once and then claims jobs. Therefore two configurations
    /// alternate, which differ by a nanosecond.
    pub(super) fn config(&self) -> QueueConfig {
        let parity = Duration::from_nanos(self.parity.load(Relaxed).into());
        QueueConfig::new((self.concurrency + self.ahead.load(Relaxed)).min(super::client::MAX_CONCURRENCY))
            .with_fetch_cooldown(FETCH_COOLDOWN + parity)
            .with_fetch_poll_interval(self.poll_interval)
    }

    /// Makes a running client claim jobs now.
    pub(super) fn wake(&self, client: &Client) {
        self.parity.fetch_xor(true, Relaxed);
        let _ = client.local_queues().update(&self.queue, self.config()); // fails if it is not running
    }

    /// Records the run time of a job.
    pub(super) fn on_end(&self, run_time: Duration, client: Option<&Client>) {
        let micros = u64::try_from(run_time.as_micros()).unwrap_or(u64::MAX).min(MAX_MICROS);
        let mean = match self.mean_run_time.load(Relaxed) {
            u64::MAX => micros,
            mean => (mean * (MEAN_OF - 1) + micros) / MEAN_OF,
        };
        self.mean_run_time.store(mean, Relaxed); // a concurrent change may be lost
        self.set_ahead(ahead(self.concurrency, Duration::from_micros(mean)), client);
    }

    /// Records that a job that was claimed ahead had to wait for a long one.
    pub(super) fn on_long_wait(&self, client: Option<&Client>) {
        self.mean_run_time.store(u64::MAX, Relaxed);
        self.set_ahead(0, client);
    }

    fn set_ahead(&self, ahead: usize, client: Option<&Client>) {
        let has_changed = self.ahead.swap(ahead, Relaxed) != ahead;
        if let Some(client) = client.filter(|_| has_changed) {
            self.wake(client);
        }
    }
}

/// The slots of all queues that a process works.
pub(super) struct AllSlots(Vec<Arc<Slots>>);

impl AllSlots {
    pub(super) fn new(queues: impl IntoIterator<Item = (String, usize)>, poll_interval: Duration) -> Self {
        let slots = |(queue, concurrency)| Arc::new(Slots::new(queue, concurrency, poll_interval));
        Self(queues.into_iter().map(slots).collect())
    }

    pub(super) fn get(&self, queue: &str) -> Option<&Arc<Slots>> {
        self.0.iter().find(|slots| slots.queue == queue)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Slots>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::ahead;

    #[test]
    fn only_short_jobs_are_claimed_ahead() {
        let ahead = |concurrency, micros| ahead(concurrency, Duration::from_micros(micros));
        assert_eq!([0, 100, 1000, 2500, 5000].map(|micros| ahead(2, micros)), [32, 32, 16, 8, 4]);
        assert_eq!([5001, 100_000, u64::MAX].map(|micros| ahead(2, micros)), [0, 0, 0]);
        assert_eq!((ahead(32, 5000), ahead(10_000, 0)), (32, 32), "never more than 32");
    }
}
