//! Numbers for the recorder of the crate `metrics`. Without feature `metrics` the functions do
//! nothing.
//!
//! [`TasksStats`](crate::TasksStats) and `JobsStats` count the same. A gauge is changed by
//! differences, so several [`Tasks`](crate::Tasks) in a process add up.

#[cfg(feature = "metrics")]
use std::sync::Once;

#[cfg(feature = "metrics")]
use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::writer::WriterStats;

/// Calls the recorder, whose panic is contained. The first call describes all numbers.
#[cfg(feature = "metrics")]
fn record(call: impl FnOnce()) {
    static DESCRIBED: Once = Once::new();
    crate::panic::ignore_panic(|| {
        DESCRIBED.call_once(describe);
        call();
    });
}

/// The counters of tasks that a recorder gets when a store is first used: a rate needs the zero
/// before the first event.
#[cfg(feature = "metrics")]
const TASK_COUNTERS: &[&str] = &[
    "offload_tasks_rejected_total",
    "offload_tasks_failed_writes_total",
    "offload_tasks_failed_reads_total",
    "offload_tasks_failed_maintenance_total",
    "offload_tasks_fenced_total",
    "offload_tasks_restored_total",
    "offload_tasks_failed_renewals_total",
    "offload_tasks_lost_leases_total",
    "offload_tasks_denied_total",
    "offload_tasks_shed_total",
];

/// The counters of jobs that a recorder gets when a queue starts, without a label.
#[cfg(all(feature = "metrics", feature = "river"))]
const JOB_COUNTERS: &[&str] = &[
    "offload_jobs_lost_total",
    "offload_jobs_given_back_total",
    "offload_jobs_written_late_total",
    "offload_jobs_replaced_clients_total",
];

/// The counters of jobs that a recorder gets when a queue starts, for each kind.
#[cfg(all(feature = "metrics", feature = "river"))]
const KIND_COUNTERS: &[&str] = &[
    "offload_jobs_enqueued_total",
    "offload_jobs_begun_total",
    "offload_jobs_timed_out_total",
    "offload_jobs_unparsable_total",
    "offload_jobs_recovered_total",
];

#[cfg(all(feature = "metrics", feature = "river"))]
const ENDS: &[&str] = &["succeeded", "cancelled", "returned", "retried", "discarded"];

/// Registers the numbers of tasks, with zero.
pub(crate) fn register_tasks() {
    #[cfg(feature = "metrics")]
    record(|| {
        gauge!("offload_tasks_open").increment(0.0);
        TASK_COUNTERS.iter().for_each(|name| counter!(*name).increment(0));
    });
}

/// Registers the numbers of a job queue that works these kinds, with zero.
#[cfg(feature = "river")]
pub(crate) fn register_jobs<'a>(kinds: impl Iterator<Item = &'a str>) {
    #[cfg(feature = "metrics")]
    record(|| {
        gauge!("offload_jobs_unserved").increment(0.0);
        JOB_COUNTERS.iter().for_each(|name| counter!(*name).increment(0));
        for kind in kinds {
            KIND_COUNTERS.iter().for_each(|name| counter!(*name, "kind" => kind.to_owned()).increment(0));
            ENDS.iter().for_each(|end| {
                counter!("offload_jobs_ended_total", "kind" => kind.to_owned(), "end" => *end).increment(0);
            });
        }
    });
    #[cfg(not(feature = "metrics"))]
    drop(kinds);
}

/// Increments a counter by its name.
pub(crate) fn count(name: &'static str, by: u64) {
    #[cfg(feature = "metrics")]
    if by > 0 {
        record(|| counter!(name).increment(by));
    }
    #[cfg(not(feature = "metrics"))]
    let _ = (name, by);
}

/// Increments a counter of the jobs of a kind.
#[cfg(feature = "river")]
pub(crate) fn count_job(name: &'static str, kind: &str) {
    #[cfg(feature = "metrics")]
    record(|| counter!(name, "kind" => kind.to_owned()).increment(1));
    #[cfg(not(feature = "metrics"))]
    let _ = (name, kind);
}

/// Counts the end of an attempt.
#[cfg(feature = "river")]
pub(crate) fn job_ended(kind: &str, end: &'static str) {
    #[cfg(feature = "metrics")]
    record(|| counter!("offload_jobs_ended_total", "kind" => kind.to_owned(), "end" => end).increment(1));
    #[cfg(not(feature = "metrics"))]
    let _ = (kind, end);
}

