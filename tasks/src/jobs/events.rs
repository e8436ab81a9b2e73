//! Numbers and events of what happens to jobs.

use std::{
    error::Error,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use riverqueue::{JobEventKind, JobRow, JobState};

use super::{
    attempt::TIMEOUT_CLASS, client::Plan, database::Recovered, numbers::Names, outcome::End, worker::ARGUMENTS_CLASS,
};
use crate::{StoreError, TaskId, metrics};

/// Counters and gauges of [`Jobs`](super::Jobs), for this process since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobsStats {
    /// Number of jobs whose work is running.
    pub running: usize,
    /// Number of jobs that this process has claimed and that wait for a thread of their pool.
    pub waiting: usize,
    /// Number of jobs whose work has ended, and whose final state the database has not confirmed.
    pub unwritten: usize,
    /// Number of attempts that succeeded.
    pub succeeded: u64,
    /// Number of attempts that failed, and whose job is retried.
    pub retried: u64,
    /// Number of jobs that failed for good: the last attempt failed or timed out.
    pub discarded: u64,
    /// Number of attempts that exceeded their timeout. They are part of `retried` and `discarded`.
    pub timed_out: u64,
    /// Number of attempts whose arguments could not be read. They are part of `retried` and
    /// `discarded`.
    pub unparsable: u64,
    /// Number of attempts that were cancelled.
    pub cancelled: u64,
    /// Number of attempts that were handed back without counting: at a shutdown, or because the
    /// pool was full.
    pub returned: u64,
    /// Number of attempts that a shutdown has interrupted: their closures were still running when
    /// it timed out. They do not count.
    pub interrupted: u64,
    /// Number of River clients: the current one, and replaced ones whose jobs or leases have not
    /// ended, or on SQLite whose ends are not written.
    pub clients: usize,
    /// Number of jobs of crashed processes that this process has recovered.
    pub recovered: u64,
    /// Number of jobs that this process has marked as lost, because they were deleted from River's
    /// table.
    pub lost: u64,
    /// Number of jobs that have ended without the triggers on River's table, and whose records this
    /// process has made final.
    pub copied: u64,
    /// Number of jobs whose [sequence](super::Enqueue::sequence) or
    /// [limit](super::Enqueue::at_most) was stuck, and that this process has healed. It stays zero,
    /// unless another program disables the triggers or changes their tables.
    pub healed: u64,
    /// Number of jobs for which the callback of [`on_end`](super::JobsBuilder::on_end) was not
    /// called, because 1024 others waited for it, or because the record could not be read.
    pub skipped_callbacks: u64,
    /// Number of jobs that have waited for longer than a minute and that no process works on, at
    /// the last check.
    pub unserved: u64,
    /// Number of River clients of this process that have lost their lease, because they could not
    /// renew it in time. Other processes have recovered their jobs.
    pub lost_leases: u64,
}

/// Counters of a queue.
#[derive(Default)]
pub(super) struct Counters {
    names: Names,
    succeeded: AtomicU64,
    retried: AtomicU64,
    discarded: AtomicU64,
    timed_out: AtomicU64,
    unparsable: AtomicU64,
    cancelled: AtomicU64,
    returned: AtomicU64,
    interrupted: AtomicU64,
    recovered: AtomicU64,
    lost: AtomicU64,
    copied: AtomicU64,
    healed: AtomicU64,
    unserved: AtomicU64,
    lost_leases: AtomicU64,
}

impl Counters {
    /// Creates the counters of a queue with these workers and queues, and registers their numbers.
    pub(super) fn new(plan: &Plan) -> Self {
        let names = Names::default();
        plan.queues().for_each(|(queue, _)| names.add_queue(queue));
        plan.kinds_with_queues().for_each(|(kind, queue)| names.add(kind, queue));
        metrics::register_jobs(plan.kinds_with_queues().map(|(kind, queue)| names.labels(kind, queue)));
        Self { names, ..Self::default() }
    }

    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    /// Counts a job that was inserted.
    pub(super) fn enqueued(&self, kind: &str, queue: &str) {
        metrics::count_job("offload_jobs_enqueued_total", &self.names.labels(kind, queue));
    }

