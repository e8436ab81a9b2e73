//! Filters: some requests are offloaded, others run inline.

use axum::{Router, routing::get};
use http::Method;
use tower_offload::OffloadLayer;

use crate::support::{self, FullPool, is_pool_thread, pool, request, send, serve, thread_name, within};

fn routes() -> Router {
    Router::new()
        .route("/ping", get(async || thread_name()).post(async || thread_name()))
        .route("/hash", get(async || thread_name()))
}

#[tokio::test]
async fn filtered_requests_run_on_the_runtime() {
    within(async {
        let layer = OffloadLayer::new(pool(1)).filter(|head| head.uri().path() != "/ping");
        let address = serve(routes().layer(layer)).await;
        assert!(!is_pool_thread(support::get(address, "/ping").await.text()));
        assert!(is_pool_thread(support::get(address, "/hash").await.text()));
    })
    .await;
}

#[tokio::test]
async fn request_is_offloaded_only_if_every_filter_agrees() {
    within(async {
        let layer = OffloadLayer::new(pool(1))
            .filter(|head| head.method() == Method::GET)
            .filter(|head| !head.headers().contains_key("x-inline"));
        let address = serve(routes().layer(layer)).await;
        let get = || request(Method::GET, "/ping", "");
        assert!(is_pool_thread(send(address, get()).await.text()));
        assert!(!is_pool_thread(send(address, request(Method::POST, "/ping", "")).await.text()));
        let mut inline = get();
        inline.headers_mut().insert("x-inline", "1".parse().unwrap());
        assert!(!is_pool_thread(send(address, inline).await.text()));
    })
    .await;
}

#[tokio::test]
async fn filter_request_reads_the_request() {
    within(async {
        let layer = OffloadLayer::new(pool(1))
            .filter_request(|request: &axum::extract::Request| request.uri().path() == "/hash");
        let address = serve(routes().layer(layer)).await;
        assert!(!is_pool_thread(support::get(address, "/ping").await.text()));
        assert!(is_pool_thread(support::get(address, "/hash").await.text()));
    })
    .await;
}

#[tokio::test]
async fn full_pool_does_not_reject_filtered_requests() {
    within(async {
        let full = FullPool::new().await;
        let layer = OffloadLayer::new(full.pool.clone()).filter(|head| head.uri().path() != "/ping");
        let address = serve(routes().layer(layer)).await;
        support::get(address, "/hash").await.assert_unavailable();
        let ping = support::get(address, "/ping").await;
        assert!(ping.status.is_success() && !is_pool_thread(ping.text()));
        full.release().await;
        assert!(is_pool_thread(support::get(address, "/hash").await.text()));
    })
    .await;
}

#[tokio::test]
async fn filtered_requests_need_no_permit() {
    within(async {
        let latch = support::Latch::new();
        let held = latch.clone();
        let router = Router::new().route("/ping", get(async || "pong")).route(
            "/hash",
            get(async move || {
                held.block();
                "hash"
            }),
        );
        let layer = OffloadLayer::new(pool(2)).max_in_flight(1).filter(|head| head.uri().path() != "/ping");
        let address = serve(router.layer(layer)).await;
        let held = tokio::spawn(support::get(address, "/hash"));
        latch.reached().await;
        support::get(address, "/ping").await.assert_ok("pong");
        support::get(address, "/hash").await.assert_unavailable();
        latch.open();
        held.await.unwrap().assert_ok("hash");
    })
    .await;
}
