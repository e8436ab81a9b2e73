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
    offload::{Typed, sync_fn},
    pool::Pool,
};

use crate::support::{Answer, eventually, hold, one_thread, pools, soon};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn e1_never_more_than_max_in_flight_calls_run() {
    for pool in pools(4, 64) {
        let (running, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let service = OffloadLayer::new(pool).reject(Typed).max_in_flight(2).wait(LONG).layer(sync_fn({
            let peak = peak.clone();
            move |()| {
                peak.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                std::thread::yield_now();
                running.fetch_sub(1, SeqCst);
                Answer::Ok(())
            }
        }));
        for answer in soon(join_all((0..64).map(|_| service.clone().oneshot(())))).await {
            answer.unwrap();
        }
        assert!(peak.load(SeqCst) <= 2, "{} at once", peak.load(SeqCst));
    }
}

#[tokio::test]
async fn e1_all_of_max_in_flight_is_used() {
    let pool = ThreadPool::builder().threads(3).build().unwrap();
    let (entered, mut inside) = mpsc::unbounded_channel();
    let release = Arc::new(Semaphore::new(0));
    let service = OffloadLayer::new(pool).reject(Typed).max_in_flight(2).layer(service_fn({
        let release = release.clone();
        move |()| {
            let (entered, release) = (entered.clone(), release.clone());
            async move {
                entered.send(()).unwrap();
                release.acquire().await.unwrap().forget();
                Answer::Ok(())
            }
        }
    }));
    let calls: Vec<_> = (0..2).map(|_| service.clone().oneshot(())).map(tokio::spawn).collect();
    soon(inside.recv()).await.unwrap();
    soon(inside.recv()).await.unwrap();
    let refused = soon(service.clone().oneshot(())).await.unwrap_err();
    assert_eq!(refused.downcast_ref(), Some(&CallError::Overloaded));
    release.add_permits(2);
    for call in calls {
        soon(call).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn e2_a_full_queue_refuses_at_once() {
    for pool in pools(1, 2) {
        let service = OffloadLayer::new(pool.clone()).reject(Typed).layer(sync_fn(|n: u32| Answer::Ok(n)));
        let held = hold(&pool).await;
        let queued: Vec<_> = (0..2).map(|n| tokio::spawn(service.clone().oneshot(n))).collect();
        tokio::task::yield_now().await; // both are in the queue now
        assert_eq!(pool.admission().stats().queued, 2);
        let mut refused = task::spawn(service.clone().oneshot(9));
        assert_eq!(assert_ready_err!(refused.poll()).downcast_ref(), Some(&CallError::Overloaded));
        assert_eq!(pool.admission().stats().rejected, 1);
        held.release().await.unwrap();
        for (n, call) in queued.into_iter().enumerate() {
            assert_eq!(soon(call).await.unwrap().unwrap(), n as u32, "the queued ones are served, in order");
        }
    }
}

#[tokio::test]
async fn e3_a_waiting_call_goes_on_when_a_slot_is_free() {
    for pool in pools(1, 1) {
        let layer = OffloadLayer::new(pool.clone()).reject(Typed).wait(LONG);
        let service = layer.layer(sync_fn(|n: u32| Answer::Ok(n)));
        let held = hold(&pool).await;
        let mut queued = task::spawn(service.clone().oneshot(1));
        assert_pending!(queued.poll());
        let mut waiting = task::spawn(service.clone().oneshot(2));
        assert_pending!(waiting.poll());
        assert_eq!(pool.admission().stats().in_flight, 2, "the waiting one is not in the pool");
        held.release().await.unwrap();
        assert_eq!(soon(queued).await.unwrap(), 1);
        assert_eq!(soon(waiting).await.unwrap(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn e2_waiting_ends_after_its_time_as_overloaded() {
    let places = OffloadLayer::new(tower_offload::pool::Inline::new())
        .reject(Typed)
        .max_in_flight(1)
        .wait(Duration::from_millis(100))
        .layer(service_fn(async |()| std::future::pending::<Answer<()>>().await));
    let mut first = task::spawn(places.clone().oneshot(()));
    assert_pending!(first.poll());
    let started = tokio::time::Instant::now();
    let error = places.clone().oneshot(()).await.unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&CallError::Overloaded));
    assert_eq!(started.elapsed(), Duration::from_millis(100));
}

#[tokio::test]
async fn the_number_of_waiting_calls_is_bounded() {
    let pool = one_thread();
    let layer = OffloadLayer::new(pool.clone()).reject(Typed).max_in_flight(1).wait(LONG).max_waiting(1);
    let service = layer.layer(service_fn(async |()| std::future::pending::<Answer<()>>().await));
    let mut running = task::spawn(service.clone().oneshot(()));
    assert_pending!(running.poll());
    let mut waiting = task::spawn(service.clone().oneshot(()));
    assert_pending!(waiting.poll());
    let refused = assert_ready_err!(task::spawn(service.clone().oneshot(())).poll());
    assert_eq!(refused.downcast_ref(), Some(&CallError::Overloaded));
    drop(waiting); // makes room for another to wait
    assert_pending!(task::spawn(service.clone().oneshot(())).poll());
}

#[tokio::test]
async fn e4_a_call_that_is_cancelled_while_it_waits_never_starts_and_leaks_nothing() {
    for pool in pools(1, 1) {
        let calls = Arc::new(AtomicUsize::new(0));
        let layer = OffloadLayer::new(pool.clone()).reject(Typed).max_in_flight(2).wait(LONG);
        let service = layer.layer(sync_fn({
            let calls = calls.clone();
            move |()| Answer::Ok(calls.fetch_add(1, SeqCst))
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
async fn p17_one_pool_behind_two_layers_has_one_capacity_and_two_sets_of_places() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(2).build().unwrap();
    let service =
        |layer: OffloadLayer<Typed>| layer.layer(service_fn(async |()| std::future::pending::<Answer<()>>().await));
    let layer = || OffloadLayer::new(pool.clone()).reject(Typed);
    let (first, second) = (service(layer().max_in_flight(1)), service(layer().max_in_flight(1)));

    // Places are each layer's: one call in each, both parked.
    let mut calls: Vec<_> = [&first, &second].map(|service| task::spawn(service.clone().oneshot(()))).into();
    calls.iter_mut().for_each(|call| assert_pending!(call.poll()));
    for service in [&first, &second] {
        let refused = assert_ready_err!(task::spawn(service.clone().oneshot(())).poll());
        assert_eq!(refused.downcast_ref(), Some(&CallError::Overloaded));
    }
    drop(calls);
    eventually(|| (pool.stats().in_flight, pool.stats().permits_in_use) == (0, 0)).await;

    // Capacity is the pool's: what one layer put into the queue, the other has not.
    let held = hold(&pool).await;
    let (third, fourth) = (service(layer()), service(layer()));
    let mut queued: Vec<_> = (0..2).map(|_| task::spawn(third.clone().oneshot(()))).collect();
    queued.iter_mut().for_each(|call| assert_pending!(call.poll()));
    let refused = assert_ready_err!(task::spawn(fourth.clone().oneshot(())).poll());
    assert_eq!(refused.downcast_ref(), Some(&CallError::Overloaded));
    held.release().await.unwrap();
}

#[tokio::test]
async fn clones_of_a_layer_share_its_places_and_services_do() {
    let layer = OffloadLayer::new(one_thread()).reject(Typed).max_in_flight(1);
    let pending = || service_fn(async |()| std::future::pending::<Answer<()>>().await);
    let (one, other) = (layer.layer(pending()), layer.clone().layer(pending()));
    let mut call = task::spawn(one.clone().oneshot(()));
    assert_pending!(call.poll());
    let refused = assert_ready_err!(task::spawn(other.oneshot(())).poll());
    assert_eq!(refused.downcast_ref(), Some(&CallError::Overloaded));
}

#[tokio::test]
async fn a_call_within_a_call_of_the_same_layer_takes_no_second_place() {
    for mode in [None, Some(LONG)] {
        let layer = OffloadLayer::new(one_thread()).reject(Typed).max_in_flight(1);
        let layer = match mode {
            Some(wait) => layer.wait(wait),
            None => layer,
        };
        let innermost = layer.layer(sync_fn(|n: u32| Answer::Ok(n + 1)));
        let nested = layer.layer(layer.layer(innermost));
        assert_eq!(soon(nested.clone().oneshot(1)).await.unwrap(), 2);
        // And the place is free again.
        assert_eq!(soon(nested.oneshot(2)).await.unwrap(), 3);
    }
}

/// The place is free before the caller is told: its next call must find it so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_one_after_the_other_never_meet_their_own_place() {
    for pool in pools(2, 1) {
        let mut service = OffloadLayer::new(pool).reject(Typed).max_in_flight(1).layer(sync_fn(|()| Answer::Ok(())));
        for _ in 0..2_000 {
            soon(service.ready().await.unwrap().call(())).await.unwrap();
        }
    }
}