    /// Counts an end that River has written.
    pub(super) fn count(&self, kind: JobEventKind, job: &JobRow, end: Option<&End>) {
        let (counter, name) = match kind {
            JobEventKind::Completed => (&self.succeeded, "succeeded"),
            JobEventKind::Cancelled => (&self.cancelled, "cancelled"),
            JobEventKind::Failed if job.state == JobState::Discarded => (&self.discarded, "discarded"),
            JobEventKind::Failed => (&self.retried, "retried"),
            _ => (&self.returned, "returned"),
        };
        increment(counter, 1);
        let labels = self.names.labels(&job.kind, &job.queue);
        metrics::job_ended(&labels, name);
        match end.and_then(End::failure) {
            Some(failure) if failure.class == TIMEOUT_CLASS => {
                increment(&self.timed_out, 1);
                metrics::count_job("offload_jobs_timed_out_total", &labels);
            }
            Some(failure) if failure.class == ARGUMENTS_CLASS => {
                increment(&self.unparsable, 1);
                metrics::count_job("offload_jobs_unparsable_total", &labels);
            }
            _ => {}
        }
    }

    pub(super) fn lost(&self, jobs: u64) {
        increment(&self.lost, jobs);
        metrics::count("offload_jobs_lost_total", jobs);
    }

    pub(super) fn copied(&self, jobs: u64) {
        increment(&self.copied, jobs);
        metrics::count("offload_jobs_copied_total", jobs);
    }

    pub(super) fn healed(&self, jobs: u64) {
        increment(&self.healed, jobs);
        metrics::count("offload_sequences_healed_total", jobs);
    }

    pub(super) fn set_unserved(&self, jobs: u64) {
        let before = self.unserved.swap(jobs, Ordering::Relaxed);
        metrics::change("offload_jobs_unserved", before as f64, jobs as f64);
    }

    pub(super) fn stats(&self) -> JobsStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        JobsStats {
            succeeded: get(&self.succeeded),
            retried: get(&self.retried),
            discarded: get(&self.discarded),
            timed_out: get(&self.timed_out),
            unparsable: get(&self.unparsable),
            cancelled: get(&self.cancelled),
            returned: get(&self.returned),
            interrupted: get(&self.interrupted),
            recovered: get(&self.recovered),
            lost: get(&self.lost),
            copied: get(&self.copied),
            healed: get(&self.healed),
            unserved: get(&self.unserved),
            lost_leases: get(&self.lost_leases),
            ..JobsStats::default()
        }
    }
}

