use std::task::Poll;

use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer, ThreadPool,
    offload::RejectWithError,
    pool::{Inline, Pool},
};
use tower_test::{assert_request_eq, mock};

use crate::support::{TestResult, hold, one_thread, soon};

#[tokio::test]
async fn readiness_is_that_of_the_inner_service() {
    let layer = OffloadLayer::new(Inline::new()).reject(RejectWithError);
    let (mut service, mut handle) = mock::spawn_layer::<&str, &str, _>(layer);
    handle.allow(0);
    assert_pending!(service.poll_ready());
    handle.allow(1);
    assert!(service.is_woken());
    assert_ready_ok!(service.poll_ready());

    let mut response = task::spawn(service.call("hello"));
    assert_request_eq!(handle, "hello").send_response("world");
    assert_eq!(assert_ready_ok!(response.poll()), "world");
}

#[tokio::test]
async fn error_of_inner_readiness_is_returned() {
    let layer = OffloadLayer::new(Inline::new()).reject(RejectWithError);
    let (mut service, mut handle) = mock::spawn_layer::<(), (), _>(layer);
    handle.send_error("broken");
    assert_eq!(assert_ready_err!(service.poll_ready()).to_string(), "broken");
}

/// Tower's contract: only the instance that was polled ready may be called.
#[tokio::test]
async fn readied_instance_is_the_one_called() {
    /// A service whose clones are not ready.
    struct Probe {
        ready: bool,
    }
    impl Clone for Probe {
        fn clone(&self) -> Self {
            Self { ready: false }
        }
    }
    impl Service<()> for Probe {
        type Response = ();
        type Error = std::convert::Infallible;
        type Future = std::future::Ready<TestResult<()>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<TestResult<()>> {
            self.ready = true;
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, (): ()) -> Self::Future {
            assert!(std::mem::take(&mut self.ready), "called without being ready");
            std::future::ready(Ok(()))
        }
    }

    for layer in [OffloadLayer::new(one_thread()), OffloadLayer::new(one_thread()).backpressure()] {
        let mut service = layer.reject(RejectWithError).layer(Probe { ready: false });
        for _ in 0..3 {
            soon(service.ready().await.unwrap().call(())).await.unwrap();
        }
        soon(service.clone().oneshot(())).await.unwrap();
    }
}

#[tokio::test]
async fn full_pool_does_not_make_the_service_pending() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
    let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError);
    let (mut service, _handle) = mock::spawn_layer::<(), (), _>(layer);
    let held = hold(&pool).await;
    assert_ready_ok!(service.poll_ready());
    let _queued = service.call(());
    assert_ready_ok!(service.poll_ready());
    let mut rejected = task::spawn(service.call(()));
    let error = assert_ready_err!(rejected.poll());
    assert_eq!(error.downcast_ref(), Some(&CallError::Overloaded));
    // The inner service was not called, so it is still ready.
    assert_ready_ok!(service.poll_ready());
    held.release().await.unwrap();
}

#[tokio::test]
async fn backpressure_reserves_in_poll_ready_and_uses_it_in_call() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
    let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).backpressure();
    let service = layer.layer(service_fn(async |(): ()| TestResult::Ok(())));
    let held = hold(&pool).await;

    let mut first = mock::Spawn::new(service.clone());
    let mut second = mock::Spawn::new(service.clone());
    assert_ready_ok!(first.poll_ready());
    assert_ready_ok!(first.poll_ready(), "polling again reserves no second permit");
    assert_pending!(second.poll_ready());

    let call = first.call(());
    assert_pending!(second.poll_ready(), "the queued call holds the permit");
    assert_pending!(first.poll_ready());
    held.release().await.unwrap();
    soon(call).await.unwrap();
    soon(async {
        while !second.is_woken() {
            tokio::task::yield_now().await
        }
    })
    .await;
    assert!(matches!(second.poll_ready(), Poll::Ready(Ok(()))));
    soon(second.call(())).await.unwrap();
}

