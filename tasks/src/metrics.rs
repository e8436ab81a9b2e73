//! Numbers for the recorder of the crate `metrics`. Without feature `metrics` the functions do
//! nothing.
//!
//! [`TasksStats`](crate::TasksStats) and `JobsStats` count the same. A gauge is changed by
//! differences, so several [`Tasks`](crate::Tasks) in a process add up.

#[cfg(feature = "metrics")]
use std::sync::Once;
#[cfg(feature = "river")]
use std::{sync::Arc, time::Duration};

#[cfg(all(feature = "metrics", feature = "river"))]
use metrics::{Label, histogram};
#[cfg(feature = "metrics")]
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};

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

/// Label of a kind or queue that the program does not know. No kind and no queue has such a name.
#[cfg(feature = "river")]
pub(crate) const OTHER: &str = "(other)";

/// The labels `kind` and `queue` of the numbers of jobs. Both are names that the program has in its
/// code, or [`OTHER`], so their number is bounded.
#[cfg(feature = "river")]
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct JobLabels {
    pub(crate) kind: &'static str,
    pub(crate) queue: Arc<str>,
}

#[cfg(all(feature = "metrics", feature = "river"))]
impl JobLabels {
    fn get(&self) -> Vec<Label> {
        vec![Label::from_static_parts("kind", self.kind), Label::new("queue", self.queue.clone())]
    }
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
    "offload_jobs_copied_total",
    "offload_jobs_given_back_total",
    "offload_jobs_written_late_total",
    "offload_jobs_replaced_clients_total",
    "offload_jobs_unreplaced_clients_total",
    "offload_jobs_interrupted_total",
    "offload_jobs_skipped_callbacks_total",
    "offload_jobs_lost_leases_total",
    "offload_sequences_healed_total",
];

