//! Priorities of requests to real routes.

use std::sync::{Arc, Mutex};

use axum::{Router, routing::get};
use tower_offload::{OffloadLayer, Priority, ThreadPool};

use crate::support::{self, Latch, Spy, one_thread, serve, within};

fn by_path(head: &tower_offload::offload::RequestHead<'_>) -> Priority {
    match head.uri().path() {
        "/high" => Priority::High,
        "/low" => Priority::Low,
        _ => Priority::Normal,
    }
}

/// Among 60 queued high-priority requests, the two others are among the first 21 that start.
#[tokio::test]
async fn high_priority_runs_first_but_does_not_starve_others() {
    within(async {
        let (latch, spy, order) = (Latch::new(), Spy::new(), Arc::new(Mutex::new(Vec::new())));
        let note = |name: &'static str| {
            let order = order.clone();
            get(async move || {
                order.lock().unwrap().push(name);
                name
            })
        };
        let held = latch.clone();
        let router = Router::new()
            .route("/high", note("high"))
            .route("/low", note("low"))
            .route("/normal", note("normal"))
            .route("/held", get(async move || held.block()))
            .layer(OffloadLayer::new(one_thread(256)).priority(by_path));
        let address = serve(spy.around(router)).await;
        let mut calls = vec![tokio::spawn(support::get(address, "/held"))];
        latch.reached().await;
        spy.pending(1).await;
        for path in ["/low", "/normal"].into_iter().chain(std::iter::repeat_n("/high", 60)) {
            calls.push(tokio::spawn(support::get(address, path)));
            spy.pending(1).await; // queued in this order
        }
        latch.open();
        for call in calls {
            assert!(call.await.unwrap().status.is_success());
        }
        let order = order.lock().unwrap();
        let position = |name| order.iter().position(|it| *it == name).unwrap();
        assert_eq!(order[0], "high", "high priority starts first");
        assert!(position("low") < 21 && position("normal") < 21, "{order:?}");
        assert_eq!(order.len(), 62);
    })
    .await;
}

/// Every thread waits for a connection, the queue is full of requests that want one, and only a
/// request can release one.
#[tokio::test]
async fn second_pool_runs_requests_that_the_first_waits_for() {
    within(async {
        let (connections, spy) = (Latch::new(), Spy::new());
        let (acquired, released) = (connections.clone(), connections.clone());
        let pool = ThreadPool::builder().threads(2).queue_capacity(2).build().unwrap();
        let acquire = get(async move || {
            acquired.block();
            "acquired"
        });
        let release = get(async move || {
            released.let_one_pass();
            "released"
        });
        let router = Router::new()
            .route("/acquire", acquire.layer(OffloadLayer::new(pool.clone()).max_in_flight(4)))
            .route("/release", release.layer(OffloadLayer::new(one_thread(64))));
        let address = serve(spy.around(router)).await;
        let mut acquires: Vec<_> = (0..2).map(|_| tokio::spawn(support::get(address, "/acquire"))).collect();
        connections.reached().await;
        connections.reached().await;
        spy.pending(2).await;
        acquires.extend((0..2).map(|_| tokio::spawn(support::get(address, "/acquire"))));
        spy.pending(2).await;
        support::get(address, "/acquire").await.assert_unavailable();
        for _ in 0..4 {
            support::get(address, "/release").await.assert_ok("released");
        }
        for acquire in acquires {
            acquire.await.unwrap().assert_ok("acquired");
        }
        assert_eq!(pool.stats().rejected, 1);
    })
    .await;
}

#[tokio::test]
async fn low_priority_is_rejected_before_others() {
    within(async {
        let (latch, spy) = (Latch::new(), Spy::new());
        let held = latch.clone();
        let router = Router::new()
            .route("/held", get(async move || held.block()))
            .route("/low", get(async || "low"))
            .route("/normal", get(async || "normal"))
            .layer(OffloadLayer::new(one_thread(2)).priority(by_path));
        let address = serve(spy.around(router)).await;
        let first = tokio::spawn(support::get(address, "/held"));
        latch.reached().await;
        let low = tokio::spawn(support::get(address, "/low"));
        spy.pending(2).await;
        support::get(address, "/low").await.assert_unavailable();
        let normal = tokio::spawn(support::get(address, "/normal"));
        spy.pending(1).await;
        support::get(address, "/normal").await.assert_unavailable();
        latch.open();
        assert!(first.await.unwrap().status.is_success());
        low.await.unwrap().assert_ok("low");
        normal.await.unwrap().assert_ok("normal");
    })
    .await;
}
