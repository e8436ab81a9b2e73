//! Numbers of attempts by kind and queue, and the names that these labels have.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

use riverqueue::JobRow;
use tokio::time::Instant;

use crate::{
    metrics::{self, JobLabels, OTHER},
    sync::{Mutex, lock},
};

/// The kinds and queues that this program has in its code.
///
/// Only they become labels of numbers. Any client of the database can insert jobs of other kinds
/// into other queues, and their number is not limited.
#[derive(Default)]
pub(super) struct Names(Mutex<Known>);

#[derive(Default)]
struct Known {
    kinds: BTreeSet<&'static str>,
    queues: BTreeSet<Arc<str>>,
}

impl Names {
    /// Adds the kind and the default queue of a type of jobs.
    pub(super) fn add(&self, kind: &'static str, queue: &str) {
        let mut known = lock(&self.0);
        known.kinds.insert(kind);
        if !known.queues.contains(queue) {
            known.queues.insert(queue.into());
        }
    }

    /// Adds a queue of the builder.
    pub(super) fn add_queue(&self, queue: String) {
        lock(&self.0).queues.insert(queue.into());
    }

    /// Returns the labels of a job. Names that the program does not know are `"(other)"`, which is
    /// neither a valid kind nor a valid queue.
    pub(super) fn labels(&self, kind: &str, queue: &str) -> JobLabels {
        let known = lock(&self.0);
        JobLabels {
            kind: known.kinds.get(kind).copied().unwrap_or(OTHER),
            queue: known.queues.get(queue).cloned().unwrap_or_else(|| OTHER.into()),
        }
    }

    #[cfg(feature = "metrics")]
    pub(super) fn queues(&self) -> Vec<Arc<str>> {
        lock(&self.0).queues.iter().cloned().collect()
    }
}

/// The numbers of an attempt. While its work runs, it is part of a gauge.
pub(super) struct AttemptNumbers {
    labels: JobLabels,
    /// Time from when the job was due until its claim, by the database's clock.
    waited: Duration,
    claimed_at: Instant,
    begun_at: OnceLock<Instant>,
}

impl AttemptNumbers {
    pub(super) fn new(names: &Names, row: &JobRow, claimed_at: Instant) -> Self {
        let waited = row.attempted_at.map(|at| at.duration_since(row.scheduled_at));
        Self {
            labels: names.labels(&row.kind, &row.queue),
            waited: waited.and_then(|waited| waited.try_into().ok()).unwrap_or_default(), // negative
            claimed_at,
            begun_at: OnceLock::new(),
        }
    }

    pub(super) fn begin(&self) {
        if self.begun_at.set(Instant::now()).is_ok() {
            metrics::job_begun(&self.labels, self.waited.saturating_add(self.claimed_at.elapsed()));
        }
    }

    pub(super) fn end(&self) {
        if let Some(begun_at) = self.begun_at.get() {
            metrics::job_ran(&self.labels, begun_at.elapsed());
        }
    }
}

impl Drop for AttemptNumbers {
    fn drop(&mut self) {
        if self.begun_at.get().is_some() {
            metrics::job_left(&self.labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Names, OTHER};

    #[test]
    fn names_of_strangers_are_no_labels() {
        let names = Names::default();
        names.add("mail", "default");
        names.add_queue("slow".to_owned());
        let labels = |kind, queue| {
            let labels = names.labels(kind, queue);
            (labels.kind, labels.queue.to_string())
        };
        assert_eq!(labels("mail", "slow"), ("mail", "slow".to_owned()));
        assert_eq!(labels("mail", "tenant-1"), ("mail", OTHER.to_owned()));
        assert_eq!(labels("Mail", "default"), (OTHER, "default".to_owned()));
    }
}
