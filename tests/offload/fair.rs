//! Calls that share a pool by key.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use futures_util::future::join_all;
use http::{Request, StatusCode, header::RETRY_AFTER};
use tokio::sync::Semaphore;
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer, Priority, ThreadPool,
    offload::{RejectWithError, service_fn_blocking},
    pool::{CallOptions, Pool, QueuePolicy},
};

use crate::support::{TestResult, eventually, hold, one_thread, pools, soon};

const LONG: Duration = Duration::from_secs(60);

/// Group and key of a request.
type Key = (u32, u32);

const GREEDY: u32 = 1;
const QUIET: u32 = 2;

fn of(key: u32) -> CallOptions {
    CallOptions::new().fair_by(key)
}

/// A list of the calls that have started, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u32>>>);

impl Log {
    fn push(&self, key: u32) {
        self.0.lock().unwrap().push(key);
    }

    fn position(&self, key: u32) -> usize {
        self.0.lock().unwrap().iter().position(|started| *started == key).expect("the call has started")
    }
}

fn error(result: Result<u32, Box<dyn std::error::Error + Send + Sync>>) -> CallError {
    *result.unwrap_err().downcast_ref().unwrap()
}

#[tokio::test]
async fn quiet_key_starts_after_at_most_one_call_of_another() {
    for pool in pools(1, 64) {
        let (held, log) = (hold(&pool).await, Log::default());
        let call = |key| {
            let log = log.clone();
            pool.run_with(of(key), move || log.push(key))
        };
        let mut calls: Vec<_> = (0..20).map(|_| call(GREEDY)).collect();
        calls.push(call(QUIET));
        held.release().await.unwrap();
        for call in calls {
            soon(call).await.unwrap();
        }
        assert!(log.position(QUIET) <= 1, "{:?}", log.0);
    }
}

#[tokio::test]
async fn group_of_many_keys_takes_turns_like_one_key() {
    let (pool, log) = (one_thread(), Log::default());
    let service = OffloadLayer::new(pool.clone())
        .reject(RejectWithError)
        .fair_by_group_request(|key: &Key| *key)
        .layer(service_fn_blocking({
            let log = log.clone();
            move |(group, _): Key| {
                log.push(group);
                TestResult::Ok(group)
            }
        }));
    let held = hold(&pool).await;
    let requests = (0..20).map(|key| (GREEDY, key)).chain([(QUIET, 0), (QUIET, 0)]);
    let mut calls: Vec<_> = requests.map(|request| task::spawn(service.clone().oneshot(request))).collect();
    calls.iter_mut().for_each(|call| assert_pending!(call.poll()));
    held.release().await.unwrap();
    for call in calls {
        soon(call).await.unwrap();
    }
    let started = log.0.lock().unwrap();
    assert!(started[..4].iter().filter(|group| **group == QUIET).count() == 2, "{started:?}");
}

/// Also with queue policies, and on pools that have only their admission in common.
#[tokio::test]
async fn greedy_key_leaves_room_in_the_queue_for_others() {
    let fifo = ThreadPool::builder().threads(1).queue_capacity(8).queue_policy(QueuePolicy::Fifo);
    let fifo: Arc<dyn Pool> = Arc::new(fifo.build().unwrap());
    for pool in pools(1, 8).into_iter().chain([fifo]) {
        let held = hold(&pool).await;
        let mut admitted: Vec<_> = (0..4).map(|_| pool.run_with(of(GREEDY), || ())).collect();
        for _ in 0..100 {
            assert_eq!(soon(pool.run_with(of(GREEDY), || ())).await, Err(CallError::KeyLimited));
        }
        admitted.extend((0..2).map(|_| pool.run_with(of(QUIET), || ())));
        admitted.extend((0..2).map(|_| pool.run(|| ())));
        assert_eq!(soon(pool.run_with(of(QUIET + 1), || ())).await, Err(CallError::Overloaded), "the queue is full");
        assert_eq!(pool.admission().stats().rejected, 101);
        held.release().await.unwrap();
        for call in admitted {
            soon(call).await.unwrap();
        }
        soon(pool.run_with(of(GREEDY), || ())).await.unwrap();
        eventually(|| pool.admission().stats().permits_in_use == 0).await;
    }
}

