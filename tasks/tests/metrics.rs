//! The numbers that a recorder receives.
#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, convert::Infallible, time::Duration};

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, SqliteConnection};
use tower_offload::Background;
use tower_offload_tasks::{
    SqlStore, Tasks,
    jobs::{Backoff, Job, Jobs},
};
use tower_offload_tests::eventually;

#[derive(Serialize, Deserialize)]
struct Divide(u32);

impl Job for Divide {
    const KIND: &'static str = "divide";
    const MAX_ATTEMPTS: u16 = 2;
}

/// The numbers that a recorder has as soon as the store and the queue have started.
const REGISTERED: &[&str] = &[
    "offload_tasks_open",
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
    "offload_jobs_unserved",
    "offload_jobs_enqueued_total",
    "offload_jobs_begun_total",
    "offload_jobs_ended_total succeeded",
    "offload_jobs_ended_total cancelled",
    "offload_jobs_ended_total returned",
    "offload_jobs_ended_total retried",
    "offload_jobs_ended_total discarded",
    "offload_jobs_timed_out_total",
    "offload_jobs_unparsable_total",
    "offload_jobs_recovered_total",
    "offload_jobs_lost_total",
    "offload_jobs_copied_total",
    "offload_jobs_given_back_total",
    "offload_jobs_written_late_total",
    "offload_jobs_replaced_clients_total",
    "offload_jobs_unreplaced_clients_total",
    "offload_jobs_interrupted_total",
    "offload_jobs_skipped_callbacks_total",
    "offload_sequences_healed_total",
    "offload_jobs_lost_leases_total",
    "offload_jobs_waiting",
    "offload_jobs_unwritten",
    "offload_jobs_running",
    "offload_jobs_queued",
    "offload_jobs_oldest_queued_seconds",
];

/// A job without a worker.
#[derive(Serialize, Deserialize)]
struct Idle;

impl Job for Idle {
    const KIND: &'static str = "idle";
    const QUEUE: &'static str = "idle";
}

/// Adds up the counters and gauges, and the numbers of values of histograms, by name and, for ends,
/// by end. Each has a help text, and its labels are names that this program knows.
fn add_numbers(snapshotter: &Snapshotter, numbers: &mut HashMap<String, f64>) {
    for (key, unit, help, value) in snapshotter.snapshot().into_vec() {
        let end = key.key().labels().find(|label| label.key() == "end").map(|label| label.value().to_owned());
        let name = [key.key().name().to_owned()].into_iter().chain(end).collect::<Vec<_>>().join(" ");
        assert!(unit.is_some() && help.is_some_and(|help| help.ends_with('.')), "{name} has no description");
        for label in key.key().labels().filter(|label| ["kind", "queue"].contains(&label.key())) {
            assert!(["divide", "idle", "default", "(other)"].contains(&label.value()), "{name} {label:?}");
        }
        *numbers.entry(name).or_default() += match value {
            DebugValue::Counter(value) => value as f64,
            DebugValue::Gauge(value) => value.into_inner(),
            DebugValue::Histogram(values) => values.len() as f64,
        };
    }
}

#[test]
fn jobs_and_tasks_are_counted_by_the_recorder() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let directory = std::env::temp_dir().join(format!("tower-offload-metrics-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let mut numbers = HashMap::new();
    // The recorder is that of this thread, on which the runtime runs everything.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let url = format!("sqlite:{}", directory.join("tasks.db").display());
        let tasks = Tasks::new(SqlStore::open(&url).await.unwrap());
        let work = |divide: Divide, _| async move { 1_u32.checked_div(divide.0).ok_or("division by zero") };
        let timeout = Duration::from_secs(60);
        let builder = Jobs::builder(&tasks).backoff(Backoff::fixed(Duration::ZERO));
        let jobs = builder.worker(timeout, work).start().await.unwrap();
        // A rate needs the zero before the first event.
        add_numbers(&snapshotter, &mut numbers);
        for name in REGISTERED {
            assert_eq!(numbers.get(*name), Some(&0.0), "{name} in {numbers:?}");
        }
        for divisor in [0, 1] {
            let _accepted = jobs.enqueue(Divide(divisor)).await.unwrap();
        }
        let _accepted = jobs.enqueue(Idle).queue("tenant-1").await.unwrap();
        for _ in 0..3 {
            let _accepted = jobs.enqueue(Idle).await.unwrap();
        }
        eventually("the jobs end", async || jobs.stats().succeeded + jobs.stats().discarded >= 2).await;
        let background = Background::default();
        let _accepted = tasks.track("x").spawn(&background, |_| async { Ok::<_, Infallible>(()) }).await.unwrap();
        let too_long = tasks.track("x").owner("x".repeat(100_000));
        too_long.spawn(&background, |_| async { Ok::<_, Infallible>(()) }).await.unwrap_err();
        assert!(jobs.shutdown(timeout).await.is_clean());
        let mut connection = SqliteConnection::connect(&url).await.unwrap();
        let age = "UPDATE river_job SET scheduled_at = strftime('%Y-%m-%d %H:%M:%f', 'now', '-1 hour') \
                   WHERE kind = 'idle'";
        sqlx::query(age).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        // The jobs that wait are counted when a queue starts, here one that knows only their queue.
        let jobs = Jobs::builder(&tasks).queue("idle", 1).start().await.unwrap();
        let is_counted = async || {
            add_numbers(&snapshotter, &mut numbers);
            numbers["offload_jobs_queued"] == 3.0 && numbers["offload_jobs_unserved"] == 4.0
        };
        eventually("the jobs are counted", is_counted).await;
        assert!(numbers["offload_jobs_oldest_queued_seconds"] > 0.0, "{numbers:?}");
        assert!(jobs.shutdown(timeout).await.is_clean() && tasks.shutdown(timeout).await.is_clean());
        let is_over = async || {
            add_numbers(&snapshotter, &mut numbers);
            numbers["offload_jobs_queued"] == 0.0 && numbers["offload_jobs_unserved"] == 0.0
        };
        eventually("no jobs are counted", is_over).await;
    });
    std::fs::remove_dir_all(&directory).unwrap();
    for (name, value) in [
        ("offload_jobs_enqueued_total", 6.0),
        ("offload_jobs_begun_total", 3.0),
        ("offload_jobs_wait_seconds", 3.0),
        ("offload_jobs_run_seconds", 3.0),
        ("offload_jobs_running", 0.0),
        ("offload_jobs_ended_total succeeded", 1.0),
        ("offload_jobs_ended_total retried", 1.0),
        ("offload_jobs_ended_total discarded", 1.0),
        ("offload_tasks_rejected_total", 1.0),
        ("offload_tasks_open", 0.0),
    ] {
        assert_eq!(numbers.get(name), Some(&value), "{name} in {numbers:?}");
    }
}
