//! Requests, futures and responses whose `Drop` panics or calls `tokio::spawn`. Process, threads
//! and permits survive.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use tokio_test::{assert_pending, assert_ready_err, task};
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer,
    offload::{RejectWithError, service_fn_blocking},
    pool::Pool,
};

use crate::support::{TestResult, eventually, hold, overload, pools, soon};

/// Counts its drops. Each drop also spawns a task, like those of sqlx's connections, and panics.
#[derive(Debug)]
struct Bomb(Arc<AtomicUsize>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
        tokio::spawn(async {}); // panics outside of a runtime
        panic!("a drop that panics");
    }
}

/// A future that never completes and whose drop panics.
struct Explosive(#[expect(dead_code, reason = "dropped with the future")] Bomb);

impl Future for Explosive {
    type Output = TestResult<()>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Pending
    }
}

async fn survives(pool: &Arc<dyn Pool>, layer: &OffloadLayer<RejectWithError>) {
    let service = layer.layer(service_fn_blocking(|n: u32| TestResult::Ok(n)));
    eventually(|| (pool.admission().stats().in_flight, pool.admission().stats().permits_in_use) == (0, 0)).await;
    // Every permit is released and the thread is alive.
    assert_eq!(soon(service.oneshot(7)).await.unwrap(), 7);
    let stats = pool.admission().stats();
    assert_eq!((stats.queued, stats.woken, stats.active), (0, 0, 0));
}

#[tokio::test]
async fn request_drop_may_panic_when_a_queued_call_is_cancelled() {
    for pool in pools(1, 8) {
        let (layer, drops) =
            (OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1), Arc::<AtomicUsize>::default());
        let held = hold(&pool).await;
        let mut call = task::spawn(
            layer.layer(service_fn_blocking(|_: Bomb| TestResult::Ok(()))).oneshot(Bomb(Arc::clone(&drops))),
        );
        assert_pending!(call.poll());
        drop(call);
        held.release().await.unwrap();
        survives(&pool, &layer).await;
        assert_eq!((drops.load(SeqCst), pool.admission().stats().panicked), (1, 1));
    }
}

#[tokio::test]
async fn future_drop_may_panic_when_a_parked_call_is_cancelled() {
    for pool in pools(1, 8) {
        let (layer, drops) =
            (OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1), Arc::<AtomicUsize>::default());
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
async fn response_drop_may_panic_after_the_caller_left() {
    for detached in [false, true] {
        for pool in pools(1, 8) {
            let drops: Arc<AtomicUsize> = Arc::default();
            let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1);
            let layer = if detached { layer.detached() } else { layer };
            let (entered, inside) = tokio::sync::oneshot::channel();
            let (release, released) = std::sync::mpsc::channel::<()>();
            let channels = Arc::new(std::sync::Mutex::new(Some((entered, released))));
            let service = layer.layer(service_fn_blocking({
                let drops = Arc::clone(&drops);
                move |()| {
                    let (entered, released) = channels.lock().unwrap().take().unwrap();
                    entered.send(()).unwrap();
                    released.recv().unwrap();
                    TestResult::Ok(Bomb(drops.clone()))
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

/// The caller's drop of the response future drops the response.
#[tokio::test]
async fn unclaimed_response_drop_may_panic() {
    for pool in pools(1, 8) {
        let drops: Arc<AtomicUsize> = Arc::default();
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1);
        let service = layer.layer(service_fn_blocking({
            let drops = Arc::clone(&drops);
            move |()| TestResult::Ok(Bomb(drops.clone()))
        }));
        let call = service.clone().call(()); // never polled, so that it does not take the response
        eventually(|| pool.admission().stats().completed == 1 && pool.admission().stats().in_flight == 0).await;
        drop(call);
        survives(&pool, &layer).await;
        assert_eq!((drops.load(SeqCst), pool.admission().stats().panicked), (1, 1));
    }
}

#[tokio::test]
async fn drops_may_panic_at_shutdown() {
    for pool in pools(1, 8) {
        let drops: Arc<AtomicUsize> = Arc::default();
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError);
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
        let queued = layer.layer(service_fn_blocking(|_: Bomb| TestResult::Ok(()))).oneshot(Bomb(Arc::clone(&drops)));
        let mut queued = task::spawn(queued);
        assert_pending!(queued.poll());

        let report = soon(pool.shutdown(Duration::ZERO)).await;
        assert_eq!((report.running, report.queued, report.parked), (1, 1, 1));
        let rejected = soon(queued).await.unwrap_err();
        assert_eq!(rejected.downcast_ref(), Some(&CallError::Closed));
        drop(parked);
        held.release().await.unwrap();
        eventually(|| pool.admission().stats().in_flight == 0).await;
        assert_eq!((drops.load(SeqCst), pool.admission().stats().panicked), (2, 2));
    }
}

/// A rejected request is dropped in the caller's task, as without the layer.
#[tokio::test]
async fn request_drop_may_panic_when_it_is_rejected() {
    let pool = pools(1, 1).remove(0);
    let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1);
    let mut taken =
        task::spawn(layer.layer(service_fn(async |()| std::future::pending::<TestResult<()>>().await)).oneshot(()));
    assert_pending!(taken.poll());
    let service = layer.layer(service_fn_blocking(|_: Bomb| TestResult::Ok(())));
    let rejected = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = task::spawn(service.oneshot(Bomb(Arc::default()))).poll();
    }));
    assert!(rejected.is_err(), "the panic reaches the caller");
    let next = layer.layer(service_fn_blocking(|()| TestResult::Ok(())));
    let rejected = assert_ready_err!(task::spawn(next.oneshot(())).poll());
    assert_eq!(rejected.downcast_ref(), Some(&CallError::Overloaded));
    drop(taken);
    survives(&pool, &layer).await;
}

#[tokio::test]
async fn panic_payload_drop_may_panic() {
    for pool in pools(1, 8) {
        let drops: Arc<AtomicUsize> = Arc::default();
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).catch_panics();
        let service = layer.layer(service_fn_blocking({
            let drops = Arc::clone(&drops);
            move |()| -> TestResult<()> { std::panic::panic_any(Bomb(drops.clone())) }
        }));
        let error = soon(service.oneshot(())).await.unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&CallError::Panicked));
        assert_eq!(drops.load(SeqCst), 1);
        survives(&pool, &layer).await;
    }
}