#[tokio::test]
async fn greedy_tenant_gets_429_and_others_are_answered() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(4).build().unwrap();
    let layer = OffloadLayer::new(pool.clone()).fair_by(|head| head.headers().get("x-tenant").cloned());
    let app: Router = Router::new().route("/", get(async || "rows")).layer(layer);
    let request = |tenant: &str| {
        let request = Request::builder().uri("/").header("x-tenant", tenant).body(Body::empty()).unwrap();
        task::spawn(app.clone().oneshot(request))
    };
    let held = hold(&pool).await;
    let mut greedy: Vec<_> = (0..3).map(|_| request("greedy")).collect();
    assert_pending!(greedy[0].poll());
    assert_pending!(greedy[1].poll());
    let rejected = assert_ready!(greedy.remove(2).poll()).unwrap();
    assert_eq!(rejected.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(rejected.headers().contains_key(RETRY_AFTER));
    let mut quiet = request("quiet");
    assert_pending!(quiet.poll());
    held.release().await.unwrap();
    for response in [greedy.remove(0), greedy.remove(0), quiet] {
        assert_eq!(soon(response).await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn calls_that_were_cancelled_use_no_turn_of_their_key() {
    for pool in pools(1, 64) {
        let (held, log) = (hold(&pool).await, Log::default());
        let call = |key| {
            let log = log.clone();
            pool.run_with(of(key), move || log.push(key))
        };
        let cancelled: Vec<_> = (0..15).map(|_| call(QUIET)).collect();
        let greedy: Vec<_> = (0..15).map(|_| call(GREEDY)).collect();
        drop(cancelled);
        let quiet = call(QUIET);
        held.release().await.unwrap();
        soon(quiet).await.unwrap();
        for call in greedy {
            soon(call).await.unwrap();
        }
        assert!(log.position(QUIET) <= 1, "{:?}", log.0);
        eventually(|| pool.admission().stats().permits_in_use == 0).await;
    }
}

#[tokio::test]
async fn low_priority_with_a_key_has_the_smaller_share() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(8).build().unwrap();
    let held = hold(&pool).await;
    let low = |key| pool.run_with(of(key).priority(Priority::Low), || ());
    let calls: Vec<_> = (0..4).map(low).collect();
    assert_eq!(soon(low(9)).await, Err(CallError::Overloaded));
    let normal = pool.run_with(of(9), || ());
    held.release().await.unwrap();
    for call in calls.into_iter().chain([normal]) {
        soon(call).await.unwrap();
    }
}

/// A client that sends another key with each call.
#[tokio::test]
async fn flood_of_new_keys_leaves_nothing_behind() {
    for pool in pools(2, 64) {
        for round in 0..200 {
            let calls: Vec<_> = (0..100).map(|key| pool.run_with(of(round * 100 + key), || ())).collect();
            for call in calls {
                let _ = soon(call).await;
            }
        }
        eventually(|| pool.admission().stats().permits_in_use == 0).await;
        assert_eq!(pool.admission().stats().in_flight, 0);
        soon(pool.run_with(of(QUIET), || ())).await.unwrap();
    }
}

#[tokio::test]
async fn long_key_is_hashed_and_not_kept() {
    let pool = one_thread();
    let key = "k".repeat(1 << 20);
    let of_key = CallOptions::new().fair_by(&*key);
    assert!(size_of_val(&of_key) <= 64);
    drop(key);
    soon(pool.run_with(of_key, || ())).await.unwrap();
}

#[tokio::test]
async fn panic_of_the_key_closure_reaches_the_caller_and_leaks_no_permit() {
    for reserves in [false, true] {
        let pool = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1);
        let layer = if reserves { layer.backpressure() } else { layer };
        let mut service = layer
            .fair_by_request(|n: &u32| 10 / *n)
            .max_in_flight_per_key(1)
            .layer(service_fn_blocking(TestResult::Ok));
        soon(service.ready()).await.unwrap();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| service.call(0))).map(drop).unwrap_err();
        assert_eq!(soon(async { service.ready().await?.call(1).await }).await.unwrap(), 1);
        eventually(|| pool.admission().stats().permits_in_use == 0).await;
    }
}