fn increment(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// Reports an end that River has written.
pub(super) fn ended(kind: JobEventKind, job: &JobRow, end: Option<&End>) {
    #[cfg(feature = "tracing")]
    {
        use tracing::{debug, error, field::display, warn};
        let id = end.map(|end| display(end.id));
        let (river_id, attempt, max_attempts) = (job.id, job.attempt, job.max_attempts);
        let (queue, kind_of_job) = (&*job.queue, &*job.kind);
        let failure = end.and_then(End::failure);
        let class = failure.map_or("error", |failure| &*failure.class);
        let message = job.errors.last().map(|error| &*error.error);
        match kind {
            JobEventKind::Failed if job.state == JobState::Discarded => error!(
                id,
                river_id,
                kind = kind_of_job,
                queue,
                attempt,
                max_attempts,
                class,
                error = message,
                "job failed, all attempts are used"
            ),
            JobEventKind::Failed => warn!(
                id, river_id, kind = kind_of_job, queue, attempt, max_attempts, class, error = message,
                next_attempt_at = %job.scheduled_at, "job failed and will be retried"
            ),
            JobEventKind::Completed => debug!(id, river_id, kind = kind_of_job, queue, attempt, "job succeeded"),
            JobEventKind::Cancelled => debug!(id, river_id, kind = kind_of_job, queue, attempt, "job was cancelled"),
            _ => debug!(id, river_id, kind = kind_of_job, queue, "job was handed back, the attempt does not count"),
        }
    }
    #[cfg(not(feature = "tracing"))]
    let _ = (kind, job, end);
}

/// Counts and reports a batch of jobs that were recovered.
pub(super) fn recovered(counters: &Counters, jobs: &[Recovered]) {
    increment(&counters.recovered, jobs.len() as u64);
    let discarded = jobs.iter().filter(|job| job.state == "discarded");
    increment(&counters.discarded, discarded.clone().count() as u64);
    let labels = |job: &Recovered| counters.names.labels(&job.kind, &job.queue);
    jobs.iter().for_each(|job| metrics::count_job("offload_jobs_recovered_total", &labels(job)));
    discarded.clone().for_each(|job| metrics::job_ended(&labels(job), "discarded"));
    #[cfg(feature = "tracing")]
    if !jobs.is_empty() {
        for Recovered { id, river_id, kind, queue, attempt, is_shutdown, .. } in discarded {
            let (id, class) = (id.map(tracing::field::display), super::database::LOST_CLASS);
            let end = if *is_shutdown { "was shut down" } else { "crashed" };
            tracing::error!(
                id,
                river_id,
                kind,
                queue,
                attempt,
                class,
                "job failed, its process {end} during the last attempt"
            );
        }
        for Recovered { id, river_id, kind, queue, attempt, is_counted, state, .. } in jobs {
            let id = id.map(tracing::field::display);
            tracing::debug!(id, river_id, kind, queue, attempt, is_counted, state, "recovered a job");
        }
        let counted = jobs.iter().filter(|job| job.is_counted).count();
        tracing::warn!(jobs = jobs.len(), counted, "recovered jobs of processes that ended or lost their lease");
    }
}

/// Reports a claim whose reply was lost.
pub(super) fn given_back(river_id: i64) {
    metrics::count("offload_jobs_given_back_total", 1);
    #[cfg(feature = "tracing")]
    tracing::warn!(river_id, "handed a job back: it was claimed, but the reply of the database was lost");
    #[cfg(not(feature = "tracing"))]
    let _ = river_id;
}

/// Reports that a client was replaced because it does not write its ends.
pub(super) fn replaced() {
    metrics::count("offload_jobs_replaced_clients_total", 1);
    #[cfg(feature = "tracing")]
    tracing::warn!(
        "River does not write the ends of jobs: a new client claims further jobs, the running ones continue"
    );
}

/// Reports that a client writes no ends and was not replaced, because too many were.
pub(super) fn not_replaced(clients: usize) {
    metrics::count("offload_jobs_unreplaced_clients_total", 1);
    #[cfg(feature = "tracing")]
    tracing::error!(
        clients,
        "River does not write the ends of jobs, so they are written late: no new client starts until the jobs of a \
         replaced one have ended"
    );
    #[cfg(not(feature = "tracing"))]
    let _ = clients;
}

/// Counts and reports a client whose lease has ended before it did.
pub(super) fn lost_lease(counters: &Counters) {
    increment(&counters.lost_leases, 1);
    metrics::count("offload_jobs_lost_leases_total", 1);
    #[cfg(feature = "tracing")]
    tracing::warn!("lost the lease of the job queue: other processes recover its jobs, and a new client starts");
}

/// Counts and reports the closures that are still running when a shutdown has timed out.
pub(super) fn still_running(counters: &Counters, still_running: &[TaskId], interrupted: &[TaskId]) {
    increment(&counters.interrupted, interrupted.len() as u64);
    metrics::count("offload_jobs_interrupted_total", interrupted.len() as u64);
    #[cfg(feature = "tracing")]
    if !still_running.is_empty() {
        let ids = still_running.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let counted = still_running.len() - interrupted.len();
        tracing::warn!(
            ids,
            counted,
            "jobs are still running after the shutdown: if the process ends, they run again, or fail if no attempt is left"
        );
    }
    #[cfg(not(feature = "tracing"))]
    let _ = still_running;
}

/// Reports a queue without workers.
pub(super) fn no_workers() {
    #[cfg(feature = "tracing")]
    tracing::info!("the job queue has no workers: this process only enqueues jobs");
}

/// Reports an end that was written in place of River.
pub(super) fn written_late(id: TaskId) {
    metrics::count("offload_jobs_written_late_total", 1);
    #[cfg(feature = "tracing")]
    tracing::warn!(%id, "wrote the end of a job in place of River");
    #[cfg(not(feature = "tracing"))]
    let _ = id;
}

/// Reports the end of a job that the database does not accept. The record has a failure without the
/// error of the database.
pub(super) fn rejected(id: TaskId, error: &StoreError) {
    #[cfg(feature = "tracing")]
    tracing::warn!(%id, error = error as &dyn Error, "job failed, the database rejected its end");
    #[cfg(not(feature = "tracing"))]
    let _ = (id, error as &dyn Error);
}

/// Reports jobs that were deleted from River's table.
pub(super) fn lost(jobs: u64) {
    #[cfg(feature = "tracing")]
    tracing::error!(jobs, "jobs are lost: their rows were deleted from `river_job`");
    #[cfg(not(feature = "tracing"))]
    let _ = jobs;
}

/// Reports jobs that have ended without the triggers.
pub(super) fn copied(jobs: u64) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        jobs,
        "jobs have ended while the triggers on `river_job` were disabled: their records are final now, unless the \
         triggers still are"
    );
    #[cfg(not(feature = "tracing"))]
    let _ = jobs;
}

