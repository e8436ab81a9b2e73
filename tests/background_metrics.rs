//! Metrics of background tasks. The recorder is global, so this test has its own binary.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, time::Duration};

use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use tower_offload::Background;

#[tokio::test]
async fn queue_waits_run_times_and_outcomes_are_recorded_by_name() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().unwrap();
    let background = Background::default();
    background.task("mail").spawn_blocking(|| ()).unwrap();
    background.task("mail").spawn(async {}).unwrap();
    background.task("index").spawn_blocking(|| Err("no")).unwrap();
    background.shutdown(Duration::from_secs(60)).await;

    let mut seen = BTreeMap::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        if key.key().name().starts_with("offload_background_") {
            let labels: Vec<_> = key.key().labels().map(metrics::Label::value).collect();
            let count = match value {
                DebugValue::Counter(count) => count,
                DebugValue::Histogram(values) => values.len() as u64,
                DebugValue::Gauge(_) => panic!("no gauges"),
            };
            seen.insert(format!("{} {}", key.key().name(), labels.join(" ")), count);
        }
    }
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
