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
    offload::{RejectWithError, service_fn_blocking},
    pool::{self, Pool},
};

use crate::support::{OnDrop, TestResult, eventually, hold, one_thread, pools, soon};

#[tokio::test]
async fn call_cancelled_in_the_queue_never_runs() {
    for pool in pools(1, 8) {
        let calls = Arc::new(AtomicUsize::new(0));
        let service = OffloadLayer::new(pool.clone()).reject(RejectWithError).layer(service_fn_blocking({
            let calls = calls.clone();
            move |()| TestResult::Ok(calls.fetch_add(1, SeqCst))
        }));
        let held = hold(&pool).await;
        let mut queued = task::spawn(service.clone().oneshot(()));
        assert_pending!(queued.poll());
        drop(queued);
        held.release().await.unwrap();
        assert_eq!(soon(service.oneshot(())).await.unwrap(), 0, "the abandoned call ran");
        assert_eq!(pool.admission().stats().abandoned, 1);
        eventually(|| pool.admission().stats().in_flight == 0).await;
    }
}

/// The request's memory, its connection and the permit of the layer are released without a thread
/// of the pool. The permit of the queue is not, because the entry stays in the queue and
/// `queue_capacity` limits entries.
#[tokio::test]
async fn unstarted_call_is_dropped_by_its_caller_at_once() {
    for pool in pools(1, 1) {
        let (sender, dropped) = oneshot::channel();
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1);
        let service = layer.layer(service_fn_blocking(|_: OnDrop| TestResult::Ok(())));
        let held = hold(&pool).await;
        let mut queued = task::spawn(service.clone().oneshot(OnDrop(Some(sender))));
        assert_pending!(queued.poll());
        drop(queued);
        assert_eq!(dropped.await.unwrap(), std::thread::current().id());
        let stats = pool.admission().stats();
        assert_eq!(
            (stats.in_flight, stats.queued, stats.permits_in_use),
            (1, 0, 1),
            "only the call that holds the thread"
        );
        assert_eq!(soon(pool.run(|| ())).await, Err(CallError::Overloaded));
        held.release().await.unwrap();
        eventually(|| pool.admission().stats().permits_in_use == 0).await;
        soon(service.oneshot(OnDrop(None))).await.unwrap();
    }
}

#[tokio::test]
async fn cancelled_call_keeps_its_permit_until_the_work_ends() {
    for pool in pools(2, 8) {
        let (entered, inside) = oneshot::channel();
        let entered = std::sync::Mutex::new(Some(entered));
        let (resume, continued) = mpsc::channel::<()>();
        let (seen, saw) = oneshot::channel();
        let state = Arc::new(std::sync::Mutex::new(Some((continued, seen))));
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1);
        let service = layer.layer(service_fn_blocking({
            let entered = Arc::new(entered);
            move |()| {
                if let Some(entered) = entered.lock().unwrap().take() {
                    let (continued, seen) = state.lock().unwrap().take().unwrap();
                    let token = pool::cancellation_token();
                    let before = (pool::cancelled(), token.is_cancelled());
                    entered.send(()).unwrap();
                    continued.recv().unwrap();
                    let elsewhere = std::thread::scope(|scope| scope.spawn(|| token.is_cancelled()).join().unwrap());
                    let _ = seen.send((before, pool::cancelled(), token.is_cancelled(), elsewhere));
                    continued.recv().unwrap();
                }
                TestResult::Ok(())
            }
        }));
        let mut call = task::spawn(service.clone().oneshot(()));
        assert_pending!(call.poll());
        soon(inside).await.unwrap();
        drop(call);
        resume.send(()).unwrap();
        assert_eq!(soon(saw).await.unwrap(), ((false, false), true, true, true));

        // The work is still running, so its permit is not available.
        let rejected = assert_ready_err!(task::spawn(service.clone().oneshot(())).poll());
        assert_eq!(rejected.downcast_ref(), Some(&CallError::Overloaded));
        resume.send(()).unwrap();
        eventually(|| pool.admission().stats().in_flight == 0).await;
        soon(service.oneshot(())).await.unwrap();
    }
}

#[tokio::test]
async fn outside_of_offloaded_work_nothing_is_cancelled() {
    assert!(!pool::cancelled());
    assert!(!pool::cancellation_token().is_cancelled());
}

#[tokio::test]
async fn cancelled_work_that_awaits_is_dropped_on_the_pool() {
    for pool in pools(1, 8) {
        let (sender, dropped) = oneshot::channel();
        let sender = Arc::new(std::sync::Mutex::new(Some(sender)));
        let service = OffloadLayer::new(pool.clone()).reject(RejectWithError).layer(service_fn(move |()| {
            let guard = OnDrop(sender.lock().unwrap().take());
            async move {
                std::future::pending::<()>().await;
                drop(guard);
                TestResult::Ok(())
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
async fn detached_work_continues_without_its_caller() {
    for pool in pools(1, 8) {
        let (go, gone) = oneshot::channel::<()>();
        let (ended, end) = oneshot::channel();
        let channels = Arc::new(std::sync::Mutex::new(Some((gone, ended))));
        let service = OffloadLayer::new(pool.clone()).reject(RejectWithError).detached().layer(service_fn(move |()| {
            let (gone, ended) = channels.lock().unwrap().take().unwrap();
            async move {
                gone.await.unwrap();
                ended.send(pool::cancelled()).unwrap();
                TestResult::Ok(())
            }
        }));
        let held = hold(&pool).await;
        let mut call = task::spawn(service.oneshot(()));
        assert_pending!(call.poll());
        drop(call); // while it is queued; a detached call starts anyway
        held.release().await.unwrap();
        go.send(()).unwrap();
        assert!(!soon(end).await.unwrap(), "a detached call is not cancelled");
        eventually(|| pool.admission().stats().in_flight == 0).await;
        let stats = pool.admission().stats();
        assert_eq!((stats.abandoned, stats.panicked), (1, 0));
    }
}

/// The drop of the last waker ends the call; otherwise it would be counted as in flight forever.
#[tokio::test]
async fn detached_call_without_a_waker_is_dropped() {
    let pool = one_thread();
    let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).detached();
    let service = layer.layer(service_fn(async |()| std::future::pending::<TestResult<()>>().await));
    let mut call = task::spawn(service.oneshot(()));
    assert_pending!(call.poll());
    drop(call);
    eventually(|| pool.admission().stats().in_flight == 0).await;
}