#[tokio::test]
async fn backpressure_reserves_a_permit_of_the_layer() {
    let layer = OffloadLayer::new(one_thread()).reject(RejectWithError).max_in_flight(1).backpressure();
    let service = layer.layer(service_fn(async |(): ()| TestResult::Ok(())));
    let mut first = mock::Spawn::new(service.clone());
    let mut second = mock::Spawn::new(service);
    assert_ready_ok!(first.poll_ready());
    assert_pending!(second.poll_ready());
    drop(first);
    assert!(second.is_woken(), "a dropped service releases its reservation");
    assert_ready_ok!(second.poll_ready());
}

#[tokio::test]
async fn clone_of_a_readied_service_holds_no_reservation() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
    let layer = OffloadLayer::new(pool).reject(RejectWithError).backpressure();
    let mut readied = mock::Spawn::new(layer.layer(service_fn(async |(): ()| TestResult::Ok(()))));
    assert_ready_ok!(readied.poll_ready());
    let mut clone = readied.clone();
    assert_pending!(clone.poll_ready());
    drop(readied);
    assert_ready_ok!(clone.poll_ready());
}

#[tokio::test]
#[should_panic(expected = "before `poll_ready` returned ready")]
async fn backpressure_without_poll_ready_panics_with_a_remedy() {
    let layer = OffloadLayer::new(one_thread()).reject(RejectWithError).backpressure();
    let mut service = layer.layer(service_fn(async |(): ()| TestResult::Ok(())));
    drop(service.call(()));
}

/// Polls a service ready whose stack reserves twice. Without the panic, each of two callers would
/// hold one permit and wait for the other's forever.
async fn reserve_twice(inner: OffloadLayer, outer: OffloadLayer) {
    let (inner, outer) = (inner.reject(RejectWithError), outer.reject(RejectWithError));
    let service =
        outer.layer(tower::util::BoxCloneService::new(inner.layer(service_fn(async |()| TestResult::Ok(())))));
    soon(service.oneshot(())).await.unwrap();
}

#[tokio::test]
#[should_panic(expected = "two layers of one stack use `.backpressure()` on pool `twice`")]
async fn two_reservations_on_one_pool_panic_with_a_remedy() {
    let pool = ThreadPool::builder().name("twice").threads(1).queue_capacity(2).build().unwrap();
    let layer = OffloadLayer::new(pool).backpressure();
    reserve_twice(layer.clone(), layer).await;
}

#[tokio::test]
#[should_panic(expected = "would wait for each other forever")]
async fn two_layers_with_limits_on_one_pool_panic_with_a_remedy() {
    let pool = one_thread();
    let layer = || OffloadLayer::new(pool.clone()).max_in_flight(8).backpressure();
    reserve_twice(layer(), layer()).await;
}

#[tokio::test]
async fn reservations_on_two_pools_of_a_stack_work() {
    let layer = || OffloadLayer::new(ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap());
    reserve_twice(layer().backpressure(), layer().backpressure()).await;
    let one = layer();
    reserve_twice(one.clone(), one.backpressure()).await;
}

#[tokio::test]
async fn service_of_a_closed_pool_is_ready_and_rejects() {
    let pool = one_thread();
    let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError);
    for layer in [layer.clone(), layer.clone().backpressure(), layer.max_in_flight(1)] {
        let mut service = mock::Spawn::new(layer.layer(service_fn(async |(): ()| TestResult::Ok(()))));
        // The first layer finds the pool open in `poll_ready`, the others find it closed.
        assert!(matches!(service.poll_ready(), Poll::Ready(Ok(()))));
        pool.admission().close();
        let error = assert_ready_err!(task::spawn(service.call(())).poll());
        assert_eq!(error.downcast_ref(), Some(&CallError::Closed));
        assert_ready!(service.poll_ready()).unwrap();
    }
}
