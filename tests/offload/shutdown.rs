use std::{sync::Arc, time::Duration};

use tokio::sync::{Notify, oneshot};
use tokio_test::{assert_pending, task};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer, cancelled,
    offload::RejectWithError,
    pool::{Pool, Rayon, TokioBlocking},
};

use crate::support::{OnDrop, TestResult, eventually, hold, one_thread, pools, soon};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn shutdown_finishes_accepted_calls_and_rejects_new_ones() {
    for pool in pools(1, 8) {
        let held = hold(&pool).await;
        let queued = pool.run(|| 5);
        let mut shutdown = task::spawn(pool.shutdown(LONG));
        assert_pending!(shutdown.poll());
        assert_eq!(soon(pool.run(|| 6)).await, Err(CallError::Closed));
        held.release().await.unwrap();
        assert_eq!(soon(queued).await, Ok(5));
        assert!(soon(shutdown).await.is_empty());
        assert_eq!(soon(pool.run(|| 7)).await, Err(CallError::Closed));
        assert!(soon(pool.shutdown(LONG)).await.is_empty(), "a second shutdown has nothing to wait for");
    }
}

#[tokio::test]
async fn parked_calls_can_wake_until_the_timeout() {
    for pool in pools(1, 8) {
        let wake = Arc::new(Notify::new());
        let service = OffloadLayer::new(pool.clone()).reject(RejectWithError).layer(service_fn({
            let wake = wake.clone();
            move |()| {
                let wake = wake.clone();
                async move {
                    wake.notified().await;
                    TestResult::Ok("done")
                }
            }
        }));
        let mut call = task::spawn(service.oneshot(()));
        assert_pending!(call.poll());
        eventually(|| pool.admission().stats().started == 1 && pool.admission().stats().active == 0).await;
        let mut shutdown = task::spawn(pool.shutdown(LONG));
        assert_pending!(shutdown.poll());
        wake.notify_one();
        assert_eq!(soon(call).await.unwrap(), "done");
        assert!(soon(shutdown).await.is_empty());
    }
}

#[tokio::test]
async fn calls_left_after_the_timeout_are_reported_and_closed() {
    for pool in pools(1, 8) {
        let wake = Arc::new(Notify::new());
        let (dropped, drop_thread) = oneshot::channel();
        let dropped = Arc::new(std::sync::Mutex::new(Some(dropped)));
        let service = OffloadLayer::new(pool.clone()).reject(RejectWithError).layer(service_fn({
            let wake = wake.clone();
            move |()| {
                let (wake, guard) = (wake.clone(), OnDrop(dropped.lock().unwrap().take()));
                async move {
                    wake.notified().await;
                    drop(guard);
                    TestResult::Ok(())
                }
            }
        }));
        let mut parked = task::spawn(service.oneshot(()));
        assert_pending!(parked.poll());
        eventually(|| pool.admission().stats().started == 1 && pool.admission().stats().active == 0).await;
        let held = hold(&pool).await;
        let queued = pool.run(|| ());

        let report = soon(pool.shutdown(Duration::from_millis(1))).await;
        assert_eq!((report.running, report.queued, report.parked), (1, 1, 1));
        // The only thread is blocked, but the queued call is answered.
        assert_eq!(soon(queued).await, Err(CallError::Closed));
        // The parked call is answered at its next wake, and dropped on a thread of the pool, not
        // inside the waker.
        wake.notify_one();
        assert_eq!(soon(parked).await.unwrap_err().downcast_ref(), Some(&CallError::Closed));
        assert_ne!(soon(drop_thread).await.unwrap(), std::thread::current().id());
        held.release().await.unwrap();
        eventually(|| pool.admission().stats().in_flight == 0).await;
    }
}

/// The waiting callers are not kept waiting for permits, which may never be released.
#[tokio::test]
async fn waiting_callers_are_closed_at_once() {
    for pool in pools(1, 1) {
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1);
        let pending = || service_fn(async |()| std::future::pending::<TestResult<()>>().await);
        let waits = layer.clone().wait(LONG).layer(pending());
        let presses = layer.backpressure().layer(pending());
        let mut first = task::spawn(waits.clone().oneshot(()));
        let mut second = task::spawn(presses.clone().oneshot(()));
        assert_pending!(first.poll());
        assert_pending!(second.poll());
        let mut waiting = [task::spawn(waits.oneshot(())), task::spawn(presses.oneshot(()))];
        waiting.iter_mut().for_each(|call| assert_pending!(call.poll()));
        pool.admission().close();
        for call in waiting {
            assert!(call.is_woken());
            assert_eq!(soon(call).await.unwrap_err().downcast_ref(), Some(&CallError::Closed));
        }
    }
}

#[tokio::test]
async fn work_that_outlives_the_timeout_is_cancelled() {
    for pool in pools(1, 8) {
        let (entered, inside) = oneshot::channel();
        let (resume, resumed) = std::sync::mpsc::channel::<()>();
        let run = pool.run(move || {
            entered.send(cancelled()).unwrap();
            resumed.recv().unwrap();
            cancelled()
        });
        assert!(!soon(inside).await.unwrap());
        assert_eq!(soon(pool.shutdown(Duration::ZERO)).await.running, 1);
        resume.send(()).unwrap();
        assert_eq!(soon(run).await, Ok(true), "the caller receives the value");
    }
}

#[tokio::test]
async fn pool_without_handles_finishes_its_queue() {
    let pool = one_thread();
    let (gate, threads) = {
        let held = hold(&pool).await;
        let queued = pool.run(|| 3);
        let watch = pool.clone();
        drop(pool);
        let service = OffloadLayer::new(watch.clone());
        drop(watch);
        drop(service); // the last handle; only the calls refer to the pool
        held.release().await.unwrap();
        (soon(queued).await, ())
    };
    assert_eq!((gate, threads), (Ok(3), ()));
}

/// The executor of a pool may be busy with work of others, so that the worker that was asked for
/// never gets a thread.
#[test]
fn queued_calls_are_closed_although_the_executor_is_stuck() {
    let runtime = tokio::runtime::Builder::new_multi_thread().max_blocking_threads(1).enable_all().build().unwrap();
    let threads = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (release_rayon, released_rayon) = std::sync::mpsc::channel::<()>();
    runtime.spawn_blocking(move || released.recv());
    threads.spawn(move || {
        let _ = released_rayon.recv();
    });
    runtime.block_on(async {
        let pools: [Arc<dyn Pool>; 2] = [Arc::new(Rayon::new(threads.clone())), Arc::new(TokioBlocking::new(1))];
        for pool in pools {
            let queued = [pool.run(|| 5), pool.run(|| 6)];
            assert_eq!(pool.shutdown(Duration::from_millis(10)).await.queued, 2);
            for queued in queued {
                assert_eq!(soon(queued).await, Err(CallError::Closed), "{pool:?}");
            }
        }
    });
    drop((release, release_rayon));
}
