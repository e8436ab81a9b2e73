use std::{sync::Arc, time::Duration};

use tokio::sync::{Notify, oneshot};
use tokio_test::{assert_pending, task};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer,
    offload::{Typed, cancelled},
    pool::Pool,
};

use crate::support::{Answer, eventually, hold, one_thread, pools, soon};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_shutdown_finishes_what_was_accepted_and_accepts_nothing_more() {
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
        assert!(soon(pool.shutdown(LONG)).await.is_empty(), "a second one has nothing to wait for");
    }
}

#[tokio::test]
async fn wakes_of_parked_calls_run_until_the_deadline() {
    for pool in pools(1, 8) {
        let wake = Arc::new(Notify::new());
        let service = OffloadLayer::new(pool.clone()).reject(Typed).layer(service_fn({
            let wake = wake.clone();
            move |()| {
                let wake = wake.clone();
                async move {
                    wake.notified().await;
                    Answer::Ok("done")
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
async fn after_the_deadline_what_is_left_is_reported_and_answered_closed() {
    for pool in pools(1, 8) {
        let wake = Arc::new(Notify::new());
        let (dropped, drop_thread) = oneshot::channel();
        let dropped = Arc::new(std::sync::Mutex::new(Some(dropped)));
        let service = OffloadLayer::new(pool.clone()).reject(Typed).layer(service_fn({
            let wake = wake.clone();
            move |()| {
                let (wake, guard) = (wake.clone(), OnDrop(dropped.lock().unwrap().take()));
                async move {
                    wake.notified().await;
                    drop(guard);
                    Answer::Ok(())
                }
            }
        }));
        let mut parked = task::spawn(service.oneshot(()));
        assert_pending!(parked.poll());
        eventually(|| pool.admission().stats().started == 1 && pool.admission().stats().active == 0).await;
        let held = hold(&pool).await;
        let queued = pool.run(|| ());

        let left = soon(pool.shutdown(Duration::from_millis(1))).await;
        assert_eq!((left.running, left.queued, left.parked), (1, 1, 1));
        // The one thread is stuck in work that nobody can stop; the queued call is answered all the same.
        assert_eq!(soon(queued).await, Err(CallError::Closed));
        // And so is the parked one at its next wake: dropped on a thread of the pool's, not inside the waker.
        wake.notify_one();
        assert_eq!(soon(parked).await.unwrap_err().downcast_ref(), Some(&CallError::Closed));
        assert_ne!(soon(drop_thread).await.unwrap(), std::thread::current().id());
        held.release().await.unwrap();
        eventually(|| pool.admission().stats().in_flight == 0).await;
    }
}

/// Whoever waits for a place or a slot is told at once, also if the place is never given back.
#[tokio::test]
async fn callers_that_wait_for_room_learn_of_a_shutdown_at_once() {
    for pool in pools(1, 1) {
        let layer = OffloadLayer::new(pool.clone()).reject(Typed).max_in_flight(1);
        let pending = || service_fn(async |()| std::future::pending::<Answer<()>>().await);
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
async fn work_that_runs_past_the_deadline_can_see_that() {
    for pool in pools(1, 8) {
        let (entered, inside) = oneshot::channel();
        let (told, tell) = std::sync::mpsc::channel::<()>();
        let run = pool.run(move || {
            entered.send(cancelled()).unwrap();
            tell.recv().unwrap();
            cancelled()
        });
        assert!(!soon(inside).await.unwrap());
        assert_eq!(soon(pool.shutdown(Duration::ZERO)).await.running, 1);
        told.send(()).unwrap();
        assert_eq!(soon(run).await, Ok(true), "it ended with a value, and its caller gets that");
    }
}

#[tokio::test]
async fn a_pool_whose_last_handle_is_dropped_finishes_its_queue_and_its_threads_end() {
    let pool = one_thread();
    let (gate, threads) = {
        let held = hold(&pool).await;
        let queued = pool.run(|| 3);
        let watch = pool.clone();
        drop(pool);
        let service = OffloadLayer::new(watch.clone());
        drop(watch);
        drop(service); // the last handle, but for those of the calls
        held.release().await.unwrap();
        (soon(queued).await, ())
    };
    assert_eq!((gate, threads), (Ok(3), ()));
}

struct OnDrop(Option<oneshot::Sender<std::thread::ThreadId>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            let _ = sender.send(std::thread::current().id());
        }
    }
}
