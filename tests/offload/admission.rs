use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::sync::{Semaphore, mpsc};
use tokio_test::{assert_pending, assert_ready_err, task};
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer, ThreadPool,
    offload::{RejectWithError, service_fn_blocking},
    pool::Pool,
};

use crate::support::{TestResult, eventually, hold, one_thread, pools, soon};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn max_in_flight_is_never_exceeded() {
    for pool in pools(4, 64) {
        let (running, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let service =
            OffloadLayer::new(pool).reject(RejectWithError).max_in_flight(2).wait(LONG).layer(service_fn_blocking({
                let peak = peak.clone();
                move |()| {
                    peak.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                    std::thread::yield_now();
                    running.fetch_sub(1, SeqCst);
                    TestResult::Ok(())
                }
            }));
        for response in soon(join_all((0..64).map(|_| service.clone().oneshot(())))).await {
            response.unwrap();
        }
        assert!(peak.load(SeqCst) <= 2, "{} at the same time", peak.load(SeqCst));
    }
}

#[tokio::test]
async fn max_in_flight_is_fully_used() {
    let pool = ThreadPool::builder().threads(3).build().unwrap();
    let (entered, mut inside) = mpsc::unbounded_channel();
    let release = Arc::new(Semaphore::new(0));
    let service = OffloadLayer::new(pool).reject(RejectWithError).max_in_flight(2).layer(service_fn({
        let release = release.clone();
        move |()| {
            let (entered, release) = (entered.clone(), release.clone());
            async move {
                entered.send(()).unwrap();
                release.acquire().await.unwrap().forget();
                TestResult::Ok(())
            }
        }
    }));
    let calls: Vec<_> = (0..2).map(|_| service.clone().oneshot(())).map(tokio::spawn).collect();
    soon(inside.recv()).await.unwrap();
    soon(inside.recv()).await.unwrap();
    let rejected = soon(service.clone().oneshot(())).await.unwrap_err();
    assert_eq!(rejected.downcast_ref(), Some(&CallError::Overloaded));
    release.add_permits(2);
    for call in calls {
        soon(call).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn full_queue_rejects_at_once() {
    for pool in pools(1, 2) {
        let service = OffloadLayer::new(pool.clone())
            .reject(RejectWithError)
            .layer(service_fn_blocking(|n: u32| TestResult::Ok(n)));
        let held = hold(&pool).await;
        let queued: Vec<_> = (0..2).map(|n| tokio::spawn(service.clone().oneshot(n))).collect();
        tokio::task::yield_now().await; // both are queued now
        assert_eq!(pool.admission().stats().queued, 2);
        let mut rejected = task::spawn(service.clone().oneshot(9));
        assert_eq!(assert_ready_err!(rejected.poll()).downcast_ref(), Some(&CallError::Overloaded));
        assert_eq!(pool.admission().stats().rejected, 1);
        held.release().await.unwrap();
        for (n, call) in queued.into_iter().enumerate() {
            assert_eq!(soon(call).await.unwrap().unwrap(), n as u32, "queued calls run in order");
        }
    }
}

#[tokio::test]
async fn waiting_call_enters_the_queue_when_a_permit_is_free() {
    for pool in pools(1, 1) {
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).wait(LONG);
        let service = layer.layer(service_fn_blocking(|n: u32| TestResult::Ok(n)));
        let held = hold(&pool).await;
        let mut queued = task::spawn(service.clone().oneshot(1));
        assert_pending!(queued.poll());
        let mut waiting = task::spawn(service.clone().oneshot(2));
        assert_pending!(waiting.poll());
        assert_eq!(pool.admission().stats().in_flight, 2, "the waiting call is not in the pool");
        held.release().await.unwrap();
        assert_eq!(soon(queued).await.unwrap(), 1);
        assert_eq!(soon(waiting).await.unwrap(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn wait_for_the_layers_permit_is_queue_wait() {
    let pool = tower_offload::pool::Inline::new();
    let (release, released) = (Arc::new(Semaphore::new(0)), Duration::from_millis(300));
    let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1).wait(LONG);
    let service = layer.layer(service_fn({
        let release = release.clone();
        move |()| {
            let release = release.clone();
            async move {
                release.acquire().await.unwrap().forget();
                TestResult::Ok(())
            }
        }
    }));
    let mut first = task::spawn(service.clone().oneshot(()));
    assert_pending!(first.poll());
    let mut waiting = task::spawn(service.clone().oneshot(()));
    assert_pending!(waiting.poll());
    let cancelled = service.clone().call(());
    let stats = pool.stats();
    assert_eq!((stats.waiting, stats.queued, stats.in_flight), (2, 2, 1));
    drop(cancelled);
    assert_eq!((pool.stats().waiting, pool.stats().queued), (1, 1));

    tokio::time::advance(released).await;
    release.add_permits(2);
    soon(first).await.unwrap();
    soon(waiting).await.unwrap();
    let stats = pool.stats();
    assert_eq!((stats.waiting, stats.queued, stats.started, stats.rejected), (0, 0, 2, 0));
    assert_eq!(stats.queue_wait, released);
    assert_eq!(pool.expected_wait(), Duration::ZERO, "the pool had capacity");
}

#[tokio::test]
async fn shutdown_does_not_report_waiting_calls_as_queued() {
    let pool = one_thread();
    let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1).wait(LONG);
    let service = layer.layer(service_fn(async |()| std::future::pending::<TestResult<()>>().await));
    let mut parked = task::spawn(service.clone().oneshot(()));
    assert_pending!(parked.poll());
    let mut waiting = task::spawn(service.clone().oneshot(()));
    assert_pending!(waiting.poll());
    eventually(|| pool.stats().started == 1 && pool.stats().active == 0).await;
    let report = pool.shutdown(Duration::ZERO).await;
    assert_eq!((report.queued, report.running, report.parked), (0, 0, 1));
    assert_eq!(soon(waiting).await.unwrap_err().downcast_ref(), Some(&CallError::Closed));
    assert_eq!((pool.stats().waiting, pool.stats().queued), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn wait_timeout_ends_as_overloaded() {
    let service = OffloadLayer::new(tower_offload::pool::Inline::new())
        .reject(RejectWithError)
        .max_in_flight(1)
        .wait(Duration::from_millis(100))
        .layer(service_fn(async |()| std::future::pending::<TestResult<()>>().await));
    let mut first = task::spawn(service.clone().oneshot(()));
    assert_pending!(first.poll());
    let started = tokio::time::Instant::now();
    let error = service.clone().oneshot(()).await.unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&CallError::Overloaded));
    assert_eq!(started.elapsed(), Duration::from_millis(100));
}

#[tokio::test]
async fn number_of_waiting_calls_is_limited() {
    let pool = one_thread();
    let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1).wait(LONG).max_waiting(1);
    let service = layer.layer(service_fn(async |()| std::future::pending::<TestResult<()>>().await));
    let mut running = task::spawn(service.clone().oneshot(()));
    assert_pending!(running.poll());
    let mut waiting = task::spawn(service.clone().oneshot(()));
    assert_pending!(waiting.poll());
    let rejected = assert_ready_err!(task::spawn(service.clone().oneshot(())).poll());
    assert_eq!(rejected.downcast_ref(), Some(&CallError::Overloaded));
    drop(waiting); // another call may wait now
    assert_pending!(task::spawn(service.clone().oneshot(())).poll());
}

#[tokio::test]
async fn call_cancelled_while_waiting_never_starts() {
    for pool in pools(1, 1) {
        let calls = Arc::new(AtomicUsize::new(0));
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(2).wait(LONG);
        let service = layer.layer(service_fn_blocking({
            let calls = calls.clone();
            move |()| TestResult::Ok(calls.fetch_add(1, SeqCst))
        }));
        let held = hold(&pool).await;
        let mut queued = task::spawn(service.clone().oneshot(()));
        assert_pending!(queued.poll());
        for _ in 0..10 {
            let mut waiting = task::spawn(service.clone().oneshot(()));
            assert_pending!(waiting.poll());
        }
        drop(queued);
        held.release().await.unwrap();
        for expected in 0..4 {
            assert_eq!(soon(service.clone().oneshot(())).await.unwrap(), expected);
        }
    }
}

#[tokio::test]
async fn layers_share_the_queue_of_a_pool_but_not_their_limits() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(2).build().unwrap();
    let service = |layer: OffloadLayer<RejectWithError>| {
        layer.layer(service_fn(async |()| std::future::pending::<TestResult<()>>().await))
    };
    let layer = || OffloadLayer::new(pool.clone()).reject(RejectWithError);
    let (first, second) = (service(layer().max_in_flight(1)), service(layer().max_in_flight(1)));

    // Each layer has its own limit: one parked call in each.
    let mut calls: Vec<_> = [&first, &second].map(|service| task::spawn(service.clone().oneshot(()))).into();
    calls.iter_mut().for_each(|call| assert_pending!(call.poll()));
    for service in [&first, &second] {
        let rejected = assert_ready_err!(task::spawn(service.clone().oneshot(())).poll());
        assert_eq!(rejected.downcast_ref(), Some(&CallError::Overloaded));
    }
    drop(calls);
    eventually(|| (pool.stats().in_flight, pool.stats().permits_in_use) == (0, 0)).await;

    // The queue belongs to the pool: calls of one layer fill it for the other.
    let held = hold(&pool).await;
    let (third, fourth) = (service(layer()), service(layer()));
    let mut queued: Vec<_> = (0..2).map(|_| task::spawn(third.clone().oneshot(()))).collect();
    queued.iter_mut().for_each(|call| assert_pending!(call.poll()));
    let rejected = assert_ready_err!(task::spawn(fourth.clone().oneshot(())).poll());
    assert_eq!(rejected.downcast_ref(), Some(&CallError::Overloaded));
    held.release().await.unwrap();
}

#[tokio::test]
async fn clones_of_a_layer_share_one_limit() {
    let layer = OffloadLayer::new(one_thread()).reject(RejectWithError).max_in_flight(1);
    let pending = || service_fn(async |()| std::future::pending::<TestResult<()>>().await);
    let (one, other) = (layer.layer(pending()), layer.clone().layer(pending()));
    let mut call = task::spawn(one.clone().oneshot(()));
    assert_pending!(call.poll());
    let rejected = assert_ready_err!(task::spawn(other.oneshot(())).poll());
    assert_eq!(rejected.downcast_ref(), Some(&CallError::Overloaded));
}

#[tokio::test]
async fn nested_call_of_the_same_layer_shares_the_permit() {
    for mode in [None, Some(LONG)] {
        let layer = OffloadLayer::new(one_thread()).reject(RejectWithError).max_in_flight(1);
        let layer = match mode {
            Some(wait) => layer.wait(wait),
            None => layer,
        };
        let innermost = layer.layer(service_fn_blocking(|n: u32| TestResult::Ok(n + 1)));
        let nested = layer.layer(layer.layer(innermost));
        assert_eq!(soon(nested.clone().oneshot(1)).await.unwrap(), 2);
        assert_eq!(soon(nested.oneshot(2)).await.unwrap(), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permit_is_released_before_the_caller_is_woken() {
    for pool in pools(2, 1) {
        let mut service = OffloadLayer::new(pool)
            .reject(RejectWithError)
            .max_in_flight(1)
            .layer(service_fn_blocking(|()| TestResult::Ok(())));
        for _ in 0..2_000 {
            soon(service.ready().await.unwrap().call(())).await.unwrap();
        }
    }
}
