//! Numbers of the jobs that wait, and of the ends that are not written.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use super::{database::Waiting, events::warn, queue::Queue};
use crate::{
    StoreError,
    metrics::{self, JobLabels},
};

/// Interval at which the jobs that wait are counted. The query reads at most 10 000 rows of each
/// priority of a queue.
const COUNT_INTERVAL: Duration = Duration::from_secs(15);

/// Age from which an end that is not written counts. River writes ends in batches, so that under
/// load some are always on their way.
const UNWRITTEN_AGE: Duration = Duration::from_secs(10);

/// Counts the jobs that wait in the queues that this program knows, until maintenance ends.
///
/// No program works the queue of jobs that are put aside because their kind is paused, so these do
/// not count.
pub(super) async fn count_waiting(queue: Arc<Queue>) {
    let mut gauges = Gauges::default();
    let mut ticks = interval(COUNT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased; // so that nothing starts after the end
            () = queue.maintenance_ended() => break,
            _ = ticks.tick() => {
                let running = &queue.environment.running;
                gauges.set_local(running.waiting(), running.unwritten_for(UNWRITTEN_AGE));
                match waiting(&queue).await {
                    Ok(waiting) => gauges.set_waiting(waiting),
                    Err(error) => warn("failed to count the jobs that wait", &error),
                }
            }
        }
    }
    gauges.set_local(0, 0);
    gauges.set_waiting(BTreeMap::new());
}

async fn waiting(queue: &Queue) -> Result<BTreeMap<JobLabels, Waiting>, StoreError> {
    let names = queue.environment.counters.names();
    let mut all = BTreeMap::new();
    for name in names.queues() {
        for (kind, waiting) in queue.environment.database.waiting(&name).await? {
            let sum: &mut Waiting = all.entry(names.labels(&kind, &name)).or_default();
            sum.jobs = sum.jobs.saturating_add(waiting.jobs);
            sum.oldest = sum.oldest.max(waiting.oldest);
        }
    }
    Ok(all)
}

/// The values that the recorder has. It gets differences, so several queues in a process add up,
/// except the age of the oldest job.
#[derive(Default)]
struct Gauges {
    /// Claimed jobs that wait for a thread.
    claimed: usize,
    /// Ends that have not been written for [`UNWRITTEN_AGE`].
    unwritten: usize,
    waiting: BTreeMap<JobLabels, Waiting>,
}

impl Gauges {
    fn set_local(&mut self, claimed: usize, unwritten: usize) {
        metrics::change("offload_jobs_waiting", self.claimed as f64, claimed as f64);
        metrics::change("offload_jobs_unwritten", self.unwritten as f64, unwritten as f64);
        (self.claimed, self.unwritten) = (claimed, unwritten);
    }

    fn set_waiting(&mut self, waiting: BTreeMap<JobLabels, Waiting>) {
        let last = std::mem::replace(&mut self.waiting, waiting);
        let labels: BTreeSet<_> = last.keys().chain(self.waiting.keys()).collect();
        for labels in labels {
            let get = |from: &BTreeMap<_, _>| from.get(labels).copied().unwrap_or_default();
            let (from, to): (Waiting, Waiting) = (get(&last), get(&self.waiting));
            metrics::jobs_waiting(labels, to.jobs as f64 - from.jobs as f64, to.oldest);
        }
    }
}
