//! Calls that await occupy no thread of the pool, and nested calls do not wait for themselves.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    response::Response,
    routing::{get, post},
};
use futures_util::future::join_all;
use http::Method;
use tokio::sync::Barrier;
use tower::{ServiceExt, layer::util::Identity};
use tower_layer::Layer;
use tower_offload::{OffloadLayer, ThreadPool};

use crate::support::{self, Http2, Raw, Spy, absolute, one_thread, pool, serve, within};

const REQUESTS: usize = 50;

/// Returns a handler that awaits all others. It would hang if a handler occupied the only thread
/// while it awaits.
fn meeting_place() -> Router {
    let barrier = Arc::new(Barrier::new(REQUESTS));
    let handler = async move || {
        barrier.wait().await;
        "met"
    };
    Router::new().route("/", get(handler))
}

async fn fifty_meet(router: Router) {
    let address = serve(router).await;
    for response in join_all((0..REQUESTS).map(|_| support::get(address, "/"))).await {
        response.assert_ok("met");
    }
}

#[tokio::test]
async fn fifty_handlers_await_on_one_thread() {
    within(fifty_meet(meeting_place().layer(OffloadLayer::new(pool(1))))).await;
}

#[tokio::test]
async fn fifty_handlers_await_on_one_thread_of_tokio() {
    within(async {
        let pool = tower_offload::pool::TokioBlocking::new(1);
        fifty_meet(meeting_place().layer(OffloadLayer::new(pool))).await;
    })
    .await;
}
#[tokio::test]
async fn fifty_handlers_await_on_one_thread_of_rayon() {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let pool = tower_offload::pool::Rayon::new(threads);
    within(fifty_meet(meeting_place().layer(OffloadLayer::new(pool)))).await;
}

#[tokio::test]
async fn fifty_handlers_await_in_two_layers_on_one_thread() {
    let pool = pool(1);
    let router = meeting_place().layer(OffloadLayer::new(pool.clone())).layer(OffloadLayer::new(pool));
    within(fifty_meet(router)).await;
}

#[tokio::test]
async fn fifty_http2_streams_await_on_one_thread() {
    within(async {
        let address = serve(meeting_place().layer(OffloadLayer::new(pool(1)))).await;
        let client = Http2::connect(address).await;
        let responses = join_all((0..REQUESTS).map(|_| {
            let mut stream = client.clone();
            async move { stream.send(absolute(Method::GET, "/", Body::empty())).await }
        }));
        for response in responses.await {
            response.assert_ok("met");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_handlers_await_on_one_thread_with_two_workers() {
    within(fifty_meet(meeting_place().layer(OffloadLayer::new(pool(1))))).await;
}

/// Nests a layer in itself, around a handler that calls another router behind the same layer.
async fn nests_in_itself<L>(layer: OffloadLayer, between: L)
where
    L: Layer<axum::routing::Route> + Clone + Send + Sync + 'static,
    L::Service: tower::Service<Request, Response = Response, Error = std::convert::Infallible> + Clone + Send + Sync,
    L::Service: 'static,
    <L::Service as tower::Service<Request>>::Future: Send + 'static,
{
    let inner = Router::new().route("/inner", get(async || "inner")).layer(layer.clone());
    let calls_inner = async move || {
        let request = support::request(Method::GET, "/inner", Body::empty());
        inner.clone().oneshot(request).await.unwrap()
    };
    let router = Router::new()
        .route("/", get(calls_inner))
        .layer(layer.clone())
        .layer(between)
        .layer(layer.clone())
        .layer(layer);
    let address = serve(router).await;
    for _ in 0..3 {
        support::get(address, "/").await.assert_ok("inner");
    }
}

#[tokio::test]
async fn nested_layer_does_not_deadlock() {
    within(nests_in_itself(OffloadLayer::new(pool(1)).max_in_flight(1), Identity::new())).await;
}

#[tokio::test]
async fn nested_layer_that_waits_does_not_deadlock() {
    let layer = OffloadLayer::new(pool(1)).max_in_flight(1).wait(Duration::MAX);
    within(nests_in_itself(layer, Identity::new())).await;
}

#[tokio::test]
async fn nested_layer_through_another_pool_does_not_deadlock() {
    let between = OffloadLayer::new(pool(1)).max_in_flight(1);
    within(nests_in_itself(OffloadLayer::new(pool(1)).max_in_flight(1), between)).await;
}

/// Checks that the only thread and permit of the queue serve other requests while a handler waits
/// for the second half of a body.
async fn serves_others_during_a_slow_body(pool: ThreadPool, router: Router, spy: Spy) {
    let address = serve(router).await;
    let mut slow = Raw::with(address, "POST /slow HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nhello").await;
    spy.pending(1).await;
    for _ in 0..5 {
        support::get(address, "/").await.assert_ok("quick");
    }
    assert_eq!((pool.stats().queued, pool.stats().rejected), (0, 0));
    slow.write("world").await;
    let head = slow.read_until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(slow.read_exact(10).await, b"HELLOWORLD");
}

#[tokio::test]
async fn slow_request_body_occupies_no_thread() {
    within(async {
        let (pool, spy) = (one_thread(1), Spy::new());
        let router = Router::new()
            .route("/slow", post(async |body: String| body.to_uppercase()))
            .route("/", get(async || "quick"));
        let router = spy.around(router).layer(OffloadLayer::new(pool.clone()));
        serves_others_during_a_slow_body(pool, router, spy).await;
    })
    .await;
}

#[tokio::test]
async fn slow_request_body_as_bytes_occupies_no_thread() {
    within(async {
        let (pool, spy) = (one_thread(1), Spy::new());
        let router = Router::new()
            .route("/slow", post(async |body: Bytes| body.to_ascii_uppercase()))
            .route("/", get(async || "quick"));
        let router = spy.around(router).layer(OffloadLayer::new(pool.clone()));
        serves_others_during_a_slow_body(pool, router, spy).await;
    })
    .await;
}
#[tokio::test]
async fn slow_request_body_of_blocking_occupies_no_thread() {
    use tower_offload::axum::blocking;

    within(async {
        let (pool, spy) = (one_thread(1), Spy::new());
        let router = Router::new()
            .route("/slow", post(blocking(pool.clone(), |body: String| body.to_uppercase())))
            .route("/", get(blocking(pool.clone(), || "quick")));
        serves_others_during_a_slow_body(pool, spy.around(router), spy).await;
    })
    .await;
}