/// Returns a service whose calls wait until the semaphore has a permit for each.
fn gated(
    layer: OffloadLayer,
) -> (impl Service<u32, Response = u32, Error = tower::BoxError, Future: Send> + Clone + Send, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let inner = service_fn({
        let gate = gate.clone();
        move |key: u32| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                TestResult::Ok(key)
            }
        }
    });
    (layer.reject(RejectWithError).fair_by_request(|key: &u32| *key).layer(inner), gate)
}

#[tokio::test]
async fn key_at_its_limit_is_rejected_until_a_call_of_it_ends() {
    let pool = one_thread();
    let (service, gate) = gated(OffloadLayer::new(pool.clone()).max_in_flight_per_key(2));
    let mut calls: Vec<_> =
        [GREEDY, GREEDY, QUIET].map(|key| task::spawn(service.clone().oneshot(key))).into_iter().collect();
    calls.iter_mut().for_each(|call| assert_pending!(call.poll()));
    assert_eq!(error(soon(service.clone().oneshot(GREEDY)).await), CallError::KeyLimited);
    assert_eq!(pool.admission().stats().rejected, 1);
    // The caller leaves, but its work is dropped on the pool later.
    drop(calls.remove(0));
    eventually(|| pool.admission().stats().in_flight == 2).await;
    calls.push(task::spawn(service.clone().oneshot(GREEDY)));
    assert_pending!(calls[2].poll());
    gate.add_permits(3);
    for call in calls {
        soon(call).await.unwrap();
    }
}

#[tokio::test]
async fn key_at_its_limit_waits_and_counts_as_queued() {
    let pool = one_thread();
    let (service, gate) = gated(OffloadLayer::new(pool.clone()).max_in_flight_per_key(1).wait(LONG));
    let mut calls: Vec<_> = [GREEDY, GREEDY, GREEDY, QUIET].map(|key| task::spawn(service.clone().oneshot(key))).into();
    calls.iter_mut().for_each(|call| assert_pending!(call.poll()));
    let stats = pool.admission().stats();
    assert_eq!((stats.waiting, stats.in_flight), (2, 2), "one of each key is in flight");
    assert!(stats.queued >= 2);
    gate.add_permits(2);
    assert_eq!(soon(calls.remove(3)).await.unwrap(), QUIET);
    assert_eq!(soon(calls.remove(0)).await.unwrap(), GREEDY);
    gate.add_permits(2);
    for call in calls {
        soon(call).await.unwrap();
    }
}

#[tokio::test]
async fn wait_for_a_key_at_its_limit_ends_with_its_own_reason() {
    let (service, gate) =
        gated(OffloadLayer::new(one_thread()).max_in_flight_per_key(1).wait(Duration::from_millis(20)));
    let mut first = task::spawn(service.clone().oneshot(GREEDY));
    assert_pending!(first.poll());
    assert_eq!(error(soon(service.clone().oneshot(GREEDY)).await), CallError::KeyLimited);
    gate.add_permits(1);
    soon(first).await.unwrap();
}

#[tokio::test]
async fn wait_for_the_queue_ends_with_the_reason_that_applies() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(4).build().unwrap();
    let (service, gate) = gated(OffloadLayer::new(pool.clone()).wait(Duration::from_millis(20)));
    gate.add_permits(8);
    let held = hold(&pool).await;
    let start = |key| {
        let mut call = task::spawn(service.clone().oneshot(key));
        assert_pending!(call.poll());
        call
    };
    let mut calls = vec![start(GREEDY), start(GREEDY)];
    assert_eq!(error(soon(service.clone().oneshot(GREEDY)).await), CallError::KeyLimited, "others have room");
    calls.extend([start(QUIET), start(QUIET + 1)]);
    assert_eq!(error(soon(service.clone().oneshot(GREEDY)).await), CallError::Overloaded, "the queue is full");
    held.release().await.unwrap();
    for call in calls {
        soon(call).await.unwrap();
    }
}

