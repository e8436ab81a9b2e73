use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tokio::time::Instant;

use crate::{Record, StoreError, TaskState, Tasks, Timestamp};

/// Numbers of the tasks in a store. Returned by [`Tasks::summary`].
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(
        description = "Numbers of the newest 200 000 tasks. They are up to a second old, or up to ten times the time that counting took, if that is longer."
    )
)]
#[non_exhaustive]
pub struct Summary {
    /// The number of tasks in each state.
    pub states: StateCounts,
    /// The tasks of each name and queue, at most 100, those with the most tasks first.
    pub groups: Vec<SummaryGroup>,
    /// The number of tasks that were counted.
    pub counted: u64,
    /// True if these are all tasks. Otherwise only the newest 200 000 were counted.
    pub is_complete: bool,
}

/// The tasks of one name in one queue.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(description = "The tasks of one name in one queue."))]
#[non_exhaustive]
pub struct SummaryGroup {
    /// The name of the tasks, which is the kind of jobs.
    pub name: String,
    /// The queue of the jobs. Absent for tasks that are not jobs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// The number of tasks in each state.
    pub states: StateCounts,
    /// The longest time in seconds for which a queued task that is due has waited: since it was
    /// accepted, became due or ended its last attempt. Absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_queued_seconds: Option<f64>,
    /// The time in seconds from the acceptance to the start, also of a delay, of those that
    /// finished in their first attempt. Of the newest 5000 finished tasks of all groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<Percentiles>,
    /// The time in seconds that the last attempt took. Of the newest 5000 finished tasks of all
    /// groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_seconds: Option<Percentiles>,
    /// True while the queue or the kind is paused.
    pub paused: bool,
}

/// The number of tasks in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(description = "The number of tasks in each state."))]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are named like the states")]
pub struct StateCounts {
    pub queued: u64,
    pub running: u64,
    pub succeeded: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub timed_out: u64,
    pub lost: u64,
}

impl StateCounts {
    /// Returns the number of tasks in a state.
    pub fn get(&self, state: TaskState) -> u64 {
        let mut counts = *self;
        *counts.of(state)
    }

    fn of(&mut self, state: TaskState) -> &mut u64 {
        match state {
            TaskState::Queued => &mut self.queued,
            TaskState::Running => &mut self.running,
            TaskState::Succeeded => &mut self.succeeded,
            TaskState::Failed => &mut self.failed,
            TaskState::Cancelled => &mut self.cancelled,
            TaskState::TimedOut => &mut self.timed_out,
            TaskState::Lost => &mut self.lost,
        }
    }

    fn total(&self) -> u64 {
        TaskState::ALL.into_iter().map(|state| self.get(state)).sum()
    }
}

/// Percentiles of a duration in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "Percentiles of a duration in seconds.")
)]
#[non_exhaustive]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
}

impl Percentiles {
    /// Returns the percentiles of durations in milliseconds, by the nearest rank.
    fn of(mut millis: Vec<u64>) -> Option<Self> {
        millis.sort_unstable();
        let rank = |percent: usize| (millis.len() * percent).div_ceil(100).saturating_sub(1);
        let at = |percent| millis.get(rank(percent)).map(|millis| *millis as f64 / 1000.0);
        Some(Self { p50: at(50)?, p99: at(99)? })
    }
}

/// Maximum number of records that are counted, the newest first. Reading them takes a database some
/// hundred milliseconds.
pub(crate) const MAX_COUNTED: u64 = 200_000;
/// Number of finished records whose durations are read.
pub(crate) const MAX_SAMPLES: u64 = 5000;
/// Maximum number of groups in a summary: names may contain anything, also what clients send.
const MAX_GROUPS: usize = 100;

/// Builds a summary from counts and samples. Time is an argument.
#[derive(Debug, Default)]
pub(crate) struct SummaryBuilder {
    states: StateCounts,
    groups: BTreeMap<(String, Option<String>), Building>,
    samples: u64,
}

