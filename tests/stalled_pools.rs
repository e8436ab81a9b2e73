//! Pools whose threads are all blocked. A pool is stalled after 10 s, so the scenarios run at the
//! same time, in one test. They sleep in real time, because the monitor is a thread, and the clock
//! of a runtime cannot pause it.
#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Barrier, Mutex, mpsc},
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use tokio::{runtime::Handle, time::timeout};
use tower::{Layer, Service, ServiceExt};
use tower_offload::{
    CallError, OffloadLayer, ThreadPool,
    offload::{RejectWithError, service_fn_blocking},
    pool::{Pool, PoolStats, Rayon, TokioBlocking},
};

/// Longer than any scenario takes.
const LONG: Duration = Duration::from_secs(60);

/// Lines of all events of the program, including the threads of the pools.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<u8>>>);

impl io::Write for Events {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Events {
    /// Returns the lines about one pool.
    fn of(&self, pool: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let of_pool = |line: &&str| line.contains(&format!("pool=\"{pool}\""));
        text.lines().filter(of_pool).map(str::to_owned).collect()
    }
}

/// Waits for a condition on the counters of a pool.
async fn until(pool: &impl Pool, condition: impl Fn(PoolStats) -> bool) {
    let reached = async {
        while !condition(pool.admission().stats()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, reached).await.unwrap_or_else(|_| panic!("{pool:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_threads_are_reported_and_deadlocks_end() {
    let events = Events::default();
    let writer = events.clone();
    tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).init();
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().unwrap();

    let rayon = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let threads = |name: &str| ThreadPool::builder().name(name).threads(2).build().unwrap();
    tokio::join!(
        blocked_pool(&events),
        deadlock(threads("own threads")),
        deadlock(Rayon::builder(rayon).name("rayon's threads").build()),
        deadlock(TokioBlocking::builder(2).name("tokio's threads").build()),
        deadlock_behind_a_layer(threads("layer")),
        nested_calls_that_end(),
        waits_that_have_ended(),
        tokio::task::spawn_blocking(busy_blocking_threads).map(Result::unwrap),
        nested_wait_behind_work_of_rayon(),
        tokio::task::spawn_blocking(nested_wait_behind_work_of_tokio).map(Result::unwrap),
        dropped_pool(),
        callers_that_leave(),
    );

    for pool in ["own threads", "rayon's threads", "tokio's threads", "layer"] {
        let lines = events.of(pool);
        let has = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
        assert_eq!((has("WARN"), has("ERROR"), has("INFO")), (1, 1, 1), "{lines:#?}");
        assert_eq!((has("active=2 nested=2"), has("pool deadlocked"), has("pool recovered")), (1, 1, 1), "{lines:#?}");
    }
    assert_eq!(events.of("nested"), [""; 0]);

    let metrics = snapshotter.snapshot().into_vec();
    let value = |name: &str, pool: &str| {
        let found = metrics
            .iter()
            .find(|(key, ..)| key.key().name() == name && key.key().labels().any(|label| label.value() == pool));
        found.map(|(_, _, help, value)| {
            (
                help.is_some(),
                match value {
                    DebugValue::Counter(value) => *value as f64,
                    DebugValue::Gauge(value) => value.0,
                    DebugValue::Histogram(_) => f64::NAN,
                },
            )
        })
    };
    for pool in ["blocked", "own threads", "rayon's threads", "tokio's threads", "layer", "dropped"] {
        assert_eq!(value("offload_stalls_total", pool), Some((true, 1.0)), "{pool}");
        assert_eq!(value("offload_stalled", pool), Some((true, 0.0)), "{pool}");
    }
}

/// The only thread waits for something else than a call of its pool, and then ends.
async fn blocked_pool(events: &Events) {
    let pool = ThreadPool::builder().name("blocked").threads(1).build().unwrap();
    let (release, released) = mpsc::channel::<()>();
    let blocked = pool.run(move || released.recv().is_err());
    until(&pool, |stats| stats.active == 1).await;
    let queued = [(); 2].map(|()| pool.run(|| ()));
    assert_eq!((pool.stats().stalls, pool.stats().stalled_for), (0, Duration::ZERO));
    // The event follows the count.
    until(&pool, |stats| stats.stalls == 1 && !events.of("blocked").is_empty()).await;
    assert!(pool.stats().stalled_for >= Duration::from_secs(10), "{:?}", pool.stats());
    let lines = events.of("blocked");
    assert!(lines.len() == 1 && lines[0].contains("WARN") && lines[0].contains("pool stalled"), "{lines:#?}");
    assert!(lines[0].contains("queued=2 active=1 nested=0"), "{lines:#?}");

    drop(release);
    assert_eq!(blocked.await, Ok(true));
    assert_eq!(join_all(queued).await, [Ok(()); 2]);
    until(&pool, |stats| stats.stalled_for.is_zero()).await;
    assert_eq!(pool.stats().stalls, 1);
}

/// Each of two threads blocks on a call of the same pool.
async fn deadlock(pool: impl Pool + Clone) {
    let both_run = Arc::new(Barrier::new(2));
    let calls = [(); 2].map(|()| {
        let (both_run, inner) = (both_run.clone(), pool.clone());
        pool.run(move || {
            both_run.wait();
            Handle::current().block_on(inner.run(|| ()))
        })
    });
    // The first thread whose wait fails may run the other thread's call before that wait fails too.
    let results = timeout(LONG, join_all(calls)).await.unwrap();
    let failed = results.iter().filter(|result| **result == Ok(Err(CallError::Deadlock))).count();
    assert!(failed > 0 && results.iter().all(|result| result.is_ok()), "{results:?}");
    assert_eq!(timeout(LONG, pool.run(|| 1)).await.unwrap(), Ok(1), "the pool works again");
    until(&pool, |stats| stats.stalled_for.is_zero() && stats.permits_in_use == 0).await;
    let stats = pool.admission().stats();
    assert_eq!((stats.stalls, stats.rejected, stats.abandoned), (1, failed as u64, 0));
    assert_eq!((stats.in_flight, stats.queued, stats.active), (0, 0, 0));
}

/// The inner calls go through a layer, and each thread waits for several at once.
async fn deadlock_behind_a_layer(pool: ThreadPool) {
    let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError);
    let inner = layer.layer(service_fn_blocking(|n: u32| Ok::<_, Infallible>(n)));
    let both_run = Arc::new(Barrier::new(2));
    let calls = [(); 2].map(|()| {
        let (both_run, inner) = (both_run.clone(), inner.clone());
        pool.run(move || {
            both_run.wait();
            let calls = (0..3).map(|n| inner.clone().oneshot(n));
            let results = Handle::current().block_on(join_all(calls));
            let failed = results.iter().filter_map(|result| result.as_ref().err());
            assert!(failed.clone().all(|error| error.downcast_ref() == Some(&CallError::Deadlock)));
            failed.count() as u64
        })
    });
    let failed: u64 = timeout(LONG, join_all(calls)).await.unwrap().into_iter().map(Result::unwrap).sum();
    until(&pool, |stats| stats.stalled_for.is_zero() && stats.in_flight == 0).await;
    assert!(failed > 0 && pool.stats().rejected == failed, "{:?}", pool.stats());
}

/// Calls that wait for calls of their pool, and end because a thread is left or because they
/// await.
async fn nested_calls_that_end() {
    let pool = ThreadPool::builder().name("nested").threads(2).build().unwrap();
    let one = ThreadPool::builder().name("nested").threads(1).build().unwrap();
    let inner = one.clone();
    let mut awaiting =
        OffloadLayer::new(one.clone()).reject(RejectWithError).layer(tower::service_fn(move |n: u32| {
            let inner = inner.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                inner.run(move || n + 1).await
            }
        }));
    for n in 0..600 {
        let blocking = pool.clone();
        let blocks = pool.run(move || {
            let slow = blocking.run(|| std::thread::sleep(Duration::from_millis(20)));
            Handle::current().block_on(slow)
        });
        let awaits = awaiting.ready().await.unwrap().call(n);
        let (blocks, awaits) = timeout(LONG, async { tokio::join!(blocks, awaits) }).await.unwrap();
        assert_eq!((blocks, awaits.unwrap()), (Ok(Ok(())), n + 1));
    }
    assert_eq!((pool.stats().stalls, one.stats().stalls), (0, 0));
}

/// Both threads wait for a call of their pool, give up, and are blocked for longer than a stall
/// lasts by something else. The thread that waits again later is not in a deadlock.
async fn waits_that_have_ended() {
    let pool = ThreadPool::builder().name("ended").threads(2).build().unwrap();
    let both_run = Arc::new(Barrier::new(2));
    let calls = [false, true].map(|waits_again| {
        let (both_run, inner) = (both_run.clone(), pool.clone());
        pool.run(move || {
            both_run.wait();
            let runtime = Handle::current();
            let first = runtime.block_on(async { timeout(Duration::from_millis(50), inner.run(|| 1)).await });
            assert!(first.is_err(), "the pool has no thread left");
            std::thread::sleep(Duration::from_secs(if waits_again { 14 } else { 13 }));
            if waits_again { runtime.block_on(inner.run(|| 2)) } else { Ok(2) }
        })
    });
    until(&pool, |stats| stats.active == 2).await;
    let queued = pool.run(|| ());
    assert_eq!(timeout(LONG, join_all(calls)).await.unwrap(), [Ok(Ok(2)); 2]);
    assert_eq!((queued.await, pool.stats().stalls), (Ok(()), 1));
}

/// The pool asks for a thread again and again while other blocking tasks occupy all of the
/// runtime's.
fn busy_blocking_threads() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let (release, released) = mpsc::channel::<()>();
        let occupied = tokio::task::spawn_blocking(move || released.recv().is_err());
        let pool = TokioBlocking::builder(2).name("busy").build();
        let calls = [(); 3].map(|()| pool.run(|| ()));
        tokio::time::sleep(Duration::from_secs(3)).await; // The monitor looks once per second.
        assert_eq!((pool.stats().started, pool.stats().queued), (0, 3));
        drop(release);
        assert!(occupied.await.unwrap());
        assert_eq!(timeout(LONG, join_all(calls)).await.unwrap(), [Ok(()); 3]);
        assert_eq!(timeout(LONG, pool.run(|| 1)).await.unwrap(), Ok(1));
        assert!(pool.shutdown(LONG).await.is_empty());
    });
}