#[tokio::test]
async fn call_with_reserved_capacity_is_rejected_at_the_limit_of_its_key() {
    let (service, gate) =
        gated(OffloadLayer::new(one_thread()).max_in_flight_per_key(1).max_in_flight(8).backpressure());
    let [mut first, mut second, mut other] = [(); 3].map(|()| service.clone());
    for service in [&mut first, &mut second, &mut other] {
        soon(service.ready()).await.unwrap();
    }
    let mut first = task::spawn(first.call(GREEDY));
    assert_pending!(first.poll());
    assert_eq!(error(soon(second.call(GREEDY)).await), CallError::KeyLimited);
    let mut other = task::spawn(other.call(QUIET));
    assert_pending!(other.poll());
    gate.add_permits(2);
    soon(first).await.unwrap();
    soon(other).await.unwrap();
}

#[tokio::test]
async fn keys_that_wait_for_the_layer_take_turns() {
    let pool = one_thread();
    let (service, gate) = gated(OffloadLayer::new(pool.clone()).max_in_flight(1).wait(LONG));
    let greedy: Vec<_> = (0..20).map(|_| tokio::spawn(service.clone().oneshot(GREEDY))).collect();
    eventually(|| pool.admission().stats().waiting == 19).await;
    let quiet = tokio::spawn(service.clone().oneshot(QUIET));
    eventually(|| pool.admission().stats().waiting == 20).await;
    gate.add_permits(3);
    assert_eq!(soon(quiet).await.unwrap().unwrap(), QUIET);
    gate.add_permits(18);
    for call in greedy {
        soon(call).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn keys_that_wait_for_the_queue_take_turns() {
    for pool in pools(1, 1) {
        let log = Log::default();
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).wait(LONG);
        let service = layer.fair_by_request(|key: &u32| *key).layer(service_fn_blocking({
            let log = log.clone();
            move |key| {
                log.push(key);
                TestResult::Ok(key)
            }
        }));
        let held = hold(&pool).await;
        let keys = std::iter::repeat_n(GREEDY, 20).chain([QUIET]);
        let calls: Vec<_> = keys.map(|key| tokio::spawn(service.clone().oneshot(key))).collect();
        eventually(|| pool.admission().stats().waiting == 20).await;
        held.release().await.unwrap();
        for call in calls {
            soon(call).await.unwrap().unwrap();
        }
        assert!(log.position(QUIET) <= 3, "{:?}", log.0);
    }
}

#[tokio::test]
async fn greedy_key_leaves_room_to_wait_for_others() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
    let (service, gate) = gated(OffloadLayer::new(pool.clone()).max_in_flight(1).wait(LONG).max_waiting(4));
    let mut calls: Vec<_> = (0..3).map(|_| task::spawn(service.clone().oneshot(GREEDY))).collect();
    calls.iter_mut().for_each(|call| assert_pending!(call.poll()));
    assert_eq!(error(soon(service.clone().oneshot(GREEDY)).await), CallError::KeyLimited);
    calls.push(task::spawn(service.clone().oneshot(QUIET)));
    assert_pending!(calls[3].poll());
    gate.add_permits(4);
    for response in soon(join_all(calls)).await {
        response.unwrap();
    }
}

#[tokio::test]
async fn key_that_waits_leaves_room_in_the_queue_for_others() {
    for pool in pools(1, 8) {
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).wait(LONG);
        let service = layer.fair_by_request(|key: &u32| *key).layer(service_fn_blocking(TestResult::Ok));
        let held = hold(&pool).await;
        let greedy: Vec<_> = (0..20).map(|_| tokio::spawn(service.clone().oneshot(GREEDY))).collect();
        eventually(|| pool.admission().stats().waiting == 16).await;
        let quiet = [pool.run_with(of(QUIET), || ()), pool.run(|| ())];
        assert_eq!(pool.admission().stats().permits_in_use, 6);
        held.release().await.unwrap();
        for call in quiet {
            soon(call).await.unwrap();
        }
        for call in greedy {
            soon(call).await.unwrap().unwrap();
        }
        eventually(|| pool.admission().stats().permits_in_use == 0).await;
    }
}
