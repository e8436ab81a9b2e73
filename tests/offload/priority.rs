//! Priorities of queued calls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio_test::{assert_pending, assert_ready_err, task};
use tower::ServiceExt;
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer, ThreadPool,
    offload::{RejectWithError, service_fn_blocking},
    pool::{Pool, Priority},
};

use crate::support::{TestResult, eventually, hold, pools, soon};

#[tokio::test]
async fn low_is_rejected_while_half_of_the_queue_is_taken() {
    for pool in pools(1, 5) {
        let held = hold(&pool).await;
        let low = || pool.run_with_priority(Priority::Low, || ());
        let mut calls: Vec<_> = vec![low(), pool.run(|| ()), low()];
        assert_eq!(soon(low()).await, Err(CallError::Overloaded));
        calls.extend([Priority::Normal, Priority::High].map(|priority| pool.run_with_priority(priority, || ())));
        assert_eq!(soon(pool.run(|| ())).await, Err(CallError::Overloaded));
        held.release().await.unwrap();
        for call in calls {
            soon(call).await.unwrap();
        }
        soon(low()).await.unwrap();
    }
}

#[tokio::test]
async fn low_waits_like_any_call_if_the_layer_waits() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
    let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).wait(Duration::from_secs(60));
    let service = layer.priority_request(|_: &u32| Priority::Low).layer(service_fn_blocking(TestResult::Ok));
    let held = hold(&pool).await;
    let mut calls: Vec<_> = (0..3).map(|n| task::spawn(service.clone().oneshot(n))).collect();
    calls.iter_mut().for_each(|call| assert_pending!(call.poll()));
    held.release().await.unwrap();
    for (n, call) in (0..).zip(calls) {
        assert_eq!(soon(call).await.unwrap(), n);
    }
}

/// Four streams of high-priority calls keep the queue filled: each call queues its successor.
#[tokio::test]
async fn high_priority_does_not_starve_low_priority() {
    struct Stream<P> {
        pool: P,
        stop: AtomicBool,
        ran: AtomicUsize,
    }
    fn next<P: Pool + Clone>(stream: Arc<Stream<P>>) {
        let pool = stream.pool.clone();
        tokio::spawn(pool.run_with_priority(Priority::High, move || {
            stream.ran.fetch_add(1, SeqCst);
            if !stream.stop.load(SeqCst) {
                next(stream);
            }
        }));
    }
    for pool in pools(1, 64) {
        let stop = AtomicBool::new(false);
        let stream = Arc::new(Stream { pool: pool.clone(), stop, ran: AtomicUsize::new(0) });
        let held = hold(&pool).await;
        (0..4).for_each(|_| next(stream.clone()));
        let low = [Priority::Low, Priority::Normal, Priority::Low].map(|it| pool.run_with_priority(it, || ()));
        held.release().await.unwrap();
        for call in low {
            soon(call).await.unwrap();
        }
        stream.stop.store(true, SeqCst);
        assert!(stream.ran.load(SeqCst) > 4, "high-priority calls ran as well");
        eventually(|| pool.admission().stats().in_flight == 0).await;
    }
}

/// Filters and propagated values do not change the priority.
#[tokio::test]
async fn last_priority_of_a_layer_takes_effect() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(4).build().unwrap();
    let service = |first: Priority, last: Priority| {
        OffloadLayer::new(pool.clone())
            .reject(RejectWithError)
            .priority_request(move |_: &u32| first)
            .priority_request(move |_: &u32| last)
            .filter_request(|_: &u32| true)
            .propagate_request(|n: &u32| *n, |_, poll| poll())
            .layer(service_fn_blocking(TestResult::Ok))
    };
    let (high, low) = (service(Priority::Low, Priority::High), service(Priority::High, Priority::Low));
    let held = hold(&pool).await;
    let half = [pool.run(|| ()), pool.run(|| ())]; // half of the queue, so that `Low` is rejected
    let mut accepted = task::spawn(high.oneshot(1));
    assert_pending!(accepted.poll());
    let rejected = assert_ready_err!(task::spawn(low.oneshot(2)).poll());
    assert_eq!(rejected.downcast_ref(), Some(&CallError::Overloaded));
    held.release().await.unwrap();
    assert_eq!(soon(accepted).await.unwrap(), 1);
    for call in half {
        soon(call).await.unwrap();
    }
}
