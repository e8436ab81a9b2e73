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
use tower_offload::{OffloadLayer, ThreadPool, offload::Typed, pool::Pool};

use crate::support::{Answer, eventually, hold, one_thread, pools, soon};

/// Each of them is inside its await while all the others are: none holds the one thread. The same through nested offloads
/// on one pool.
#[tokio::test]
async fn handlers_that_await_hold_no_thread() {
    for pool in pools(1, 64) {
        let barrier = Arc::new(tokio::sync::Barrier::new(50));
        let layer = OffloadLayer::new(pool).reject(Typed);
        let service = layer.layer(service_fn(move |()| {
            let barrier = barrier.clone();
            async move {
                barrier.wait().await;
                Answer::Ok(())
            }
        }));
        let nested = layer.layer(layer.layer(service.clone()));
        for answer in soon(join_all((0..50).map(|_| service.clone().oneshot(())))).await {
            answer.unwrap();
        }
        for answer in soon(join_all((0..50).map(|_| nested.clone().oneshot(())))).await {
            answer.unwrap();
        }
    }
}

#[tokio::test]
async fn a_future_that_wakes_itself_for_ever_starves_no_new_call() {
    for pool in pools(1, 64) {
        let (stop, polls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let service = OffloadLayer::new(pool.clone()).reject(Typed).layer(service_fn({
            let (stop, polls) = (stop.clone(), polls.clone());
            move |()| {
                let (stop, polls) = (stop.clone(), polls.clone());
                async move {
                    while !stop.load(SeqCst) {
                        polls.fetch_add(1, SeqCst);
                        yield_now().await;
                    }
                    Answer::Ok(())
                }
            }
        }));
        let spinning = tokio::spawn(service.oneshot(()));
        eventually(|| polls.load(SeqCst) > 0).await;
        // It stops only once new calls have run.
        for _ in 0..10 {
            soon(pool.run(|| ())).await.unwrap();
        }
        stop.store(true, SeqCst);
        soon(spinning).await.unwrap().unwrap();
        assert_eq!(pool.admission().stats().woken, 0);
    }
}

#[tokio::test]
async fn a_growing_pool_starts_threads_up_to_its_limit_and_reaps_them() {
    let pool =
        ThreadPool::builder().min_threads(0).max_threads(8).keep_alive(Duration::from_millis(1)).build().unwrap();
    let barrier = Arc::new(Barrier::new(8));
    let calls = (0..8).map(|_| {
        let barrier = barrier.clone();
        pool.run(move || barrier.wait().is_leader()) // all eight are inside, or none gets out
    });
    let leaders = soon(join_all(calls)).await.into_iter().filter(|leader| *leader == Ok(true)).count();
    assert_eq!(leaders, 1);
    eventually(|| pool.threads() == 0).await;
    assert_eq!(soon(pool.run(|| 1)).await, Ok(1), "and it grows again");
}

#[tokio::test]
async fn calls_start_in_the_order_they_came() {
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
async fn stats_keep_queue_wait_and_run_time_apart() {
    let pool = one_thread();
    let held = hold(&pool).await;
    let queued = pool.run(|| std::thread::sleep(Duration::from_millis(20))); // the work itself, not a wait of the test
    held.release().await.unwrap();
    soon(queued).await.unwrap();
    let stats = pool.stats();
    assert_eq!((stats.started, stats.completed, stats.in_flight, stats.queued), (2, 2, 0, 0));
    assert!(stats.run_time >= Duration::from_millis(20), "{stats:?}");
    assert!(stats.queue_wait > Duration::ZERO && stats.resume_wait == Duration::ZERO, "{stats:?}");
}

/// A call that was woken waits in the queue while the one thread is held; that is neither queue wait nor run time.
#[tokio::test]
async fn stats_keep_the_wait_after_a_wake_apart() {
    for pool in pools(1, 8) {
        let wake = Arc::new(tokio::sync::Notify::new());
        let service = OffloadLayer::new(pool.clone()).reject(Typed).layer(service_fn({
            let wake = wake.clone();
            move |()| {
                let wake = wake.clone();
                async move {
                    wake.notified().await;
                    Answer::Ok(())
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
            tokio::task::yield_now().await; // what is measured here has to take some time
        }
        held.release().await.unwrap();
        soon(call).await.unwrap().unwrap();
        let after = pool.admission().stats();
        assert!(after.resume_wait >= Duration::from_millis(5), "{after:?}");
        assert_eq!(after.woken, 0);
    }
}

/// Tokio's own `yield_now` defers the wake to the runtime; this one wakes itself inside its poll.
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
