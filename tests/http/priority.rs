//! Some requests go first, some go all the same, and some must never wait: on real routes.

use std::sync::{Arc, Mutex};

use axum::{Router, routing::get};
use tower_offload::{OffloadLayer, offload::Priority};

use crate::support::{self, Latch, Spy, one_thread, serve, within};

fn by_path(head: &tower_offload::offload::Head<'_>) -> Priority {
    match head.uri().path() {
        "/high" => Priority::High,
        "/low" => Priority::Low,
        _ => Priority::Normal,
    }
}

/// With one thread, 60 urgent requests in the queue and one that is not: it is among the first 21 that are started.
#[tokio::test]
async fn requests_go_by_priority_and_a_queue_full_of_high_does_not_keep_low_from_running() {
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
            spy.pending(1).await; // in the queue, in this order
        }
        latch.open();
        for call in calls {
            assert!(call.await.unwrap().status.is_success());
        }
        let order = order.lock().unwrap();
        let place = |name| order.iter().position(|it| *it == name).unwrap();
        assert_eq!(order[0], "high", "though it came last");
        assert!(place("low") < 21 && place("normal") < 21, "{order:?}");
        assert_eq!(order.len(), 62);
    })
    .await;
}

#[tokio::test]
async fn low_requests_are_refused_before_others_are() {
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
