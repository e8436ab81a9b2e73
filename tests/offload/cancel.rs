use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
    mpsc,
};

use tokio::sync::oneshot;
use tokio_test::{assert_pending, assert_ready_err, task};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer,
    offload::{self, Typed, sync_fn},
    pool::Pool,
};

use crate::support::{Answer, eventually, hold, one_thread, pools, soon};

#[tokio::test]
async fn e8_p5_a_call_whose_caller_left_in_the_queue_never_runs() {
    for pool in pools(1, 8) {
        let calls = Arc::new(AtomicUsize::new(0));
        let service = OffloadLayer::new(pool.clone()).reject(Typed).layer(sync_fn({
            let calls = calls.clone();
            move |()| Answer::Ok(calls.fetch_add(1, SeqCst))
        }));
        let held = hold(&pool).await;
        let mut queued = task::spawn(service.clone().oneshot(()));
        assert_pending!(queued.poll());
        drop(queued);
        held.release().await.unwrap();
        assert_eq!(soon(service.oneshot(())).await.unwrap(), 0, "the abandoned one was called");
        assert_eq!(pool.admission().stats().abandoned, 1);
        eventually(|| pool.admission().stats().in_flight == 0).await;
    }
}

/// As without the layer: what never started is still the caller's, and dropped with the caller. So a request's memory and
/// its connection are free at once (P18), not when a thread comes to it, and so is its place. The slot is not: the entry
/// is still in the queue, and entries are what the capacity bounds.
#[tokio::test]
async fn e8_a_call_that_never_started_is_dropped_at_once_where_its_caller_leaves() {
    for pool in pools(1, 1) {
        let (sender, dropped) = oneshot::channel();
        let layer = OffloadLayer::new(pool.clone()).reject(Typed).max_in_flight(1);
        let service = layer.layer(sync_fn(|_: OnDrop| Answer::Ok(())));
        let held = hold(&pool).await;
        let mut queued = task::spawn(service.clone().oneshot(OnDrop(Some(sender))));
        assert_pending!(queued.poll());
        drop(queued);
        assert_eq!(dropped.await.unwrap(), std::thread::current().id());
        let stats = pool.admission().stats();
        assert_eq!((stats.in_flight, stats.queued, stats.permits_in_use), (1, 0, 1), "the held one is in flight");
        assert_eq!(soon(pool.run(|| ())).await, Err(CallError::Overloaded));
        held.release().await.unwrap();
        eventually(|| pool.admission().stats().permits_in_use == 0).await;
        soon(service.oneshot(OnDrop(None))).await.unwrap();
    }
}

/// E9, P4: asked for by the work itself, and the place stays taken until the work has really ended.
#[tokio::test]
async fn e9_p4_running_work_sees_that_its_caller_left_and_keeps_its_place_until_it_ends() {
    for pool in pools(2, 8) {
        let (entered, inside) = oneshot::channel();
        let entered = std::sync::Mutex::new(Some(entered));
        let (left, was_told) = mpsc::channel::<()>();
        let (seen, saw) = oneshot::channel();
        let state = Arc::new(std::sync::Mutex::new(Some((was_told, seen))));
        let layer = OffloadLayer::new(pool.clone()).reject(Typed).max_in_flight(1);
        let service = layer.layer(sync_fn({
            let entered = Arc::new(entered);
            move |()| {
                if let Some(entered) = entered.lock().unwrap().take() {
                    let (was_told, seen) = state.lock().unwrap().take().unwrap();
                    let token = offload::cancellation_token();
                    let before = (offload::cancelled(), token.is_cancelled());
                    entered.send(()).unwrap();
                    was_told.recv().unwrap();
                    let elsewhere = std::thread::scope(|scope| scope.spawn(|| token.is_cancelled()).join().unwrap());
                    let _ = seen.send((before, offload::cancelled(), token.is_cancelled(), elsewhere));
                    was_told.recv().unwrap();
                }
                Answer::Ok(())
            }
        }));
        let mut call = task::spawn(service.clone().oneshot(()));
        assert_pending!(call.poll());
        soon(inside).await.unwrap();
        drop(call);
        left.send(()).unwrap();
        assert_eq!(soon(saw).await.unwrap(), ((false, false), true, true, true));

        // It is still busy: nobody else gets the place.
        let refused = assert_ready_err!(task::spawn(service.clone().oneshot(())).poll());
        assert_eq!(refused.downcast_ref(), Some(&CallError::Overloaded));
        left.send(()).unwrap();
        eventually(|| pool.admission().stats().in_flight == 0).await;
        soon(service.oneshot(())).await.unwrap();
    }
}

#[tokio::test]
async fn outside_offloaded_work_nothing_is_cancelled() {
    assert!(!offload::cancelled());
    assert!(!offload::cancellation_token().is_cancelled());
}

#[tokio::test]
async fn e10_by_default_work_that_awaits_is_dropped_on_the_pool_when_its_caller_leaves() {
    for pool in pools(1, 8) {
        let (sender, dropped) = oneshot::channel();
        let sender = Arc::new(std::sync::Mutex::new(Some(sender)));
        let service = OffloadLayer::new(pool.clone()).reject(Typed).layer(service_fn(move |()| {
            let guard = OnDrop(sender.lock().unwrap().take());
            async move {
                std::future::pending::<()>().await;
                drop(guard);
                Answer::Ok(())
            }
        }));
        let here = std::thread::current().id();
        let mut call = task::spawn(service.oneshot(()));
        assert_pending!(call.poll());
        eventually(|| pool.admission().stats().started == 1 && pool.admission().stats().active == 0).await;
        drop(call);
        assert_ne!(soon(dropped).await.unwrap(), here);
    }
}

#[tokio::test]
async fn e10_p8_detached_work_goes_on_when_its_caller_leaves() {
    for pool in pools(1, 8) {
        let (go, gone) = oneshot::channel::<()>();
        let (ended, end) = oneshot::channel();
        let channels = Arc::new(std::sync::Mutex::new(Some((gone, ended))));
        let service = OffloadLayer::new(pool.clone()).reject(Typed).detached().layer(service_fn(move |()| {
            let (gone, ended) = channels.lock().unwrap().take().unwrap();
            async move {
                gone.await.unwrap();
                ended.send(offload::cancelled()).unwrap();
                Answer::Ok(())
            }
        }));
        let held = hold(&pool).await;
        let mut call = task::spawn(service.oneshot(()));
        assert_pending!(call.poll());
        drop(call); // while it is queued: a detached call starts all the same
        held.release().await.unwrap();
        go.send(()).unwrap();
        assert!(!soon(end).await.unwrap(), "a detached call is not cancelled");
        eventually(|| pool.admission().stats().in_flight == 0).await;
        let stats = pool.admission().stats();
        assert_eq!((stats.abandoned, stats.panicked), (1, 0));
    }
}

/// Nothing is left that could wake it: the last waker's drop ends the call, and it is not counted as in flight for ever.
#[tokio::test]
async fn a_detached_call_that_nothing_can_wake_is_dropped() {
    let pool = one_thread();
    let layer = OffloadLayer::new(pool.clone()).reject(Typed).detached();
    let service = layer.layer(service_fn(async |()| std::future::pending::<Answer<()>>().await));
    let mut call = task::spawn(service.oneshot(()));
    assert_pending!(call.poll());
    drop(call);
    eventually(|| pool.admission().stats().in_flight == 0).await;
}

struct OnDrop(Option<oneshot::Sender<std::thread::ThreadId>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            let _ = sender.send(std::thread::current().id());
        }
    }
}