/// The counters of jobs that a recorder gets when a queue starts, for each kind and its queue.
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
pub(crate) fn register_jobs(labels: impl Iterator<Item = JobLabels>) {
    #[cfg(feature = "metrics")]
    record(|| {
        for name in ["offload_jobs_unserved", "offload_jobs_waiting", "offload_jobs_unwritten"] {
            gauge!(name).increment(0.0);
        }
        JOB_COUNTERS.iter().for_each(|name| counter!(*name).increment(0));
        for labels in labels {
            KIND_COUNTERS.iter().for_each(|name| counter!(*name, labels.get()).increment(0));
            ENDS.iter().for_each(|end| ended(&labels, end).increment(0));
            for name in ["offload_jobs_running", "offload_jobs_queued", "offload_jobs_oldest_queued_seconds"] {
                gauge!(name, labels.get()).increment(0.0);
            }
        }
    });
    #[cfg(not(feature = "metrics"))]
    drop(labels);
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

/// Increments a counter of jobs.
#[cfg(feature = "river")]
pub(crate) fn count_job(name: &'static str, labels: &JobLabels) {
    #[cfg(feature = "metrics")]
    record(|| counter!(name, labels.get()).increment(1));
    #[cfg(not(feature = "metrics"))]
    let _ = (name, labels);
}

/// Counts the end of an attempt.
#[cfg(feature = "river")]
pub(crate) fn job_ended(labels: &JobLabels, end: &'static str) {
    #[cfg(feature = "metrics")]
    record(|| ended(labels, end).increment(1));
    #[cfg(not(feature = "metrics"))]
    let _ = (labels, end);
}

#[cfg(all(feature = "metrics", feature = "river"))]
fn ended(labels: &JobLabels, end: &'static str) -> metrics::Counter {
    let mut labels = labels.get();
    labels.push(Label::from_static_parts("end", end));
    counter!("offload_jobs_ended_total", labels)
}

/// Counts an attempt whose work begins `waited` after its job was due.
#[cfg(feature = "river")]
pub(crate) fn job_begun(labels: &JobLabels, waited: Duration) {
    #[cfg(feature = "metrics")]
    record(|| {
        counter!("offload_jobs_begun_total", labels.get()).increment(1);
        gauge!("offload_jobs_running", labels.get()).increment(1.0);
        histogram!("offload_jobs_wait_seconds", labels.get()).record(waited);
    });
    #[cfg(not(feature = "metrics"))]
    let _ = (labels, waited);
}

/// Records the run time of an attempt.
#[cfg(feature = "river")]
pub(crate) fn job_ran(labels: &JobLabels, run_time: Duration) {
    #[cfg(feature = "metrics")]
    record(|| histogram!("offload_jobs_run_seconds", labels.get()).record(run_time));
    #[cfg(not(feature = "metrics"))]
    let _ = (labels, run_time);
}

/// Counts an attempt that [has begun](job_begun) as not running.
#[cfg(feature = "river")]
pub(crate) fn job_left(labels: &JobLabels) {
    #[cfg(feature = "metrics")]
    record(|| gauge!("offload_jobs_running", labels.get()).decrement(1.0));
    #[cfg(not(feature = "metrics"))]
    let _ = labels;
}

/// Sets the jobs that wait: by how many the number differs from the last one, and the age of the
/// oldest one in seconds.
#[cfg(all(feature = "metrics", feature = "river"))]
pub(crate) fn jobs_waiting(labels: &JobLabels, difference: f64, oldest: f64) {
    record(|| {
        gauge!("offload_jobs_queued", labels.get()).increment(difference);
        gauge!("offload_jobs_oldest_queued_seconds", labels.get()).set(oldest);
    });
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
        (
            "offload_jobs_queued",
            "Jobs that are due and wait, in the whole database, by kind and queue. At most 10 000 for each priority.",
        ),
        ("offload_jobs_waiting", "Jobs that this process has claimed and that wait for a thread of their pool."),
        ("offload_jobs_running", "Jobs whose work is running in this process, by kind and queue."),
        (
            "offload_jobs_unwritten",
            "Jobs whose work ended at least 10 s ago, and whose end the database has not confirmed.",
        ),
    ];
    for (name, help) in gauges {
        describe_gauge!(name, Unit::Count, help);
    }
    describe_gauge!(
        "offload_jobs_oldest_queued_seconds",
        Unit::Seconds,
        "Time that the oldest job that waits has been due, in the whole database, by kind and queue."
    );
    describe_histogram!(
        "offload_jobs_wait_seconds",
        Unit::Seconds,
        "Time from when a job was due until the work of an attempt has begun, by kind and queue."
    );
    describe_histogram!("offload_jobs_run_seconds", Unit::Seconds, "Run time of attempts, by kind and queue.");
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
        ("offload_tasks_shed_total", "Requests that exceeded the limit of streams, of lists or of bulk requests."),
        (
            "offload_jobs_enqueued_total",
            "Jobs that were enqueued outside of transactions of the application, by kind and queue.",
        ),
        ("offload_jobs_begun_total", "Attempts whose work has begun, by kind and queue."),
        ("offload_jobs_ended_total", "Attempts that have ended, by kind, queue and end."),
        ("offload_jobs_timed_out_total", "Attempts that exceeded their timeout, by kind and queue."),
        ("offload_jobs_unparsable_total", "Attempts whose arguments could not be read, by kind and queue."),
        ("offload_jobs_recovered_total", "Jobs of crashed processes that were recovered, by kind and queue."),
        ("offload_jobs_lost_total", "Jobs that are lost, because they were deleted from River's table."),
        ("offload_jobs_skipped_callbacks_total", "Jobs for which the callback of `on_end` was not called."),
        ("offload_jobs_copied_total", "Jobs that ended without the triggers, and whose records were made final."),
        (
            "offload_sequences_healed_total",
            "Jobs whose sequence or limit was stuck and was healed. It stays 0, unless a program disables the triggers.",
        ),
        ("offload_jobs_given_back_total", "Claims that were handed back, because their reply was lost."),
        ("offload_jobs_written_late_total", "Ends that were written in place of River."),
        ("offload_jobs_replaced_clients_total", "River clients that were replaced, because they wrote no ends."),
        (
            "offload_jobs_unreplaced_clients_total",
            "Times that a River client wrote no ends and too many were replaced.",
        ),
        (
            "offload_jobs_lost_leases_total",
            "River clients whose lease was lost, so that others have recovered their jobs.",
        ),
        ("offload_jobs_interrupted_total", "Attempts that were still running when a shutdown timed out."),
    ];
    for (name, help) in counters {
        describe_counter!(name, Unit::Count, help);
    }
}

#[cfg(all(test, feature = "metrics"))]
mod tests {
    use std::{cell::RefCell, collections::BTreeSet};

    use metrics::{
        Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit, with_local_recorder,
    };

    /// The names that were described.
    #[derive(Default)]
    struct Described(RefCell<Vec<String>>);

    impl Recorder for Described {
        fn describe_counter(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
            self.0.borrow_mut().push(key.as_str().to_owned());
        }

        fn describe_gauge(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
            self.0.borrow_mut().push(key.as_str().to_owned());
        }

        fn describe_histogram(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
            self.0.borrow_mut().push(key.as_str().to_owned());
        }

        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            Counter::noop()
        }

        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[test]
    fn each_number_is_described_once() {
        let recorder = Described::default();
        with_local_recorder(&recorder, super::describe);
        let mut names = BTreeSet::new();
        for name in recorder.0.into_inner() {
            assert!(names.insert(name.clone()), "{name} is described twice");
        }
        assert!(names.len() > 30);
    }
}
