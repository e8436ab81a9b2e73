//! What a pool does with calls that wait too long, and what it tells those that it refuses.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, ThreadId},
    time::Duration,
};

use http::{Request, Response, StatusCode};
use tokio::sync::Notify;
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer, ThreadPool,
    offload::{Reject, Typed, sync_fn},
    pool::{Codel, Pool, QueuePolicy},
};

use crate::support::{Answer, eventually, hold, hold_at_last, one_thread, pools, shedding_pools, soon, too_long};

/// Where it was dropped.
struct Traced(Arc<Mutex<Option<ThreadId>>>);

impl Drop for Traced {
    fn drop(&mut self) {
        *self.0.lock().unwrap() = Some(thread::current().id());
    }
}

/// E2, policy "shed".
#[tokio::test]
async fn e2_a_call_that_waited_too_long_is_shed_and_leaves_nothing_behind() {
    for pool in shedding_pools(8) {
        let held = hold_at_last(&pool).await;
        let before = pool.admission().stats();
        let (ran, dropped) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let calls: Vec<_> = (0..7)
            .map(|_| {
                let (ran, traced) = (ran.clone(), Traced(dropped.clone()));
                pool.run(move || {
                    let _traced = traced;
                    ran.store(true, SeqCst);
                })
            })
            .collect();
        let newest = pool.run(|| ());
        too_long().await;
        held.release().await.unwrap();
        for call in calls {
            assert_eq!(soon(call).await, Err(CallError::Expired));
        }
        assert_eq!(soon(newest).await, Ok(()), "the newest is not shed, however long it waited");
        assert!(!ran.load(SeqCst));
        let dropped = dropped.lock().unwrap().expect("the work is dropped before its caller is told");
        assert_ne!(dropped, thread::current().id(), "on the pool");
        let stats = pool.admission().stats();
        assert_eq!((stats.queued, stats.permits_in_use, stats.in_flight), (0, 0, 0), "{stats:?}");
        assert_eq!((stats.rejected, stats.started), (before.rejected + 7, before.started + 1));
    }
}

#[tokio::test]
async fn a_layer_answers_a_call_that_was_shed_and_its_place_is_free_again() {
    for pool in shedding_pools(8) {
        let layer = OffloadLayer::new(pool.clone()).max_in_flight(1);
        let mut service = layer.layer(service_fn(async |_: Request<()>| Answer::Ok(Response::new(()))));
        let held = hold_at_last(&pool).await;
        let call = service.ready().await.unwrap().call(Request::new(()));
        let newest = pool.run(|| ());
        too_long().await;
        held.release().await.unwrap();
        soon(newest).await.unwrap();
        let answer = soon(call).await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
        // And the place is free; a slow machine may have more calls shed than this test means.
        while !soon(service.ready().await.unwrap().call(Request::new(()))).await.unwrap().status().is_success() {}
    }
}

#[tokio::test]
async fn a_caller_is_told_by_type_that_its_call_was_shed() {
    for pool in shedding_pools(8) {
        let service = OffloadLayer::new(pool.clone()).reject(Typed).layer(sync_fn(|()| Answer::Ok(())));
        let held = hold_at_last(&pool).await;
        let call = tokio::spawn(service.oneshot(()));
        eventually(|| pool.admission().stats().queued == 1).await;
        let _newest = pool.run(|| ());
        too_long().await;
        held.release().await.unwrap();
        let error = soon(call).await.unwrap().unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&CallError::Expired));
    }
}

