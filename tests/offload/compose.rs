//! The layer inside and outside of tower's own middleware.

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
    AfterResponseLayer, Background, CallError, OffloadLayer, Priority,
    blocking_detector::BlockingDetectorLayer,
    offload::{ProblemJson, RejectWithError, service_fn_blocking},
    pool::{Inline, Pool},
};
use tower_test::mock;

use crate::support::{TestResult, hold, one_thread, pools, soon};

fn offload() -> OffloadLayer<RejectWithError> {
    OffloadLayer::new(one_thread()).reject(RejectWithError)
}

/// The call uses the permit that `poll_ready` of the inner limit acquired. No clone keeps the
/// permit.
#[tokio::test]
async fn concurrency_limit_inside_keeps_its_permit() {
    let inner = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn_blocking(|n: u32| TestResult::Ok(n)));
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
async fn concurrency_limit_outside_admits_every_call() {
    let service = ServiceBuilder::new()
        .layer(tower::limit::GlobalConcurrencyLimitLayer::new(2))
        .layer(offload())
        .service(service_fn_blocking(|n: u32| TestResult::Ok(n)));
    let responses = soon(join_all((0..20).map(|n| service.clone().oneshot(n)))).await;
    assert_eq!(responses.into_iter().map(Result::unwrap).sum::<u32>(), 190);
}

#[tokio::test]
async fn buffer_works_inside_and_outside() {
    let buffered = Buffer::new(service_fn(async |n: u32| TestResult::Ok(n)), 1);
    let service = offload().layer(buffered);
    let responses = soon(join_all((0..20).map(|n| service.clone().oneshot(n)))).await;
    assert_eq!(responses.into_iter().map(Result::unwrap).sum::<u32>(), 190);

    // `Buffer` holds one service and waits for its `poll_ready`, which is what backpressure is for.
    let service = Buffer::new(offload().backpressure().layer(service_fn_blocking(|n: u32| TestResult::Ok(n))), 4);
    let responses = soon(join_all((0..20).map(|n| service.clone().oneshot(n)))).await;
    assert_eq!(responses.into_iter().map(Result::unwrap).sum::<u32>(), 190);
}

#[tokio::test]
async fn load_shed_outside_sheds_under_backpressure() {
    let pool = one_thread();
    let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1).backpressure();
    let service =
        ServiceBuilder::new().load_shed().layer(layer).service(service_fn_blocking(|n: u32| TestResult::Ok(n)));
    let held = hold(&pool).await;
    let mut first = service.clone();
    let first = first.ready().await.unwrap().call(1);
    let shed = soon(service.clone().oneshot(2)).await.unwrap_err();
    assert!(shed.is::<load_shed::error::Overloaded>(), "{shed}");
    held.release().await.unwrap();
    assert_eq!(soon(first).await.unwrap(), 1);
}

#[tokio::test]
async fn timeout_outside_cancels_a_queued_call() {
    let (pool, calls) = (one_thread(), Arc::new(AtomicUsize::new(0)));
    let service = ServiceBuilder::new()
        .timeout(Duration::from_millis(1))
        .layer(OffloadLayer::new(pool.clone()).reject(RejectWithError))
        .service(service_fn_blocking({
            let calls = calls.clone();
            move |()| TestResult::Ok(calls.fetch_add(1, SeqCst))
        }));
    let held = hold(&pool).await;
    let error = soon(service.oneshot(())).await.unwrap_err();
    assert!(error.is::<timeout::error::Elapsed>(), "{error}");
    held.release().await.unwrap();
    soon(pool.run(|| ())).await.unwrap(); // it was queued behind the cancelled call
    assert_eq!(calls.load(SeqCst), 0);
}

