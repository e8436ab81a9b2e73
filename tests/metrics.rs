//! Names, labels and units of feature `metrics`. One recorder is global, so these tests have their
//! own binary.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::FutureExt;
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use tower::{Layer, ServiceExt};
use tower_offload::{ThreadPool, pool::Pool};

#[test]
fn counters_of_an_unused_pool_are_zero() {
    let recorder = DebuggingRecorder::new();
    let _local = metrics::set_default_local_recorder(&recorder);
    let _unused = ThreadPool::builder().name("unused").threads(1).build().unwrap();
    let mut seen = BTreeMap::<_, Vec<_>>::new();
    for (key, _, _, value) in recorder.snapshotter().snapshot().into_vec() {
        if let DebugValue::Counter(count) = value {
            seen.entry(key.key().name().to_owned()).or_default().push(count);
        }
    }
    let expected = [
        ("offload_abandoned_total", vec![0]),
        ("offload_busy_microseconds_total", vec![0]),
        ("offload_cancelled_run_microseconds_total", vec![0; 2]),
        ("offload_misplaced_total", vec![0]),
        ("offload_panicked_total", vec![0]),
        ("offload_rejected_total", vec![0; 6]),
        ("offload_stalls_total", vec![0]),
    ];
    assert_eq!(seen, expected.map(|(name, counts)| (name.to_owned(), counts)).into());
}

#[tokio::test]
async fn metrics_have_the_name_of_the_pool_as_label() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let (stop, stopped) = std::sync::mpsc::channel();
    let builder = ThreadPool::builder().name("measured").threads(1).queue_capacity(1);
    let pool = builder.on_thread_stop(move || stop.send(()).unwrap()).build().unwrap();
    recorder.install().unwrap(); // After the pool was built and before it is used.

    let (release, released) = std::sync::mpsc::channel::<()>();
    let (entered, inside) = tokio::sync::oneshot::channel();
    let held = pool.run(move || {
        entered.send(()).unwrap();
        let _ = released.recv();
    });
    inside.await.unwrap();
    let queued = pool.run(|| ());
    let refused = pool.run(|| ()).await;
    drop(queued);
    drop(release);
    held.await.unwrap();
    while pool.stats().permits_in_use > 0 {
        tokio::task::yield_now().await; // The entry of the abandoned call is still queued.
    }
    let panicked = std::panic::AssertUnwindSafe(pool.run(|| panic!("measured"))).catch_unwind().await;
    assert!(refused.is_err() && panicked.is_err());
    pool.run(|| ()).await.unwrap();
    // A call that parks and wakes itself is resumed once.
    let yielding = tower_offload::OffloadLayer::new(pool.clone()).reject(tower_offload::offload::RejectWithError);
    let yielding = yielding.layer(tower::service_fn(async |()| {
        let mut polls = 0;
        std::future::poll_fn(|cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            if polls == 2 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        Ok::<_, std::convert::Infallible>(())
    }));
    yielding.oneshot(()).await.unwrap();

    // A thread has reported its busy time when it stops.
    assert!(pool.shutdown(Duration::from_secs(30)).await.is_empty());
    stopped.recv_timeout(Duration::from_secs(30)).unwrap();
    let (mut seen, mut seconds) = (BTreeMap::new(), BTreeMap::new());
    let mut microseconds = BTreeMap::new();
    for (key, unit, help, value) in snapshotter.snapshot().into_vec() {
        let expected = match key.key().name() {
            name if name.ends_with("_microseconds_total") => Unit::Microseconds,
            name if name.ends_with("_seconds") => Unit::Seconds,
            _ => Unit::Count,
        };
        assert_eq!(unit, Some(expected), "{key:?}");
        assert!(help.is_some_and(|help| help.ends_with('.')), "{key:?}");
        let labels: Vec<_> =
            key.key().labels().map(|label| (label.key().to_owned(), label.value().to_owned())).collect();
        assert!(labels.contains(&("pool".to_owned(), "measured".to_owned())), "{labels:?}");
        let reason = labels.iter().find(|(name, _)| name == "reason").map(|(_, reason)| reason.as_str());
        let value = match value {
            DebugValue::Counter(value) if expected == Unit::Microseconds => {
                microseconds.insert(key.key().name().to_owned(), Duration::from_micros(value));
                continue;
            }
            DebugValue::Counter(value) => value as f64,
            DebugValue::Gauge(value) => value.0,
            DebugValue::Histogram(values) => {
                seconds.insert(key.key().name().to_owned(), values.iter().map(|value| value.0).sum::<f64>());
                values.len() as f64
            }
        };
        seen.insert(format!("{}{}", key.key().name(), reason.map(|it| format!(" {it}")).unwrap_or_default()), value);
    }
    let expected = [
        ("offload_abandoned_total", 1.0),
        ("offload_active", 0.0),
        ("offload_max_threads", 1.0),
        ("offload_misplaced_total", 0.0),
        ("offload_panicked_total", 1.0),
        ("offload_queue_depth", 0.0),
        ("offload_queue_wait_seconds", 4.0),
        ("offload_overloaded", 0.0),
        ("offload_rejected_total closed", 0.0),
        ("offload_rejected_total deadline_exceeded", 0.0),
        ("offload_rejected_total deadlock", 0.0),
        ("offload_rejected_total key_limited", 0.0),
        ("offload_rejected_total no_runtime", 0.0),
        ("offload_rejected_total overloaded", 1.0),
        ("offload_resume_wait_seconds", 1.0),
        ("offload_run_seconds", 4.0),
        ("offload_stalled", 0.0),
        ("offload_stalls_total", 0.0),
    ];
    assert_eq!(seen, expected.map(|(name, value)| (name.to_owned(), value)).into());

    // Times have the same sums as in `PoolStats`.
    let stats = pool.stats();
    // Busy times are in whole microseconds.
    assert!(stats.busy_time + Duration::from_micros(10) >= stats.run_time, "{stats:?}");
    let expected = [
        ("offload_busy_microseconds_total", stats.busy_time),
        ("offload_cancelled_run_microseconds_total", Duration::ZERO),
    ];
    assert_eq!(microseconds.len(), expected.len(), "{microseconds:?}");
    for (name, expected) in expected {
        assert!(
            microseconds[name].abs_diff(expected) < Duration::from_micros(20),
            "{name}: {microseconds:?} {stats:?}"
        );
    }
    for (name, expected) in [
        ("offload_queue_wait_seconds", stats.queue_wait),
        ("offload_resume_wait_seconds", stats.resume_wait),
        ("offload_run_seconds", stats.run_time),
    ] {
        assert!(expected.as_nanos() > 0, "{name}");
        assert!((seconds[name] - expected.as_secs_f64()).abs() < 1e-6, "{name}: {} and {expected:?}", seconds[name]);
    }
}

