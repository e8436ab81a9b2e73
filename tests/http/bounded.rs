//! Responses of a layer without capacity.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, http::StatusCode, response::IntoResponse, routing::get};
use futures_util::future::join_all;
use http::{Method, header::CONTENT_TYPE};
use tower_offload::{CallError, OffloadLayer, offload::ProblemJson, pool::Pool};

use crate::support::{
    self, FullPool, FullResponse, Http1, Latch, Spy, count_statuses, pool, request, send, serve, within,
};

async fn ok() -> &'static str {
    "ok"
}

/// Returns a router whose calls block at the latch.
fn latched(latch: &Latch) -> Router {
    let latch = latch.clone();
    Router::new().route(
        "/",
        get(async move || {
            latch.block();
            "ok"
        }),
    )
}

fn get_as(content_type: &str) -> http::Request<Body> {
    let mut request = request(Method::GET, "/", Body::empty());
    request.headers_mut().insert(CONTENT_TYPE, content_type.parse().unwrap());
    request
}

#[tokio::test]
async fn full_queue_answers_503_on_axum() {
    within(async {
        let full = FullPool::new().await;
        let router = Router::new().route("/", get(ok)).layer(OffloadLayer::new(full.pool.clone()));
        let mut connection = Http1::connect(serve(router).await).await;
        connection.get("/").await.assert_unavailable();
        connection.get("/").await.assert_unavailable();
        full.release().await;
        connection.get("/").await.assert_ok("ok");
    })
    .await;
}

#[tokio::test]
async fn layer_at_max_in_flight_answers_503_on_axum() {
    within(async {
        let latch = Latch::new();
        let address = serve(latched(&latch).layer(OffloadLayer::new(pool(4)).max_in_flight(1))).await;
        let held = tokio::spawn(support::get(address, "/"));
        latch.reached().await;
        support::get(address, "/").await.assert_unavailable();
        latch.open();
        held.await.unwrap().assert_ok("ok");
        support::get(address, "/").await.assert_ok("ok");
    })
    .await;
}

#[tokio::test]
async fn pool_after_shutdown_answers_503() {
    within(async {
        let pool = pool(1);
        let router = Router::new().route("/", get(ok)).layer(OffloadLayer::new(pool.clone()));
        let address = serve(router).await;
        assert!(pool.shutdown(Duration::from_secs(5)).await.is_empty());
        support::get(address, "/").await.assert_unavailable();
    })
    .await;
}

#[tokio::test]
async fn call_queued_at_the_end_of_a_shutdown_is_answered_503() {
    within(async {
        let (pool, latch, spy) = (support::one_thread(1), Latch::new(), Spy::new());
        let router = latched(&latch).layer(OffloadLayer::new(pool.clone()));
        let address = serve(spy.around(router)).await;
        let running = tokio::spawn(support::get(address, "/"));
        latch.reached().await;
        let queued = tokio::spawn(support::get(address, "/"));
        spy.pending(2).await;

        let report = pool.shutdown(Duration::ZERO).await;
        assert_eq!((report.running, report.queued, report.parked), (1, 1, 0));
        queued.await.unwrap().assert_unavailable();
        latch.open();
        running.await.unwrap().assert_ok("ok");
    })
    .await;
}

#[tokio::test]
async fn wait_timeout_answers_503() {
    within(async {
        let full = FullPool::new().await;
        let layer = OffloadLayer::new(full.pool.clone()).wait(Duration::from_millis(20));
        let address = serve(Router::new().route("/", get(ok)).layer(layer)).await;
        support::get(address, "/").await.assert_unavailable();
        full.release().await;
        support::get(address, "/").await.assert_ok("ok");
    })
    .await;
}

#[tokio::test]
async fn call_above_max_waiting_is_answered_503_at_once() {
    within(async {
        let (full, spy) = (FullPool::new().await, Spy::new());
        let layer = OffloadLayer::new(full.pool.clone()).wait(Duration::MAX).max_waiting(1);
        let address = serve(spy.around(Router::new().route("/", get(ok)).layer(layer))).await;
        let waits = tokio::spawn(support::get(address, "/"));
        spy.pending(1).await;
        support::get(address, "/").await.assert_unavailable();
        full.release().await;
        waits.await.unwrap().assert_ok("ok");
    })
    .await;
}