#[tokio::test]
async fn timeout_inside_fires_on_the_pool() {
    let inner = ServiceBuilder::new()
        .timeout(Duration::from_millis(1))
        .service(service_fn(async |()| std::future::pending::<TestResult<()>>().await));
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
    let service = ServiceBuilder::new().retry(Attempts(5)).layer(offload()).service(service_fn_blocking({
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
async fn balance_works_inside_and_outside() {
    let endpoints = |layer: OffloadLayer<RejectWithError>| {
        let endpoint = |n: u32| Constant::new(layer.layer(service_fn_blocking(move |()| TestResult::Ok(n))), 1);
        Balance::new(ServiceList::new([endpoint(1), endpoint(2)]))
    };
    let mut balance = endpoints(offload());
    for _ in 0..10 {
        let response: Result<u32, BoxError> = soon(balance.ready().await.unwrap().call(())).await;
        assert!((1..=2).contains(&response.unwrap()));
    }
    let behind = offload().layer(Buffer::new(endpoints(offload()), 2));
    assert!((1..=2).contains(&soon(behind.oneshot(())).await.unwrap()));
}

/// `Balance` calls only services that are ready.
#[tokio::test]
async fn balance_skips_a_full_pool_with_backpressure() {
    let (full, free) = (one_thread(), one_thread());
    let endpoint = |pool: &tower_offload::ThreadPool, n: u32| {
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1).backpressure();
        layer.layer(service_fn_blocking(move |()| TestResult::Ok(n)))
    };
    let held = hold(&full).await;
    let mut busy = endpoint(&full, 1);
    let _call = busy.ready().await.unwrap().call(());
    let mut balance = Balance::new(ServiceList::new([Constant::new(busy, 1), Constant::new(endpoint(&free, 2), 1)]));
    for _ in 0..10 {
        let response: Result<u32, BoxError> = soon(balance.ready().await.unwrap().call(())).await;
        assert_eq!(response.unwrap(), 2);
    }
    held.release().await.unwrap();
}

#[tokio::test]
async fn every_response_reaches_its_caller() {
    for pool in pools(2, 256) {
        let service =
            OffloadLayer::new(pool).reject(RejectWithError).layer(service_fn_blocking(|n: u64| TestResult::Ok(n * n)));
        let responses = soon(join_all((0..200).map(|n| service.clone().oneshot(n)))).await;
        for (n, response) in (0..).zip(responses) {
            assert_eq!(response.unwrap(), n * n);
        }
    }
}

#[tokio::test]
async fn reject_fn_keeps_the_error_type_of_the_service() {
    #[derive(Debug, PartialEq)]
    enum Error {
        Busy(CallError),
        Wrong,
    }
    let pool = one_thread();
    let service = OffloadLayer::new(pool.clone())
        .reject_with(|error| Err(Error::Busy(error)))
        .layer(service_fn_blocking(|()| Err::<(), _>(Error::Wrong)));
    assert_eq!(soon(service.clone().oneshot(())).await, Err(Error::Wrong));
    pool.admission().close();
    assert_eq!(soon(service.clone().oneshot(())).await, Err(Error::Busy(CallError::Closed)));
    assert!(matches!(mock::Spawn::new(service).poll_ready(), Poll::Ready(Ok(()))));
}

#[tokio::test]
async fn filtered_requests_run_inline() {
    let layer = offload().filter_request(|n: &u32| *n > 10).filter_request(|n: &u32| *n < 20);
    let service = layer.layer(service_fn_blocking(|_: u32| TestResult::Ok(std::thread::current().id())));
    let here = std::thread::current().id();
    for (n, offloaded) in [(5, false), (15, true), (25, false)] {
        assert_eq!(soon(service.clone().oneshot(n)).await.unwrap() != here, offloaded, "{n}");
    }
}

/// Checks what `tokio::spawn` checks.
fn is_send<F: Future + Send>(_: F) {}

/// rustc erases lifetimes in the types that an async block holds, so it cannot prove a bound
/// `'static` of the service, or one that only holds for `'static`.
#[test]
fn call_is_send_if_the_service_captures_a_static_str() {
    let text: &'static str = String::from("text").leak();
    let strings = move |request: String| TestResult::Ok(request + text);
    let layer = || OffloadLayer::new(Inline::new()).reject(RejectWithError);
    let service = layer().layer(service_fn_blocking(strings));
    is_send(async move { service.oneshot("x".to_owned()).await.is_ok() });

    let service = layer().max_in_flight(1).backpressure().layer(service_fn_blocking(strings));
    is_send(async move { service.oneshot("x".to_owned()).await.is_ok() });

    let filtered = layer().filter_request(move |request: &String| request.starts_with(text));
    let mut service = filtered.layer(service_fn_blocking(TestResult::<String>::Ok));
    is_send(async move { service.ready().await.is_ok() && service.call("x".to_owned()).await.is_ok() });

    let asynchronous = service_fn(move |request: String| async move { TestResult::Ok(request + text) });
    let service = ServiceBuilder::new().layer(layer()).layer(layer()).service(asynchronous);
    is_send(async move { service.oneshot("x".to_owned()).await.is_ok() });

    let detected = BlockingDetectorLayer::new().route_request(move |_: &String| text);
    let service = detected.layer(layer().layer(service_fn_blocking(strings)));
    is_send(async move { service.oneshot("x".to_owned()).await.is_ok() });
}

#[test]
fn call_is_send_if_an_http_service_captures_a_static_str() {
    type Body = http_body_util::Full<bytes::Bytes>;
    let text: &'static str = String::from("text").leak();
    let respond = move |_: http::Request<Body>| async move { TestResult::Ok(http::Response::new(Body::from(text))) };
    let request = || http::Request::new(Body::default());
    let layer = || OffloadLayer::new(Inline::new());
    let service = layer().layer(service_fn(respond));
    is_send(async move { service.oneshot(request()).await.is_ok() });

    let service = layer().filter(move |head| head.uri().path() != text).reject(ProblemJson).layer(service_fn(respond));
    is_send(async move { service.oneshot(request()).await.is_ok() });

    #[derive(Clone)]
    struct Tenant(&'static str);
    let service = layer()
        .priority(move |head| if head.uri().path() == text { Priority::High } else { Priority::Normal })
        .propagate(
            move |_| Tenant(text),
            |tenant, poll| {
                if !tenant.0.is_empty() {
                    poll()
                }
            },
        )
        .layer(service_fn(respond));
    is_send(async move { service.oneshot(request()).await.is_ok() });

    let background = AfterResponseLayer::new(Background::new(Inline::new()));
    let service = background.layer(layer().layer(service_fn(respond)));
    is_send(async move { service.oneshot(request()).await.is_ok() });
}

/// rustc erases lifetimes in the types that an async block holds, so it cannot prove a bound
/// `'static` of the service.
#[tokio::test]
async fn future_is_send_if_closures_capture_a_static_str() {
    let text: &'static str = String::from("text").leak();
    let service = OffloadLayer::new(one_thread())
        .reject_with(move |error| Err(format!("{text}: {error}")))
        .filter_request(move |request: &String| request.starts_with(text))
        .priority_request(move |request: &String| if request == text { Priority::High } else { Priority::Normal })
        .propagate_request(
            move |_: &String| text.len(),
            move |len, poll| {
                if len == text.len() {
                    poll()
                }
            },
        )
        .layer(service_fn_blocking(move |request: String| Ok::<_, String>(request + text)));
    let response = tokio::spawn(async move { service.oneshot("text ".to_owned()).await });
    assert_eq!(soon(response).await.unwrap().unwrap(), "text text");
}