/// Reports jobs whose sequence or limit was stuck.
pub(super) fn healed(jobs: u64) {
    #[cfg(feature = "tracing")]
    tracing::error!(
        jobs,
        "sequences or limits were stuck and are healed: a program has disabled the triggers on `river_job`, or has \
         changed `tower_offload_sequence`"
    );
    #[cfg(not(feature = "tracing"))]
    let _ = jobs;
}

/// Reports jobs that no process works on.
pub(super) fn unserved(kind: &str, queue: &str, jobs: i64, oldest: Duration) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        kind,
        queue,
        jobs,
        ?oldest,
        "no process works on these jobs: start one with a worker for the kind and with the queue"
    );
    #[cfg(not(feature = "tracing"))]
    let _ = (kind, queue, jobs, oldest);
}

/// Counts jobs for which the callback was not called.
pub(super) fn count_skipped_callbacks(jobs: usize) {
    metrics::count("offload_jobs_skipped_callbacks_total", jobs as u64);
}

/// Reports the number of jobs for which the callback was not called, since the start.
pub(super) fn callbacks_skipped(skipped: u64, error: Option<&StoreError>) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        skipped,
        error = error.map(|error| error as &dyn Error),
        "the callback for jobs that have ended is skipped: it is slower than the jobs, or their records cannot be read"
    );
    #[cfg(not(feature = "tracing"))]
    let _ = (skipped, error.map(|error| error as &dyn Error));
}

/// Reports a callback that panicked.
pub(super) fn callback_panicked(id: TaskId) {
    #[cfg(feature = "tracing")]
    tracing::warn!(%id, "the callback for a job that has ended panicked");
    #[cfg(not(feature = "tracing"))]
    let _ = id;
}

/// Reports an error that no caller can handle.
pub(super) fn warn(message: &str, error: &StoreError) {
    #[cfg(feature = "tracing")]
    tracing::warn!(error = error as &dyn Error, "{message}");
    #[cfg(not(feature = "tracing"))]
    let _ = (message, error as &dyn Error);
}