/// A call waits for another one, while work that is none of the pool's holds the thread that would
/// run it for longer than a stall lasts.
async fn nested_wait_behind_work_of_rayon() {
    let rayon = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
    let (busy, is_busy) = mpsc::channel();
    rayon.spawn(move || {
        busy.send(()).unwrap();
        std::thread::sleep(Duration::from_secs(13));
    });
    is_busy.recv().unwrap();
    nested_wait_ends(Rayon::builder(rayon).name("rayon's others").build()).await;
}

/// Like [`nested_wait_behind_work_of_rayon`], on a runtime with two blocking threads.
fn nested_wait_behind_work_of_tokio() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build().unwrap();
    runtime.block_on(async {
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_secs(13)));
        nested_wait_ends(TokioBlocking::builder(2).name("tokio's others").build()).await;
    });
}

async fn nested_wait_ends(pool: impl Pool + Clone) {
    let inner = pool.clone();
    let waits = pool.run(move || Handle::current().block_on(inner.run(|| 1)));
    assert_eq!(timeout(LONG, waits).await.unwrap(), Ok(Ok(1)), "the thread becomes free");
    assert_eq!(pool.admission().stats().stalls, 1);
}

/// Callers of a pool whose only thread is blocked give up, again and again.
async fn callers_that_leave() {
    let pool = ThreadPool::builder().name("left").threads(1).build().unwrap();
    let (release, released) = mpsc::channel::<()>();
    let blocked = pool.run(move || released.recv().is_err());
    until(&pool, |stats| stats.active == 1).await;
    let queued = pool.run(|| ());
    let leave_until_stalled = async {
        while pool.stats().stalls == 0 {
            assert!(timeout(Duration::from_millis(100), pool.run(|| ())).await.is_err());
        }
    };
    timeout(LONG, leave_until_stalled).await.expect("callers that leave are no progress");
    drop(release);
    assert_eq!((blocked.await, queued.await), (Ok(true), Ok(())));
    until(&pool, |stats| stats.stalled_for.is_zero()).await;
    assert_eq!(pool.stats().stalls, 1);
}

/// The pool is dropped before its monitor sees that it has recovered.
async fn dropped_pool() {
    let pool = ThreadPool::builder().name("dropped").threads(1).build().unwrap();
    let (release, released) = mpsc::channel::<()>();
    let blocked = pool.run(move || released.recv().is_err());
    until(&pool, |stats| stats.active == 1).await;
    let queued = pool.run(|| ());
    until(&pool, |stats| stats.stalls == 1).await;
    drop(release);
    assert_eq!((blocked.await, queued.await), (Ok(true), Ok(())));
    drop(pool);
}
