//! With tower's own middleware, inside and outside of it. Readiness of what is inside is kept.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use futures_util::future::join_all;
use tokio_test::{assert_pending, assert_ready_ok};
use tower::{
    BoxError, Service, ServiceBuilder, ServiceExt, balance::p2c::Balance, buffer::Buffer, discover::ServiceList,
    limit::ConcurrencyLimitLayer, load::Constant, load_shed, retry, service_fn, timeout,
};
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer,
    offload::{Typed, sync_fn},
    pool::Pool,
};
use tower_test::mock;

use crate::support::{Answer, hold, one_thread, pools, soon};

fn offload() -> OffloadLayer<Typed> {
    OffloadLayer::new(one_thread()).reject(Typed)
}

/// A permit that `poll_ready` of the inner limit took is spent by the call, not lost in a clone.
#[tokio::test]
async fn concurrency_limit_inside() {
    let inner = ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(1)).service(sync_fn(|n: u32| Answer::Ok(n)));
    let mut service = mock::Spawn::new(offload().layer(inner));
    for n in 0..3 {
        assert_ready_ok!(service.poll_ready());
        let mut second = service.clone();
        assert_pending!(second.poll_ready(), "the limit's one permit is reserved");
        assert_eq!(soon(service.call(n)).await.unwrap(), n);
        soon(async {
            while second.poll_ready().is_pending() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn concurrency_limit_outside() {
    let service = ServiceBuilder::new()
        .layer(tower::limit::GlobalConcurrencyLimitLayer::new(2))
        .layer(offload())
        .service(sync_fn(|n: u32| Answer::Ok(n)));
    let answers = soon(join_all((0..20).map(|n| service.clone().oneshot(n)))).await;
    assert_eq!(answers.into_iter().map(Result::unwrap).sum::<u32>(), 190);
}

#[tokio::test]
async fn buffer_inside_and_outside() {
    let buffered = Buffer::new(service_fn(async |n: u32| Answer::Ok(n)), 1);
    let service = offload().layer(buffered);
    let answers = soon(join_all((0..20).map(|n| service.clone().oneshot(n)))).await;
    assert_eq!(answers.into_iter().map(Result::unwrap).sum::<u32>(), 190);

    // In front of it `poll_ready` is somebody's to wait for, so here is where backpressure belongs.
    let service = Buffer::new(offload().backpressure().layer(sync_fn(|n: u32| Answer::Ok(n))), 4);
    let answers = soon(join_all((0..20).map(|n| service.clone().oneshot(n)))).await;
    assert_eq!(answers.into_iter().map(Result::unwrap).sum::<u32>(), 190);
}

#[tokio::test]
async fn load_shed_outside_sheds_what_backpressure_holds_back() {
    let pool = one_thread();
    let layer = OffloadLayer::new(pool.clone()).reject(Typed).max_in_flight(1).backpressure();
    let service = ServiceBuilder::new().load_shed().layer(layer).service(sync_fn(|n: u32| Answer::Ok(n)));
    let held = hold(&pool).await;
    let mut first = service.clone();
    let first = first.ready().await.unwrap().call(1);
    let shed = soon(service.clone().oneshot(2)).await.unwrap_err();
    assert!(shed.is::<load_shed::error::Overloaded>(), "{shed}");
    held.release().await.unwrap();
    assert_eq!(soon(first).await.unwrap(), 1);
}

#[tokio::test]
async fn timeout_outside_cancels_what_is_queued() {
    let (pool, calls) = (one_thread(), Arc::new(AtomicUsize::new(0)));
    let service = ServiceBuilder::new()
        .timeout(Duration::from_millis(1))
        .layer(OffloadLayer::new(pool.clone()).reject(Typed))
        .service(sync_fn({
            let calls = calls.clone();
            move |()| Answer::Ok(calls.fetch_add(1, SeqCst))
        }));
    let held = hold(&pool).await;
    let error = soon(service.oneshot(())).await.unwrap_err();
    assert!(error.is::<timeout::error::Elapsed>(), "{error}");
    held.release().await.unwrap();
    soon(pool.run(|| ())).await.unwrap(); // behind it in the queue
    assert_eq!(calls.load(SeqCst), 0);
}

#[tokio::test]
async fn timeout_inside_fires_on_the_pool() {
    let inner = ServiceBuilder::new()
        .timeout(Duration::from_millis(1))
        .service(service_fn(async |()| std::future::pending::<Answer<()>>().await));
    let error = soon(offload().layer(inner).oneshot(())).await.unwrap_err();
    assert!(error.is::<timeout::error::Elapsed>(), "{error}");
}

#[derive(Clone)]
struct Attempts(usize);

impl<Req: Clone, Res> retry::Policy<Req, Res, BoxError> for Attempts {
    type Future = std::future::Ready<()>;

    fn retry(&mut self, _: &mut Req, result: &mut Result<Res, BoxError>) -> Option<Self::Future> {
        (result.is_err() && self.0 > 0).then(|| {
            self.0 -= 1;
            std::future::ready(())
        })
    }

    fn clone_request(&mut self, request: &Req) -> Option<Req> {
        Some(request.clone())
    }
}

#[tokio::test]
async fn retry_outside_calls_again() {
    let calls = Arc::new(AtomicUsize::new(0));
    let service = ServiceBuilder::new().retry(Attempts(5)).layer(offload()).service(sync_fn({
        let calls = calls.clone();
        move |()| match calls.fetch_add(1, SeqCst) {
            0..2 => Err("not yet"),
            call => Ok(call),
        }
    }));
    assert_eq!(soon(service.oneshot(())).await.unwrap(), 2);
}

#[tokio::test]
async fn retry_inside_runs_on_the_pool() {
    let calls = Arc::new(AtomicUsize::new(0));
    let flaky = service_fn(move |()| {
        let call = calls.fetch_add(1, SeqCst);
        async move { if call < 2 { Err(BoxError::from("not yet")) } else { Ok(call) } }
    });
    let service = offload().layer(ServiceBuilder::new().retry(Attempts(5)).service(flaky));
    assert_eq!(soon(service.oneshot(())).await.unwrap(), 2);
}

#[tokio::test]
async fn balance_over_offloaded_services_and_behind_one() {
    let endpoints = |layer: OffloadLayer<Typed>| {
        let endpoint = |n: u32| Constant::new(layer.layer(sync_fn(move |()| Answer::Ok(n))), 1);
        Balance::new(ServiceList::new([endpoint(1), endpoint(2)]))
    };
    let mut balance = endpoints(offload());
    for _ in 0..10 {
        let answer: Result<u32, BoxError> = soon(balance.ready().await.unwrap().call(())).await;
        assert!((1..=2).contains(&answer.unwrap()));
    }
    let behind = offload().layer(Buffer::new(endpoints(offload()), 2));
    assert!((1..=2).contains(&soon(behind.oneshot(())).await.unwrap()));
}

/// `Balance` sends no call to a service that is not ready: with backpressure a full pool is passed by.
#[tokio::test]
async fn balance_passes_a_full_pool_by() {
    let (full, free) = (one_thread(), one_thread());
    let endpoint = |pool: &tower_offload::ThreadPool, n: u32| {
        let layer = OffloadLayer::new(pool.clone()).reject(Typed).max_in_flight(1).backpressure();
        layer.layer(sync_fn(move |()| Answer::Ok(n)))
    };
    let held = hold(&full).await;
    let mut busy = endpoint(&full, 1);
    let _call = busy.ready().await.unwrap().call(());
    let mut balance = Balance::new(ServiceList::new([Constant::new(busy, 1), Constant::new(endpoint(&free, 2), 1)]));
    for _ in 0..10 {
        let answer: Result<u32, BoxError> = soon(balance.ready().await.unwrap().call(())).await;
        assert_eq!(answer.unwrap(), 2);
    }
    held.release().await.unwrap();
}

#[tokio::test]
async fn every_answer_finds_its_caller() {
    for pool in pools(2, 256) {
        let service = OffloadLayer::new(pool).reject(Typed).layer(sync_fn(|n: u64| Answer::Ok(n * n)));
        let answers = soon(join_all((0..200).map(|n| service.clone().oneshot(n)))).await;
        for (n, answer) in (0..).zip(answers) {
            assert_eq!(answer.unwrap(), n * n);
        }
    }
}

#[tokio::test]
async fn the_error_of_the_service_is_passed_on_in_its_own_type_with_a_closure_strategy() {
    #[derive(Debug, PartialEq)]
    enum Mine {
        Busy(CallError),
        Wrong,
    }
    let pool = one_thread();
    let service = OffloadLayer::new(pool.clone())
        .reject_with(|rejection| Err(Mine::Busy(rejection)))
        .layer(sync_fn(|()| Err::<(), _>(Mine::Wrong)));
    assert_eq!(soon(service.clone().oneshot(())).await, Err(Mine::Wrong));
    pool.admission().close();
    assert_eq!(soon(service.clone().oneshot(())).await, Err(Mine::Busy(CallError::Closed)));
    assert!(matches!(mock::Spawn::new(service).poll_ready(), Poll::Ready(Ok(()))));
}

#[tokio::test]
async fn what_a_filter_lets_through_runs_where_it_is_called() {
    let layer = offload().filter_request(|n: &u32| *n > 10).filter_request(|n: &u32| *n < 20);
    let service = layer.layer(sync_fn(|_: u32| Answer::Ok(std::thread::current().id())));
    let here = std::thread::current().id();
    for (n, offloaded) in [(5, false), (15, true), (25, false)] {
        assert_eq!(soon(service.clone().oneshot(n)).await.unwrap() != here, offloaded, "{n}");
    }
}