#[derive(Debug, Default)]
struct Building {
    states: StateCounts,
    oldest: Option<Timestamp>,
    waits: Vec<u64>,
    runs: Vec<u64>,
}

impl SummaryBuilder {
    /// Adds `count` tasks to the total of a state.
    pub(crate) fn add_total(&mut self, state: TaskState, count: u64) {
        *self.states.of(state) += count;
    }

    /// Adds `count` tasks to a group, the oldest of which has waited since `oldest`.
    pub(crate) fn add_group(
        &mut self,
        name: String,
        queue: Option<String>,
        state: TaskState,
        count: u64,
        oldest: Option<Timestamp>,
    ) {
        let group = self.groups.entry((name, queue)).or_default();
        *group.states.of(state) += count;
        group.oldest = group.oldest.into_iter().chain(oldest).min();
    }

    /// Adds the durations of a finished task, in milliseconds. Has no effect for a group without
    /// tasks.
    pub(crate) fn add_sample(&mut self, name: String, queue: Option<String>, wait: Option<u64>, run: Option<u64>) {
        if let Some(group) = self.groups.get_mut(&(name, queue)) {
            group.waits.extend(wait);
            group.runs.extend(run);
        }
    }

    /// Adds a record. The records are added from the newest to the oldest.
    pub(crate) fn add(&mut self, record: &Record, now: Timestamp) {
        self.add_total(record.state, 1);
        let is_due = record.state == TaskState::Queued && record.due_at.is_none_or(|due_at| due_at <= now);
        let since = record.created_at.max(record.started_at.unwrap_or_default()).max(record.due_at.unwrap_or_default());
        let key = (record.name.clone(), record.queue.clone());
        self.add_group(key.0.clone(), key.1.clone(), record.state, 1, is_due.then_some(since));
        if let (Some(finished_at), Some(started_at)) = (record.finished_at, record.started_at) {
            if self.samples < MAX_SAMPLES {
                self.samples += 1;
                let millis = |from: Timestamp, to: Timestamp| to.as_millis().saturating_sub(from.as_millis());
                let wait = (record.attempt == 1).then(|| millis(record.created_at, started_at));
                self.add_sample(key.0, key.1, wait, Some(millis(started_at, finished_at)));
            }
        }
    }

    pub(crate) fn build(self, now: Timestamp) -> Summary {
        let groups = self.groups.into_iter().map(|((name, queue), group)| SummaryGroup {
            name,
            queue,
            states: group.states,
            oldest_queued_seconds: group
                .oldest
                .map(|oldest| now.as_millis().saturating_sub(oldest.as_millis()) as f64 / 1000.0),
            wait_seconds: Percentiles::of(group.waits),
            run_seconds: Percentiles::of(group.runs),
            paused: false,
        });
        let mut groups: Vec<_> = groups.collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.states.total())); // stable: then by name
        groups.truncate(MAX_GROUPS);
        let counted = self.states.total();
        Summary { states: self.states, groups, counted, is_complete: counted < MAX_COUNTED }
    }
}

/// The latest summary, shared by all that ask.
#[derive(Debug, Default)]
pub(crate) struct SummaryCache {
    /// Locked while a summary is computed, by the task that computes it.
    latest: Arc<tokio::sync::Mutex<Option<Computed>>>,
}

#[derive(Debug)]
struct Computed {
    summary: Result<Arc<Summary>, StoreError>,
    until: Instant,
}

impl Computed {
    fn result(&self) -> Result<Arc<Summary>, StoreError> {
        match &self.summary {
            Ok(summary) => Ok(summary.clone()),
            Err(error) => Err(error.duplicate()),
        }
    }
}

