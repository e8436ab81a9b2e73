//! P16: a request, future or response whose `Drop` panics or calls `tokio::spawn`, when it is cancelled, shed or shut down:
//! process, threads and places survive.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio_test::{assert_pending, assert_ready_err, task};
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer,
    offload::{Typed, sync_fn},
    pool::Pool,
};

use crate::support::{Answer, eventually, hold, hold_at_last, pools, shedding_pools, soon, too_long};

/// Spawns a task as sqlx's connections do, counts, then panics.
#[derive(Debug)]
struct Bomb(Arc<AtomicUsize>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
        tokio::spawn(async {}); // panics itself where there is no runtime
        panic!("a drop that panics");
    }
}

/// Pending for ever, with a bomb inside.
struct Explosive(#[expect(dead_code, reason = "held for its drop")] Bomb);

impl Future for Explosive {
    type Output = Answer<()>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Pending
    }
}

async fn survives(pool: &Arc<dyn Pool>, layer: &OffloadLayer<Typed>) {
    let service = layer.layer(sync_fn(|n: u32| Answer::Ok(n)));
    eventually(|| (pool.admission().stats().in_flight, pool.admission().stats().permits_in_use) == (0, 0)).await;
    // Every place is free and the thread is alive.
    assert_eq!(soon(service.oneshot(7)).await.unwrap(), 7);
    let stats = pool.admission().stats();
    assert_eq!((stats.queued, stats.woken, stats.active), (0, 0, 0));
}

#[tokio::test]
async fn p16_a_request_that_explodes_when_its_queued_call_is_cancelled() {
    for pool in pools(1, 8) {
        let (layer, drops) =
            (OffloadLayer::new(pool.clone()).reject(Typed).max_in_flight(1), Arc::<AtomicUsize>::default());
        let held = hold(&pool).await;
        let mut call = task::spawn(layer.layer(sync_fn(|_: Bomb| Answer::Ok(()))).oneshot(Bomb(Arc::clone(&drops))));
        assert_pending!(call.poll());
        drop(call);
        held.release().await.unwrap();
        survives(&pool, &layer).await;
        assert_eq!((drops.load(SeqCst), pool.admission().stats().panicked), (1, 1));
    }
}

#[tokio::test]
async fn p16_a_future_that_explodes_when_its_parked_call_is_cancelled() {
    for pool in pools(1, 8) {
        let (layer, drops) =
            (OffloadLayer::new(pool.clone()).reject(Typed).max_in_flight(1), Arc::<AtomicUsize>::default());
        let service = layer.layer(service_fn({
            let drops = Arc::clone(&drops);
            move |()| Explosive(Bomb(drops.clone()))
        }));
        let mut call = task::spawn(service.oneshot(()));
        assert_pending!(call.poll());
        eventually(|| pool.admission().stats().started == 1 && pool.admission().stats().active == 0).await;
        drop(call);
        survives(&pool, &layer).await;
        assert_eq!((drops.load(SeqCst), pool.admission().stats().panicked), (1, 1));
    }
}

#[tokio::test]
async fn p16_a_response_that_explodes_when_its_running_call_was_abandoned() {
    for detached in [false, true] {
        for pool in pools(1, 8) {
            let drops: Arc<AtomicUsize> = Arc::default();
            let layer = OffloadLayer::new(pool.clone()).reject(Typed).max_in_flight(1);
            let layer = if detached { layer.detached() } else { layer };
            let (entered, inside) = tokio::sync::oneshot::channel();
            let (release, released) = std::sync::mpsc::channel::<()>();
            let channels = Arc::new(std::sync::Mutex::new(Some((entered, released))));
            let service = layer.layer(sync_fn({
                let drops = Arc::clone(&drops);
                move |()| {
                    let (entered, released) = channels.lock().unwrap().take().unwrap();
                    entered.send(()).unwrap();
                    released.recv().unwrap();
                    Answer::Ok(Bomb(drops.clone()))
                }
            }));
            let mut call = task::spawn(service.oneshot(()));
            assert_pending!(call.poll());
            soon(inside).await.unwrap();
            drop(call);
            release.send(()).unwrap();
            survives(&pool, &layer).await;
            eventually(|| pool.admission().stats().panicked == 1).await;
            assert_eq!(drops.load(SeqCst), 1);
        }
    }
}

/// The response stands and nobody takes it: the caller's own drop of the future disposes of it.
#[tokio::test]
async fn p16_a_response_that_explodes_when_its_caller_leaves_after_the_end() {
    for pool in pools(1, 8) {
        let drops: Arc<AtomicUsize> = Arc::default();
        let layer = OffloadLayer::new(pool.clone()).reject(Typed).max_in_flight(1);
        let service = layer.layer(sync_fn({
            let drops = Arc::clone(&drops);
            move |()| Answer::Ok(Bomb(drops.clone()))
        }));
        let call = service.clone().call(()); // not polled, so that nobody takes the response; `sync_fn` is always ready
        eventually(|| pool.admission().stats().completed == 1 && pool.admission().stats().in_flight == 0).await;
        drop(call);
        survives(&pool, &layer).await;
        assert_eq!((drops.load(SeqCst), pool.admission().stats().panicked), (1, 1));
    }
}