#[tokio::test]
async fn caught_panic_is_answered_500() {
    within(async {
        let pool = pool(1);
        let panics = async || -> &'static str { panic!("expected panic") };
        let router = Router::new().route("/panic", get(panics)).route("/", get(ok));
        let router = router.layer(OffloadLayer::new(pool.clone()).catch_panics());
        let mut connection = Http1::connect(serve(router).await).await;
        let response = connection.get("/panic").await;
        assert_eq!((response.status, response.text()), (StatusCode::INTERNAL_SERVER_ERROR, ""));
        assert_eq!(response.header("retry-after"), "", "a retry would fail as well");
        connection.get("/").await.assert_ok("ok"); // on the same connection and thread
        assert_eq!(pool.stats().panicked, 1);
    })
    .await;
}

/// Parses a problem+json body.
fn problem(response: &FullResponse) -> serde_json::Value {
    assert_eq!(response.header("content-type"), "application/problem+json");
    serde_json::from_slice(&response.body).unwrap()
}

#[tokio::test]
async fn problem_json_describes_a_full_queue() {
    within(async {
        let full = FullPool::new().await;
        let layer = OffloadLayer::new(full.pool.clone()).reject(ProblemJson);
        let address = serve(Router::new().route("/", get(ok)).layer(layer)).await;
        let response = support::get(address, "/").await;
        assert_eq!(response.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.header("retry-after").parse::<u64>().unwrap() >= 1);
        let problem = problem(&response);
        assert_eq!((&problem["status"], &problem["reason"]), (&503.into(), &"overloaded".into()));
        assert_eq!((&problem["title"], &problem["type"]), (&"Service Unavailable".into(), &"about:blank".into()));
        assert_eq!(problem["detail"], CallError::Overloaded.to_string());
        full.release().await;
        support::get(address, "/").await.assert_ok("ok");
    })
    .await;
}

#[tokio::test]
async fn problem_json_describes_a_panic_without_its_message() {
    within(async {
        let panics = async || -> &'static str { panic!("expected panic") };
        let layer = OffloadLayer::new(pool(1)).reject(ProblemJson).catch_panics();
        let response = support::get(serve(Router::new().route("/", get(panics)).layer(layer)).await, "/").await;
        assert_eq!(response.status, StatusCode::INTERNAL_SERVER_ERROR);
        let problem = problem(&response);
        assert_eq!((&problem["status"], &problem["reason"]), (&500.into(), &"panicked".into()));
        assert!(!response.text().contains("expected panic"), "the message of the panic is not sent to the client");
    })
    .await;
}

#[tokio::test]
async fn reject_with_answers_with_the_closures_response() {
    within(async {
        let full = FullPool::new().await;
        let respond = |error: CallError| Ok((StatusCode::TOO_MANY_REQUESTS, error.as_str()).into_response());
        let layer = OffloadLayer::new(full.pool.clone()).reject_with(respond);
        let response = support::get(serve(Router::new().route("/", get(ok)).layer(layer)).await, "/").await;
        assert_eq!((response.status, response.text()), (StatusCode::TOO_MANY_REQUESTS, "overloaded"));
        full.release().await;
    })
    .await;
}

#[tokio::test]
async fn grpc_is_answered_with_a_status_and_grpc_web_with_503() {
    within(async {
        let full = FullPool::new().await;
        let router = Router::new()
            .route("/", get(ok).layer(OffloadLayer::new(full.pool.clone())))
            .route("/problem", get(ok).layer(OffloadLayer::new(full.pool.clone()).reject(ProblemJson)));
        let address = serve(router).await;
        for grpc in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            let response = send(address, get_as(grpc)).await;
            response.assert_ok("");
            assert_eq!((response.header("grpc-status"), response.header("content-type")), ("8", "application/grpc"));
        }
        for plain in ["application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text", "text/plain"] {
            let response = send(address, get_as(plain)).await;
            response.assert_unavailable();
            assert_eq!(response.header("grpc-status"), "");
        }
        let problem_as = |content_type| {
            let mut request = get_as(content_type);
            *request.uri_mut() = "/problem".parse().unwrap();
            send(address, request)
        };
        assert_eq!(problem(&problem_as("application/grpc-web+proto").await)["reason"], "overloaded");
        let grpc = problem_as("application/grpc").await;
        grpc.assert_ok("");
        assert_eq!((grpc.header("grpc-status"), grpc.header("content-type")), ("8", "application/grpc"));
        full.release().await;
    })
    .await;
}

