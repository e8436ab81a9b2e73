use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{OffloadLayer, ThreadPool, offload::RejectWithError, pool::Pool};

use crate::support::{TestResult, eventually, hold, one_thread, pools, soon};

/// 50 handlers await each other on one thread, then the same through nested layers on one pool.
#[tokio::test]
async fn handlers_that_await_occupy_no_thread() {
    for pool in pools(1, 64) {
        let barrier = Arc::new(tokio::sync::Barrier::new(50));
        let layer = OffloadLayer::new(pool).reject(RejectWithError);
        let service = layer.layer(service_fn(move |()| {
            let barrier = barrier.clone();
            async move {
                barrier.wait().await;
                TestResult::Ok(())
            }
        }));
        let nested = layer.layer(layer.layer(service.clone()));
        for response in soon(join_all((0..50).map(|_| service.clone().oneshot(())))).await {
            response.unwrap();
        }
        for response in soon(join_all((0..50).map(|_| nested.clone().oneshot(())))).await {
            response.unwrap();
        }
    }
}

#[tokio::test]
async fn self_waking_future_does_not_starve_new_calls() {
    for pool in pools(1, 64) {
        let (stop, polls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let service = OffloadLayer::new(pool.clone()).reject(RejectWithError).layer(service_fn({
            let (stop, polls) = (stop.clone(), polls.clone());
            move |()| {
                let (stop, polls) = (stop.clone(), polls.clone());
                async move {
                    while !stop.load(SeqCst) {
                        polls.fetch_add(1, SeqCst);
                        yield_now().await;
                    }
                    TestResult::Ok(())
                }
            }
        }));
        let spinning = tokio::spawn(service.oneshot(()));
        eventually(|| polls.load(SeqCst) > 0).await;
        // New calls run while the future wakes itself. The future ends only after them.
        for _ in 0..10 {
            soon(pool.run(|| ())).await.unwrap();
        }
        stop.store(true, SeqCst);
        soon(spinning).await.unwrap().unwrap();
        assert_eq!(pool.admission().stats().woken, 0);
    }
}

#[tokio::test]
async fn growing_pool_starts_and_reaps_threads() {
    let pool =
        ThreadPool::builder().min_threads(0).max_threads(8).keep_alive(Duration::from_millis(1)).build().unwrap();
    let barrier = Arc::new(Barrier::new(8));
    let calls = (0..8).map(|_| {
        let barrier = barrier.clone();
        pool.run(move || barrier.wait().is_leader()) // returns when all eight threads are in it
    });
    let leaders = soon(join_all(calls)).await.into_iter().filter(|leader| *leader == Ok(true)).count();
    assert_eq!(leaders, 1);
    eventually(|| pool.threads() == 0).await;
    assert_eq!(soon(pool.run(|| 1)).await, Ok(1), "the pool grows again");
}

#[tokio::test]
async fn calls_start_in_order_of_arrival() {
    for pool in pools(1, 64) {
        let held = hold(&pool).await;
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let calls: Vec<_> = (0..20)
            .map(|n| {
                let order = order.clone();
                pool.run(move || order.lock().unwrap().push(n))
            })
            .collect();
        held.release().await.unwrap();
        soon(join_all(calls)).await;
        assert_eq!(*order.lock().unwrap(), Vec::from_iter(0..20));
    }
}

#[tokio::test]
async fn stats_separate_queue_wait_from_run_time() {
    let pool = one_thread();
    let held = hold(&pool).await;
    let queued = pool.run(|| std::thread::sleep(Duration::from_millis(20))); // simulates work
    held.release().await.unwrap();
    soon(queued).await.unwrap();
    let stats = pool.stats();
    assert_eq!((stats.started, stats.completed, stats.in_flight, stats.queued), (2, 2, 0, 0));
    assert!(stats.run_time >= Duration::from_millis(20), "{stats:?}");
    assert!(stats.queue_wait > Duration::ZERO && stats.resume_wait == Duration::ZERO, "{stats:?}");
}

/// A woken call waits while the only thread is held. That is neither queue wait nor run time.
#[tokio::test]
async fn stats_separate_the_wait_after_a_wake() {
    for pool in pools(1, 8) {
        let wake = Arc::new(tokio::sync::Notify::new());
        let service = OffloadLayer::new(pool.clone()).reject(RejectWithError).layer(service_fn({
            let wake = wake.clone();
            move |()| {
                let wake = wake.clone();
                async move {
                    wake.notified().await;
                    TestResult::Ok(())
                }
            }
        }));
        let call = tokio::spawn(service.oneshot(()));
        eventually(|| pool.admission().stats().started == 1 && pool.admission().stats().active == 0).await;
        let before = pool.admission().stats();
        assert_eq!((before.resume_wait, before.woken), (Duration::ZERO, 0));
        let held = hold(&pool).await;
        wake.notify_one();
        eventually(|| pool.admission().stats().woken == 1).await;
        let woken = tokio::time::Instant::now();
        while woken.elapsed() < Duration::from_millis(5) {
            tokio::task::yield_now().await; // the measured wait must take some time
        }
        held.release().await.unwrap();
        soon(call).await.unwrap().unwrap();
        let after = pool.admission().stats();
        assert!(after.resume_wait >= Duration::from_millis(5), "{after:?}");
        assert_eq!(after.woken, 0);
    }
}

/// Wakes the task within its poll. Tokio's `yield_now` may defer the wake to the runtime.
fn yield_now() -> impl Future<Output = ()> {
    let mut yielded = false;
    std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
}