#[tokio::test]
async fn p16_requests_and_futures_that_explode_when_the_pool_is_shut_down() {
    for pool in pools(1, 8) {
        let drops: Arc<AtomicUsize> = Arc::default();
        let layer = OffloadLayer::new(pool.clone()).reject(Typed);
        let mut parked = task::spawn(
            layer
                .layer(service_fn({
                    let drops = Arc::clone(&drops);
                    move |()| {
                        let explosive = Explosive(Bomb(drops.clone()));
                        async move {
                            tokio::task::yield_now().await;
                            explosive.await
                        }
                    }
                }))
                .oneshot(()),
        );
        assert_pending!(parked.poll());
        eventually(|| pool.admission().stats().started == 1 && pool.admission().stats().active == 0).await;
        let held = hold(&pool).await;
        let queued = layer.layer(sync_fn(|_: Bomb| Answer::Ok(()))).oneshot(Bomb(Arc::clone(&drops)));
        let mut queued = task::spawn(queued);
        assert_pending!(queued.poll());

        let left = soon(pool.shutdown(Duration::ZERO)).await;
        assert_eq!((left.running, left.queued, left.parked), (1, 1, 1));
        let refused = soon(queued).await.unwrap_err();
        assert_eq!(refused.downcast_ref(), Some(&CallError::Closed));
        drop(parked);
        held.release().await.unwrap();
        eventually(|| pool.admission().stats().in_flight == 0).await;
        assert_eq!((drops.load(SeqCst), pool.admission().stats().panicked), (2, 2));
    }
}

/// A refused request is dropped where the call was made, as without the layer; nothing of ours is left behind.
#[tokio::test]
async fn p16_a_request_that_explodes_when_it_is_refused() {
    let pool = pools(1, 1).remove(0);
    let layer = OffloadLayer::new(pool.clone()).reject(Typed).max_in_flight(1);
    let mut taken =
        task::spawn(layer.layer(service_fn(async |()| std::future::pending::<Answer<()>>().await)).oneshot(()));
    assert_pending!(taken.poll());
    let service = layer.layer(sync_fn(|_: Bomb| Answer::Ok(())));
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = task::spawn(service.oneshot(Bomb(Arc::default()))).poll();
    }));
    assert!(refused.is_err(), "the request's own panic is the caller's");
    let next = layer.layer(sync_fn(|()| Answer::Ok(())));
    let refused = assert_ready_err!(task::spawn(next.oneshot(())).poll());
    assert_eq!(refused.downcast_ref(), Some(&CallError::Overloaded));
    drop(taken);
    survives(&pool, &layer).await;
}

/// A panic payload is dropped on the pool if nobody takes it, and its drop may panic too.
#[tokio::test]
async fn p16_a_panic_payload_that_explodes() {
    for pool in pools(1, 8) {
        let drops: Arc<AtomicUsize> = Arc::default();
        let layer = OffloadLayer::new(pool.clone()).reject(Typed).catch_panics();
        let service = layer.layer(sync_fn({
            let drops = Arc::clone(&drops);
            move |()| -> Answer<()> { std::panic::panic_any(Bomb(drops.clone())) }
        }));
        let error = soon(service.oneshot(())).await.unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&CallError::Panicked));
        assert_eq!(drops.load(SeqCst), 1);
        survives(&pool, &layer).await;
    }
}

#[tokio::test]
async fn p16_a_request_that_explodes_when_its_call_is_shed() {
    for pool in shedding_pools(8) {
        let (layer, drops) =
            (OffloadLayer::new(pool.clone()).reject(Typed).max_in_flight(4), Arc::new(AtomicUsize::new(0)));
        let service = layer.layer(sync_fn(|_: Bomb| Answer::Ok(())));
        let held = hold_at_last(&pool).await;
        let panicked = pool.admission().stats().panicked;
        let calls: Vec<_> = (0..4).map(|_| tokio::spawn(service.clone().oneshot(Bomb(drops.clone())))).collect();
        eventually(|| pool.admission().stats().queued == 4).await;
        let _newest = pool.run(|| ());
        too_long().await;
        held.release().await.unwrap();
        for call in calls {
            let error = soon(call).await.unwrap().unwrap_err();
            assert_eq!(error.downcast_ref(), Some(&CallError::Expired));
        }
        assert_eq!((drops.load(SeqCst), pool.admission().stats().panicked), (4, panicked + 4));
        let service = layer.layer(sync_fn(|n: u32| Answer::Ok(n)));
        eventually(|| (pool.admission().stats().in_flight, pool.admission().stats().permits_in_use) == (0, 0)).await;
        while soon(service.clone().oneshot(7)).await.is_err() {} // a slow machine may have more of them shed
    }
}