/// Changes a gauge.
pub(crate) fn change(name: &'static str, from: f64, to: f64) {
    #[cfg(feature = "metrics")]
    if from != to {
        record(|| gauge!(name).increment(to - from));
    }
    #[cfg(not(feature = "metrics"))]
    let _ = (name, from, to);
}

/// The counters of a writer that the recorder has.
#[derive(Default)]
pub(crate) struct WriterMetrics(WriterStats);

impl WriterMetrics {
    pub(crate) fn new() -> Self {
        register_tasks();
        Self::default()
    }

    /// Passes the changes on to the recorder.
    pub(crate) fn update(&mut self, stats: WriterStats) {
        let last = std::mem::replace(&mut self.0, stats);
        let stats = &self.0;
        change("offload_tasks_open", last.open as f64, stats.open as f64);
        count("offload_tasks_failed_writes_total", stats.failed_writes - last.failed_writes);
        count("offload_tasks_failed_reads_total", stats.failed_reads - last.failed_reads);
        count("offload_tasks_failed_maintenance_total", stats.failed_maintenance - last.failed_maintenance);
        count("offload_tasks_fenced_total", stats.fenced - last.fenced);
        count("offload_tasks_restored_total", stats.restored - last.restored);
        count("offload_tasks_failed_renewals_total", stats.failed_renewals - last.failed_renewals);
        count("offload_tasks_lost_leases_total", stats.lost_leases - last.lost_leases);
    }
}

/// Registers units and help texts.
#[cfg(feature = "metrics")]
fn describe() {
    let gauges = [
        ("offload_tasks_open", "Tasks whose final record is not written: the queue of the writer."),
        ("offload_jobs_unserved", "Jobs that have waited for a minute and that no process works on."),
    ];
    for (name, help) in gauges {
        describe_gauge!(name, Unit::Count, help);
    }
    let counters = [
        ("offload_tasks_rejected_total", "Tasks that were not accepted."),
        ("offload_tasks_failed_writes_total", "Batches that the store failed to write. They are retried."),
        ("offload_tasks_failed_reads_total", "Reads that the store failed or refused."),
        (
            "offload_tasks_failed_maintenance_total",
            "Sweeps, and looks for lost tasks and cancel requests, that failed.",
        ),
        ("offload_tasks_fenced_total", "Records that changed after the store had marked them as lost."),
        ("offload_tasks_restored_total", "Records that the store had lost and that were written again."),
        ("offload_tasks_failed_renewals_total", "Attempts to renew the lease that failed. They are repeated."),
        ("offload_tasks_lost_leases_total", "Leases that were lost, with the unfinished tasks of the process."),
        ("offload_tasks_denied_total", "Requests to the status service that were denied."),
        ("offload_tasks_shed_total", "Requests that exceeded the limit of streams or of lists."),
        ("offload_jobs_enqueued_total", "Jobs that were enqueued outside of transactions of the application, by kind."),
        ("offload_jobs_begun_total", "Attempts whose work has begun, by kind."),
        ("offload_jobs_ended_total", "Attempts that have ended, by kind and end."),
        ("offload_jobs_timed_out_total", "Attempts that exceeded their timeout, by kind."),
        ("offload_jobs_unparsable_total", "Attempts whose arguments could not be read, by kind."),
        ("offload_jobs_recovered_total", "Jobs of crashed processes that were recovered, by kind."),
        ("offload_jobs_lost_total", "Jobs that are lost, because they were deleted from River's table."),
        ("offload_jobs_skipped_callbacks_total", "Jobs for which the callback of `on_end` was not called."),
        ("offload_jobs_copied_total", "Jobs that ended without the triggers, and whose records were made final."),
        ("offload_jobs_given_back_total", "Claims that were handed back, because their reply was lost."),
        ("offload_jobs_written_late_total", "Ends that were written in place of River."),
        ("offload_jobs_replaced_clients_total", "River clients that were replaced, because they wrote no ends."),
        (
            "offload_jobs_unreplaced_clients_total",
            "Times that a River client wrote no ends and too many were replaced.",
        ),
        ("offload_jobs_interrupted_total", "Attempts that were still running when a shutdown timed out."),
    ];
    for (name, help) in counters {
        describe_counter!(name, Unit::Count, help);
    }
}