/// E2, policy "shed": only calls that have not started.
#[tokio::test]
async fn e2_a_call_that_has_started_is_never_shed_however_long_it_is_parked_and_waits() {
    for pool in shedding_pools(8) {
        let wake = Arc::new(Notify::new());
        let service = OffloadLayer::new(pool.clone()).reject(Typed).layer(service_fn({
            let wake = wake.clone();
            move |()| {
                let wake = wake.clone();
                async move {
                    wake.notified().await;
                    Answer::Ok("carried out")
                }
            }
        }));
        let parked = loop {
            let parked = tokio::spawn(service.clone().oneshot(()));
            let stats = || pool.admission().stats();
            eventually(|| parked.is_finished() || (stats().started, stats().active) == (1, 0)).await;
            if !parked.is_finished() {
                break parked; // on a slow machine it may be shed before it starts
            }
        };
        too_long().await;
        let held = hold_at_last(&pool).await;
        wake.notify_one();
        eventually(|| pool.admission().stats().woken == 1).await;
        let new = pool.run(|| ());
        let _newest = pool.run(|| ());
        too_long().await;
        held.release().await.unwrap();
        assert_eq!(soon(parked).await.unwrap().unwrap(), "carried out");
        assert_eq!(soon(new).await, Err(CallError::Expired));
    }
}

#[tokio::test]
async fn first_in_first_out_starts_every_call_however_long_it_waited() {
    for pool in pools(1, 8) {
        let held = hold(&pool).await;
        let call = pool.run(|| 1);
        too_long().await;
        held.release().await.unwrap();
        assert_eq!(soon(call).await, Ok(1));
    }
}

/// Hands on what a strategy is told.
#[derive(Clone)]
struct RetryAfter;

impl<E> Reject<(), Duration, E> for RetryAfter {
    type Error = E;
    type Hint = ();

    fn hint(&self, (): &()) {}

    fn map_err(&self, error: E) -> E {
        error
    }

    fn reject(&self, (): (), _: CallError, retry_after: Duration) -> Result<Duration, E> {
        Ok(retry_after)
    }
}

/// What the last one waited that started is no news where nothing starts any more.
#[tokio::test]
async fn a_stuck_pool_tells_how_long_its_oldest_call_has_waited() {
    for pool in pools(1, 1) {
        let service =
            OffloadLayer::new(pool.clone()).reject(RetryAfter).layer(sync_fn(|()| Answer::Ok(Duration::ZERO)));
        let held = hold(&pool).await;
        let queued = pool.run(|| ());
        let started = tokio::time::Instant::now(); // not before it began to wait
        let waited = Duration::from_millis(20) + pool.admission().expected_wait(); // longer than the first one did
        while started.elapsed() < waited {
            tokio::task::yield_now().await; // what is measured here has to take some time
        }
        assert!(pool.expected_wait() >= Duration::from_millis(20));
        assert!(pool.admission().expected_wait() < waited, "the gate knows only what has started");
        let told = soon(service.oneshot(())).await.unwrap();
        assert!(told >= Duration::from_millis(20), "{told:?}");
        assert!(told < started.elapsed() + waited, "{told:?}");
        held.release().await.unwrap();
        soon(queued).await.unwrap();
        assert!(pool.expected_wait() >= Duration::from_millis(20), "what the last one waited");
        soon(pool.run(|| ())).await.unwrap();
    }
}

#[test]
fn a_policy_that_cannot_work_is_refused_by_name() {
    let build = |codel: Codel| {
        let error = ThreadPool::builder().threads(1).queue_policy(codel).build().unwrap_err();
        assert!(error.is_configuration());
        error.to_string()
    };
    let (short, long) = (Duration::from_millis(1), Duration::from_millis(2));
    assert!(build(Codel::new(Duration::ZERO, long)).contains("target of zero"));
    let message = build(Codel::new(long, short));
    assert!(message.contains("interval of 1ms") && message.contains("target of 2ms"), "{message}");
    assert!(ThreadPool::builder().threads(1).queue_policy(QueuePolicy::Fifo).build().is_ok());
    assert!(ThreadPool::builder().threads(1).queue_policy(Codel::default()).build().is_ok());
}

#[tokio::test]
async fn a_pool_that_is_shut_down_answers_closed_what_a_policy_would_shed_later() {
    let pool = one_thread();
    let held = hold(&pool).await;
    let queued = pool.run(|| ());
    soon(pool.shutdown(Duration::ZERO)).await;
    assert_eq!(soon(queued).await, Err(CallError::Closed));
    held.release().await.unwrap();
}
