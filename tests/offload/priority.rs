//! Who goes first, who goes all the same, and what must never wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio_test::{assert_pending, task};
use tower::ServiceExt;
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer, ThreadPool,
    offload::{Typed, sync_fn},
    pool::{Pool, Priority},
};

use crate::support::{Answer, eventually, hold, pools, soon};

#[tokio::test]
async fn low_is_refused_once_half_of_the_queue_is_taken() {
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

/// Through a layer that waits, low calls wait as others do.
#[tokio::test]
async fn low_waits_for_room_where_the_layer_waits() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
    let layer = OffloadLayer::new(pool.clone()).reject(Typed).wait(Duration::from_secs(60));
    let service = layer.priority_request(|_: &u32| Priority::Low).layer(sync_fn(Answer::Ok));
    let held = hold(&pool).await;
    let mut calls: Vec<_> = (0..3).map(|n| task::spawn(service.clone().oneshot(n))).collect();
    calls.iter_mut().for_each(|call| assert_pending!(call.poll()));
    held.release().await.unwrap();
    for (n, call) in (0..).zip(calls) {
        assert_eq!(soon(call).await.unwrap(), n);
    }
}

/// Every high call puts the next one into the queue before it ends, four at a time: the queue never runs empty of them.
#[tokio::test]
async fn a_steady_stream_of_high_does_not_keep_low_from_running() {
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
        assert!(stream.ran.load(SeqCst) > 4, "and high went on meanwhile");
        eventually(|| pool.admission().stats().in_flight == 0).await;
    }
}

#[tokio::test]
async fn the_priority_that_was_set_last_counts_and_filters_and_carried_values_leave_it_alone() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(2).build().unwrap();
    let layer = OffloadLayer::new(pool.clone())
        .reject(Typed)
        .priority_request(|_: &u32| Priority::Low)
        .priority_request(|_: &u32| Priority::High)
        .filter_request(|_: &u32| true)
        .carry_request(|n: &u32| *n, |_, poll| poll());
    let service = layer.layer(sync_fn(Answer::Ok));
    let held = hold(&pool).await;
    let queued = pool.run(|| ()); // a low call would be refused from now on
    let mut call = task::spawn(service.clone().oneshot(1));
    assert_pending!(call.poll());
    held.release().await.unwrap();
    soon(queued).await.unwrap();
    assert_eq!(soon(call).await.unwrap(), 1);
}