#[tokio::test]
async fn request_drop_may_panic_when_its_call_is_shed() {
    for pool in pools(1, 1024) {
        let (layer, drops) = (OffloadLayer::new(pool.clone()).reject(RejectWithError), Arc::new(AtomicUsize::new(0)));
        let service = layer.clone().max_in_flight(1000).layer(service_fn_blocking(|_: Bomb| {
            std::thread::sleep(Duration::from_millis(1)); // longer than the pause between calls
            TestResult::Ok(())
        }));
        let mut calls = Vec::new();
        overload(&pool, || calls.push(tokio::spawn(service.clone().oneshot(Bomb(drops.clone()))))).await;
        let (made, mut shed) = (calls.len(), 0);
        for call in calls {
            // Those that ran or were rejected at once fail with the panic of the drop.
            if let Ok(ended) = soon(call).await {
                assert_eq!(ended.unwrap_err().downcast_ref(), Some(&CallError::Overloaded));
                shed += 1;
            }
        }
        assert!(shed > 0);
        eventually(|| (pool.admission().stats().in_flight, pool.admission().stats().permits_in_use) == (0, 0)).await;
        assert_eq!(drops.load(SeqCst), made);
        let service = layer.layer(service_fn_blocking(|n: u32| TestResult::Ok(n)));
        assert_eq!(soon(service.oneshot(7)).await.unwrap(), 7);
    }
}

/// Panics when it is woken.
struct PanickingWaker;

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        panic!("a waker that panics");
    }
}

/// The permit of the cancelled call passes to a call that waits for it.
#[tokio::test]
async fn a_waker_may_panic_when_a_queued_call_is_cancelled() {
    for pool in pools(1, 8) {
        let layer =
            OffloadLayer::new(pool.clone()).max_in_flight(1).wait(Duration::from_secs(60)).reject(RejectWithError);
        let service = layer.layer(service_fn_blocking(|n: u32| TestResult::Ok(n)));
        let held = hold(&pool).await;
        let queued = service.clone().oneshot(1);
        let mut queued = task::spawn(queued);
        assert_pending!(queued.poll());
        let mut waiting = Box::pin(service.clone().oneshot(2));
        let waker = Waker::from(Arc::new(PanickingWaker));
        assert_pending!(waiting.as_mut().poll(&mut Context::from_waker(&waker)));
        drop(queued);
        held.release().await.unwrap();
        drop(waiting);
        survives(&pool, &layer).await;
    }
}