/// A recorder of which one metric panics.
struct Panics(&'static str);

struct PanicsAlways;

impl CounterFn for PanicsAlways {
    fn increment(&self, value: u64) {
        assert_eq!(value, 0, "expected");
    }

    fn absolute(&self, _: u64) {}
}

impl GaugeFn for PanicsAlways {
    fn increment(&self, _: f64) {
        panic!("expected");
    }

    fn decrement(&self, _: f64) {
        panic!("expected");
    }

    fn set(&self, _: f64) {}
}

impl HistogramFn for PanicsAlways {
    fn record(&self, _: f64) {
        panic!("expected");
    }
}

impl Recorder for Panics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        if key.name() == self.0 { Counter::from_arc(Arc::new(PanicsAlways)) } else { Counter::noop() }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        if key.name() == self.0 { Gauge::from_arc(Arc::new(PanicsAlways)) } else { Gauge::noop() }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        if key.name() == self.0 { Histogram::from_arc(Arc::new(PanicsAlways)) } else { Histogram::noop() }
    }
}

#[tokio::test]
async fn recorder_that_panics_leaves_no_call_active() {
    for metric in [
        "offload_active",
        "offload_queue_wait_seconds",
        "offload_resume_wait_seconds",
        "offload_run_seconds",
        "offload_cancelled_run_microseconds_total",
        "offload_abandoned_total",
    ] {
        let recorder = Panics(metric);
        let _local = metrics::set_default_local_recorder(&recorder);
        let pool = ThreadPool::builder().name("panics").threads(1).queue_capacity(1).build().unwrap();
        let layer = tower_offload::OffloadLayer::new(pool.clone()).reject(tower_offload::offload::RejectWithError);
        let yields = layer.layer(tower::service_fn(async |()| {
            tokio::task::yield_now().await;
            Ok::<_, std::convert::Infallible>(())
        }));
        let _ = yields.oneshot(()).await;
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (entered, inside) = tokio::sync::oneshot::channel();
        let cancelled = pool.run(move || {
            let _ = (entered.send(()), released.recv());
        });
        inside.await.unwrap();
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(cancelled)));
        drop(release);
        let ended = async {
            while pool.stats().in_flight > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
        let stats = pool.stats();
        assert_eq!((stats.active, stats.queued, stats.woken, stats.permits_in_use), (0, 0, 0, 0), "{metric}");
    }
}