impl SummaryCache {
    /// Returns the latest summary, or computes it if that is too old.
    ///
    /// A task of its own computes it. If a caller leaves, such as a client that disconnects, its
    /// query continues on the server, and the next caller must not begin another one meanwhile.
    async fn get<F>(&self, compute: impl FnOnce() -> F) -> Result<Arc<Summary>, StoreError>
    where
        F: Future<Output = Result<Summary, StoreError>> + Send + 'static,
    {
        let mut latest = self.latest.clone().lock_owned().await;
        let begun = Instant::now();
        if let Some(computed) = latest.as_ref().filter(|computed| begun < computed.until) {
            return computed.result();
        }
        let summary = compute();
        let computing = tokio::spawn(async move {
            let summary = summary.await.map(Arc::new);
            let ttl = begun.elapsed().saturating_mul(TTL_FACTOR).max(MIN_TTL);
            latest.insert(Computed { summary, until: Instant::now() + ttl }).result()
        });
        computing.await.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(StoreError::unavailable(error)), // the runtime is shut down
        })
    }
}

/// Minimum time for which a summary, or the error of a store, is returned to all callers.
const MIN_TTL: Duration = Duration::from_secs(1);
/// A summary is returned for this multiple of the time that it took, so that the database spends at
/// most a tenth of its time on it.
const TTL_FACTOR: u32 = 10;

impl Tasks {
    /// Returns the numbers of tasks by state, by name and by queue, and how long they waited and
    /// ran.
    ///
    /// It reads at most the newest 200 000 records. Callers share a result for a second, or for ten
    /// times the time that it took to compute, if that is longer. One is computed at a time.
    ///
    /// # Errors
    ///
    /// Returns an error if the store cannot be read. Later calls return it too, for as long as they
    /// would share a result.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, the summary is computed nevertheless, for the
    /// next call.
    pub async fn summary(&self) -> Result<Arc<Summary>, StoreError> {
        let compute = || {
            let tasks = self.clone();
            async move { tasks.summarize().await }
        };
        self.summary_cache().get(compute).await
    }