/// Returns two routes that record in `peak` how many calls run at the same time.
fn two_routes(latch: &Latch, peak: &Arc<AtomicUsize>) -> Router {
    let running = Arc::new(AtomicUsize::new(0));
    let (latch, peak) = (latch.clone(), peak.clone());
    let handler = async move || {
        peak.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
        latch.block();
        running.fetch_sub(1, SeqCst);
        "ok"
    };
    Router::new().route("/a", get(handler.clone())).route("/b", get(handler))
}

#[tokio::test]
async fn routes_of_one_layer_share_max_in_flight_when_waiting() {
    within(async {
        let (latch, spy, peak) = (Latch::new(), Spy::new(), Arc::new(AtomicUsize::new(0)));
        let pool = pool(6);
        let layer = OffloadLayer::new(pool.clone()).max_in_flight(1).wait(Duration::from_secs(60));
        let address = serve(spy.around(two_routes(&latch, &peak).layer(layer))).await;

        let calls: Vec<_> = ["/a", "/b", "/a", "/b", "/a", "/b"]
            .into_iter()
            .map(|path| tokio::spawn(async move { support::get(address, path).await }))
            .collect();
        spy.pending(6).await;
        latch.reached().await;
        assert_eq!((pool.stats().in_flight, pool.stats().rejected), (1, 0), "five calls wait outside of the pool");
        for ran in 1..=6 {
            assert_eq!(latch.unseen(), 0, "only one call runs");
            latch.let_one_pass();
            if ran < 6 {
                latch.reached().await;
            }
        }
        for response in join_all(calls).await {
            response.unwrap().assert_ok("ok");
        }
        assert_eq!(peak.load(SeqCst), 1);
    })
    .await;
}

#[tokio::test]
async fn routes_of_one_layer_share_max_in_flight_when_rejecting() {
    within(async {
        let (latch, peak) = (Latch::new(), Arc::new(AtomicUsize::new(0)));
        let layer = OffloadLayer::new(pool(6)).max_in_flight(1);
        let address = serve(two_routes(&latch, &peak).layer(layer)).await;
        let held = tokio::spawn(support::get(address, "/a"));
        latch.reached().await;
        let paths = ["/b", "/a", "/b", "/a", "/b"];
        let rejected = join_all(paths.map(|path| support::get(address, path))).await;
        assert_eq!(count_statuses(&rejected), [(503, 5)].into());
        latch.open();
        held.await.unwrap().assert_ok("ok");
        support::get(address, "/b").await.assert_ok("ok");
        assert_eq!(peak.load(SeqCst), 1);
    })
    .await;
}

#[tokio::test]
async fn layers_on_one_pool_have_separate_limits() {
    within(async {
        let (first, second, pool) = (Latch::new(), Latch::new(), pool(2));
        let layer = || OffloadLayer::new(pool.clone()).max_in_flight(1);
        let router = Router::new()
            .nest("/first", latched(&first).layer(layer()))
            .nest("/second", latched(&second).layer(layer()));
        let address = serve(router).await;
        let held = [tokio::spawn(support::get(address, "/first")), tokio::spawn(support::get(address, "/second"))];
        first.reached().await;
        second.reached().await;
        support::get(address, "/first").await.assert_unavailable();
        support::get(address, "/second").await.assert_unavailable();
        first.open();
        second.open();
        for held in held {
            held.await.unwrap().assert_ok("ok");
        }
    })
    .await;
}
