use std::{
    sync::{Arc, Mutex, mpsc},
    thread::sleep,
    time::Duration,
};

use tokio::sync::oneshot;
use tokio_test::{assert_pending, task};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{
    OffloadLayer, ThreadPool,
    offload::{RejectWithError, service_fn_blocking},
    pool::{Inline, Pool},
};

use crate::support::{TestResult, eventually, hold, pools, soon};

/// A time that is long compared with the resolution of the counters, which measure real time.
const A_WHILE: Duration = Duration::from_millis(5);

#[tokio::test]
async fn running_call_is_busy_time_while_it_runs() {
    for pool in pools(2, 8) {
        let held = hold(&pool).await;
        let before = pool.admission().stats();
        sleep(A_WHILE);
        let after = pool.admission().stats();
        assert!(after.busy_time - before.busy_time >= A_WHILE, "{before:?} {after:?}");
        assert!(after.idle_time - before.idle_time >= A_WHILE, "the other thread is idle: {before:?} {after:?}");
        assert_eq!(after.run_time, Duration::ZERO, "no call has ended");
        held.release().await.unwrap();
        let stopped = || pool.admission().stats().busy_time;
        eventually(|| {
            stopped() == {
                sleep(Duration::from_micros(10));
                stopped()
            }
        })
        .await;
        assert!(stopped() >= A_WHILE, "{:?}", stopped());
    }
}

/// A thread that always finds another call is busy from the first to the last.
#[tokio::test]
async fn calls_in_a_row_are_one_busy_period() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let held = hold(&pool).await;
    let calls: Vec<_> = (0..3).map(|_| pool.run(|| sleep(A_WHILE))).collect();
    held.release().await.unwrap();
    for call in calls {
        soon(call).await.unwrap();
    }
    assert!(pool.stats().busy_time >= 3 * A_WHILE, "{:?}", pool.stats());
}

/// The utilization is computed from differences, and a negative [`Duration`] panics.
#[tokio::test]
async fn idle_time_of_busy_threads_never_decreases() {
    let pool = ThreadPool::builder().threads(2).build().unwrap();
    let held = [hold(&pool).await, hold(&pool).await];
    let mut last = pool.stats().idle_time;
    for _ in 0..10_000 {
        let now = pool.stats().idle_time;
        assert!(now >= last, "{now:?} after {last:?}");
        last = now;
    }
    for held in held {
        held.release().await.unwrap();
    }
}

#[tokio::test]
async fn pool_without_threads_has_busy_time_and_no_idle_time() {
    let pool = Inline::new();
    pool.run(|| sleep(A_WHILE)).await.unwrap();
    let stats = pool.stats();
    assert!(stats.busy_time >= A_WHILE, "{stats:?}");
    assert_eq!(stats.idle_time, Duration::ZERO);
}

#[tokio::test]
async fn destructor_of_a_cancelled_call_is_busy_time() {
    struct SlowDrop;
    impl Drop for SlowDrop {
        fn drop(&mut self) {
            sleep(A_WHILE);
        }
    }
    for pool in pools(1, 8) {
        let service =
            OffloadLayer::new(pool.clone()).reject(RejectWithError).layer(service_fn(async |slow: SlowDrop| {
                std::future::pending::<()>().await;
                drop(slow);
                TestResult::Ok(())
            }));
        let mut call = task::spawn(service.oneshot(SlowDrop));
        assert_pending!(call.poll());
        eventually(|| pool.admission().stats().started == 1 && pool.admission().stats().active == 0).await;
        drop(call);
        eventually(|| pool.admission().stats().in_flight == 0).await;
        eventually(|| pool.admission().stats().busy_time >= A_WHILE).await;
    }
}

/// Makes a call that runs for a while, and whose caller leaves at its start.
async fn leave(pool: &Arc<dyn Pool>, detached: bool) {
    let (release, released) = mpsc::channel::<()>();
    let (entered, inside) = oneshot::channel();
    let mut layer = OffloadLayer::new(pool.clone()).reject(RejectWithError);
    if detached {
        layer = layer.detached();
    }
    let work = Arc::new(Mutex::new(Some((entered, released))));
    let service = layer.layer(service_fn_blocking(move |()| {
        let (entered, released) = work.lock().unwrap().take().unwrap();
        entered.send(()).unwrap();
        let _ = released.recv();
        TestResult::Ok(())
    }));
    let mut call = task::spawn(service.oneshot(()));
    assert_pending!(call.poll());
    soon(inside).await.unwrap();
    drop(call);
    sleep(A_WHILE);
    drop(release);
    eventually(|| pool.admission().stats().in_flight == 0).await;
}

#[tokio::test]
async fn run_time_of_a_call_without_a_caller_is_counted() {
    for pool in pools(1, 8) {
        pool.run(|| sleep(A_WHILE)).await.unwrap();
        leave(&pool, true).await;
        assert_eq!(pool.admission().stats().cancelled_run_time, Duration::ZERO, "nothing was cancelled");
        leave(&pool, false).await;
        let stats = pool.admission().stats();
        assert!(stats.cancelled_run_time >= A_WHILE, "{stats:?}");
        assert!(stats.run_time >= stats.cancelled_run_time + 2 * A_WHILE, "{stats:?}");
    }
}