    async fn summarize(&self) -> Result<Summary, StoreError> {
        let mut summary = self.writer().summary(Timestamp::from(SystemTime::now())).await?;
        let Some(queue) = self.queue() else { return Ok(summary) };
        // The numbers are useful without it.
        let Ok(queues) = queue.queues().await else { return Ok(summary) };
        let is_paused =
            |states: &[super::QueueState], name: &str| states.iter().any(|state| state.paused && state.name == name);
        for group in &mut summary.groups {
            let queue = group.queue.as_deref();
            group.paused =
                queue.is_some_and(|queue| is_paused(&queues.queues, queue) || is_paused(&queues.kinds, &group.name));
        }
        Ok(summary)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering::SeqCst},
        },
        time::Duration,
    };

    use futures_util::FutureExt;
    use proptest::prelude::*;
    use tokio::{sync::Semaphore, time::advance};

    use super::{MAX_GROUPS, Percentiles, Summary, SummaryBuilder, SummaryCache};
    use crate::{Record, StoreError, TaskId, TaskState, Timestamp};

    fn record(number: u8, name: &str, state: TaskState) -> Record {
        let id = TaskId::from_bytes([number; TaskId::BYTES]);
        Record { state, ..Record::new(id, name, Timestamp::from_millis(1000)) }
    }

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        assert_eq!(Percentiles::of(Vec::new()), None);
        let of = |millis: Vec<u64>| Percentiles::of(millis).map(|found| (found.p50, found.p99));
        assert_eq!(of(vec![7000]), Some((7.0, 7.0)));
        assert_eq!(of((1..=200).rev().map(|second| second * 1000).collect()), Some((100.0, 198.0)));
    }

    #[test]
    fn oldest_queued_task_is_one_that_is_due() {
        let mut builder = SummaryBuilder::default();
        let mut later = record(1, "a", TaskState::Queued);
        later.due_at = Some(Timestamp::from_millis(9000));
        let mut due = record(2, "a", TaskState::Queued);
        due.due_at = Some(Timestamp::from_millis(2000));
        let mut retried = record(3, "a", TaskState::Queued);
        retried.started_at = Some(Timestamp::from_millis(3000));
        for record in [later, due, retried, record(4, "a", TaskState::Running)] {
            builder.add(&record, Timestamp::from_millis(5000));
        }
        let summary = builder.build(Timestamp::from_millis(5000));
        assert_eq!(summary.groups[0].oldest_queued_seconds, Some(3.0));
        assert_eq!((summary.states.queued, summary.states.running, summary.counted), (3, 1, 4));
        assert!(summary.is_complete);
    }

    #[test]
    fn wait_is_that_of_the_first_attempt() {
        let mut builder = SummaryBuilder::default();
        for (attempt, started_at) in [(1, 3000), (2, 90_000)] {
            let mut done = record(attempt, "a", TaskState::Succeeded);
            (done.attempt, done.started_at) = (attempt.into(), Some(Timestamp::from_millis(started_at)));
            done.finished_at = Some(Timestamp::from_millis(started_at + 500));
            builder.add(&done, Timestamp::from_millis(100_000));
        }
        let summary = builder.build(Timestamp::from_millis(100_000));
        let group = &summary.groups[0];
        assert_eq!(group.wait_seconds.map(|wait| wait.p99), Some(2.0));
        assert_eq!(group.run_seconds.map(|run| (run.p50, run.p99)), Some((0.5, 0.5)));
    }

    #[tokio::test(start_paused = true)]
    async fn summary_is_computed_once_although_its_caller_leaves() {
        let (cache, begun, permits) = (SummaryCache::default(), Arc::new(AtomicU32::new(0)), Semaphore::new(0));
        let permits = Arc::new(permits);
        let compute = || {
            let (begun, permits) = (begun.clone(), permits.clone());
            async move {
                begun.fetch_add(1, SeqCst);
                drop(permits.acquire().await);
                Ok(Summary { counted: 7, ..Summary::default() })
            }
        };
        for _ in 0..20 {
            let mut caller = Box::pin(cache.get(compute));
            assert!(caller.as_mut().now_or_never().is_none());
            tokio::task::yield_now().await;
            drop(caller);
        }
        assert_eq!(begun.load(SeqCst), 1);
        advance(Duration::from_secs(3)).await;
        permits.add_permits(1);
        assert_eq!(cache.get(compute).await.unwrap().counted, 7);
        assert_eq!(begun.load(SeqCst), 1, "that of the caller that has left");
        advance(Duration::from_secs(29)).await;
        cache.get(compute).await.unwrap();
        assert_eq!(begun.load(SeqCst), 1);
        advance(Duration::from_secs(2)).await;
        cache.get(compute).await.unwrap();
        assert_eq!(begun.load(SeqCst), 2, "it took three seconds, and is shared for thirty");
    }

    #[tokio::test(start_paused = true)]
    async fn error_and_panic_of_a_summary_reach_the_caller() {
        let cache = SummaryCache::default();
        let panics = cache.get(|| async { panic!("of the store") });
        assert!(std::panic::AssertUnwindSafe(panics).catch_unwind().await.is_err());
        assert!(cache.get(|| async { Err(StoreError::unavailable("")) }).await.unwrap_err().is_unavailable());
        assert!(cache.get(|| async { Ok(Summary::default()) }).await.unwrap_err().is_unavailable(), "for a second");
        advance(Duration::from_secs(1)).await;
        assert!(cache.get(|| async { Ok(Summary::default()) }).await.is_ok());
    }

    proptest! {
        #[test]
        fn totals_count_every_record_however_many_groups_there_are(names in prop::collection::vec(0_u16..300, 0..600)) {
            let mut builder = SummaryBuilder::default();
            for name in &names {
                builder.add(&record(0, &name.to_string(), TaskState::Failed), Timestamp::default());
            }
            let summary = builder.build(Timestamp::default());
            prop_assert_eq!(summary.states.failed, names.len() as u64);
            prop_assert!(summary.groups.len() <= MAX_GROUPS);
            prop_assert!(summary.groups.is_sorted_by_key(|group| std::cmp::Reverse(group.states.failed)));
        }
    }
}
