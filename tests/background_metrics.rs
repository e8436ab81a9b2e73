//! Metrics of background tasks. One recorder is global, so these tests have their own binary. The
//! others are local to a thread, on which `Inline` runs every task.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc,
    time::Duration,
};

use metrics::{Unit, set_default_local_recorder};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tower_offload::{Background, background::BackgroundBuilder, pool::Inline};

const LONG: Duration = Duration::from_secs(60);

/// Returns the counts of all counters and histograms by name and labels.
fn counts(snapshotter: &Snapshotter) -> BTreeMap<String, u64> {
    let metrics = snapshotter.snapshot().into_vec().into_iter();
    let metrics = metrics.filter(|(key, ..)| key.key().name().starts_with("offload_background_"));
    metrics
        .map(|(key, _, _, value)| {
            let labels: Vec<_> = key.key().labels().map(metrics::Label::value).collect();
            let count = match value {
                DebugValue::Counter(count) => count,
                DebugValue::Histogram(values) => values.len() as u64,
                DebugValue::Gauge(_) => panic!("no gauges"),
            };
            (format!("{} {}", key.key().name(), labels.join(" ")), count)
        })
        .collect()
}

fn inline() -> BackgroundBuilder {
    Background::builder().pool(Inline::new())
}

#[tokio::test]
async fn queue_waits_run_times_and_outcomes_are_recorded_by_name() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().unwrap();
    let background = Background::default();
    background.task("mail").spawn_blocking(|| ()).unwrap();
    background.task("mail").spawn(async {}).unwrap();
    background.task("index").spawn_blocking(|| Err("no")).unwrap();
    background.shutdown(LONG).await;

    let mut seen = counts(&snapshotter);
    seen.retain(|_, count| *count > 0);
    let expected = [
        ("offload_background_ended_total index failed", 1),
        ("offload_background_ended_total mail completed", 2),
        ("offload_background_queue_wait_seconds index", 1),
        ("offload_background_queue_wait_seconds mail", 2),
        ("offload_background_run_seconds index", 1),
        ("offload_background_run_seconds mail", 2),
    ];
    assert_eq!(seen, expected.map(|(name, count)| (name.to_owned(), count)).into());
}

#[tokio::test]
async fn counters_are_zero_before_their_first_event() {
    let recorder = DebuggingRecorder::new();
    let _local = set_default_local_recorder(&recorder);
    let background = inline().build();
    let rejected = ["closed", "full", "sequence_full", "too_many_awaiting"];
    let rejected = rejected.map(|reason| (format!("offload_background_rejected_total {reason}"), 0));
    assert_eq!(counts(&recorder.snapshotter()), rejected.into());

    let (sender, while_running) = mpsc::channel();
    let snapshotter = recorder.snapshotter();
    background.task("mail").spawn_blocking(move || sender.send(counts(&snapshotter)).unwrap()).unwrap();
    let while_running = while_running.recv().unwrap();
    for outcome in ["skipped", "cancelled", "failed", "completed"] {
        let series = format!("offload_background_ended_total mail {outcome}");
        assert_eq!(while_running.get(&series), Some(&0), "{series}");
    }
}

#[tokio::test]
async fn a_recorder_installed_after_the_background_is_built_sees_all_counters() {
    let background = inline().build();
    let recorder = DebuggingRecorder::new();
    let _local = set_default_local_recorder(&recorder);
    background.spawn_blocking(|| ()).unwrap();
    assert_eq!(counts(&recorder.snapshotter()).get("offload_background_rejected_total full"), Some(&0));
}

#[tokio::test]
async fn every_metric_has_a_unit_and_a_help_text() {
    let recorder = DebuggingRecorder::new();
    let _local = set_default_local_recorder(&recorder);
    let background = inline().blocking_threshold(Duration::ZERO).build();
    background.task("mail").on_runtime().spawn(async {}).unwrap();
    background.shutdown(LONG).await;
    let (mut names, metrics) = (BTreeSet::new(), recorder.snapshotter().snapshot().into_vec());
    for (key, unit, help, _) in metrics {
        let name = key.key().name();
        if name.starts_with("offload_background_") || name.starts_with("offload_blocking_") {
            let is_duration = name.ends_with("_seconds");
            assert_eq!(unit, Some(if is_duration { Unit::Seconds } else { Unit::Count }), "{name}");
            assert!(help.is_some_and(|help| help.ends_with('.')), "{name}");
            names.insert(name.to_owned());
        }
    }
    let expected = [
        "offload_background_ended_total",
        "offload_background_queue_wait_seconds",
        "offload_background_rejected_total",
        "offload_background_run_seconds",
        "offload_blocking_seconds",
        "offload_blocking_total",
    ];
    assert_eq!(names, expected.map(str::to_owned).into());
}

#[tokio::test]
async fn metrics_count_what_the_stats_count() {
    let recorder = DebuggingRecorder::new();
    let _local = set_default_local_recorder(&recorder);
    let background = inline().max_tasks(3).max_running(1).build();
    background.task("t").spawn_blocking(|| ()).unwrap();
    background.task("t").spawn_blocking(|| Err("no")).unwrap();

    let (skipped, dropped) = (background.reserve("t").unwrap(), background.reserve("t").unwrap());
    let submitted = background.reserve("t").unwrap();
    background.reserve("t").unwrap_err();
    assert!(dropped.handle().cancel() && submitted.handle().cancel());
    drop((skipped, dropped));
    submitted.spawn_blocking(|| ());

    let in_sequence = || background.task("t").sequence("k").reserve();
    let (first, second) = (in_sequence().unwrap(), in_sequence().unwrap());
    in_sequence().unwrap_err();
    background.reserve("t").unwrap().sequence("k").unwrap_err();
    drop((first, second));

    let running = background.task("t").spawn(std::future::pending::<()>()).unwrap();
    let queued = background.task("t").spawn_blocking(|| ()).unwrap();
    assert!(queued.cancel());
    tokio::task::yield_now().await;
    assert!(running.cancel());
    while background.stats().running > 0 {
        tokio::task::yield_now().await;
    }

    let reserved = background.reserve("t").unwrap();
    background.spawn(std::future::pending::<()>()).unwrap();
    background.task("t").spawn_blocking(|| ()).unwrap();
    background.shutdown(Duration::ZERO).await;
    drop(reserved);
    background.spawn_blocking(|| ()).unwrap_err();
    while background.stats().running > 0 {
        tokio::task::yield_now().await;
    }

    let mut sums = BTreeMap::<&str, u64>::new();
    let seen = counts(&recorder.snapshotter());
    for (series, count) in &seen {
        if !series.contains("_seconds ") {
            let name = series.rsplit(' ').next().unwrap();
            *sums.entry(name).or_default() += count;
        }
    }
    let stats = background.stats();
    let expected = [
        ("skipped", stats.skipped),
        ("cancelled", stats.cancelled),
        ("failed", stats.failed),
        ("completed", stats.completed),
        ("full", 1),
        ("closed", stats.rejected - 3),
        ("too_many_awaiting", 0),
        ("sequence_full", 2),
    ];
    assert_eq!(sums, expected.into());
    assert_eq!((stats.skipped, stats.failed, stats.completed, stats.rejected), (3, 1, 1, 4));
}
