//! Clients that hang up while their request is queued, running or awaiting.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use axum::{Router, body::Body, routing::get};
use http::Method;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tower_offload::{
    OffloadLayer, ThreadPool, cancelled,
    pool::{Pool, Run, cancellation_token},
};

use crate::support::{
    GET, Http2, Latch, Raw, Spy, absolute, is_pool_thread, one_thread, pool, serve, thread_name, within,
};

/// Returns a handler that blocks at the latch and then sends `cancelled()`.
fn blocks_then_sends_cancelled(latch: &Latch, results: UnboundedSender<bool>) -> Router {
    let latch = latch.clone();
    Router::new().route(
        "/",
        get(async move || {
            let token = cancellation_token();
            assert!(!cancelled() && !token.is_cancelled());
            latch.block();
            assert_eq!(cancelled(), token.is_cancelled());
            results.send(cancelled()).unwrap();
        }),
    )
}

/// Blocks the only thread of the pool at the latch.
async fn hold(pool: &ThreadPool, latch: &Latch) -> Run<()> {
    let held = pool.run({
        let latch = latch.clone();
        move || latch.block()
    });
    latch.reached().await;
    held
}

#[tokio::test]
async fn hang_up_cancels_a_running_handler() {
    within(async {
        let (latch, spy, pool) = (Latch::new(), Spy::new(), pool(1));
        let (results, mut cancelled) = unbounded_channel();
        let address =
            serve(spy.around(blocks_then_sends_cancelled(&latch, results).layer(OffloadLayer::new(pool.clone()))))
                .await;
        let client = Raw::with(address, GET).await;
        latch.reached().await;
        drop(client);
        spy.dropped().await;
        latch.open();
        assert_eq!(cancelled.recv().await, Some(true));
        assert_eq!(pool.stats().abandoned, 1);
    })
    .await;
}

#[tokio::test]
async fn http2_reset_cancels_a_running_handler() {
    within(async {
        let (latch, spy, pool) = (Latch::new(), Spy::new(), pool(1));
        let (results, mut cancelled) = unbounded_channel();
        let address =
            serve(spy.around(blocks_then_sends_cancelled(&latch, results).layer(OffloadLayer::new(pool.clone()))))
                .await;
        let client = Http2::connect(address).await;
        let mut stream = client.clone();
        let call = tokio::spawn(async move { stream.send(absolute(Method::GET, "/", Body::empty())).await });
        latch.reached().await;
        call.abort();
        spy.dropped().await;
        latch.open();
        assert_eq!(cancelled.recv().await, Some(true));
        drop(client); // the connection stays open until here
    })
    .await;
}

#[tokio::test]
async fn detached_work_continues_after_a_hang_up() {
    within(async {
        let (latch, spy, pool) = (Latch::new(), Spy::new(), pool(1));
        let (results, mut cancelled) = unbounded_channel();
        let layer = OffloadLayer::new(pool.clone()).detached();
        let address = serve(spy.around(blocks_then_sends_cancelled(&latch, results).layer(layer))).await;
        let client = Raw::with(address, GET).await;
        latch.reached().await;
        drop(client);
        spy.dropped().await;
        assert_eq!((pool.stats().abandoned, pool.stats().in_flight), (1, 1));
        latch.open();
        assert_eq!(cancelled.recv().await, Some(false));
        pool.run(|| ()).await.unwrap(); // it was queued behind the detached call
        assert_eq!((pool.stats().completed, pool.stats().in_flight), (2, 0));
    })
    .await;
}

#[tokio::test]
async fn detached_work_that_awaits_continues_after_a_hang_up() {
    within(async {
        let (spy, pool) = (Spy::new(), pool(1));
        let (resume, wait) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let (ends, mut ended) = unbounded_channel();
        let handler = {
            let (resume, here) = (resume.clone(), wait.clone());
            async move || {
                here.notify_one();
                resume.notified().await;
                ends.send(thread_name()).unwrap();
            }
        };
        let layer = OffloadLayer::new(pool.clone()).detached();
        let address = serve(spy.around(Router::new().route("/", get(handler)).layer(layer))).await;
        let client = Raw::with(address, GET).await;
        wait.notified().await;
        drop(client);
        spy.dropped().await;
        resume.notify_one();
        assert!(is_pool_thread(&ended.recv().await.unwrap()));
    })
    .await;
}

/// The event has the span of the request.
#[tokio::test]
async fn end_of_detached_work_is_logged() {
    use crate::tower_http::{Log, subscribe};

    within(async {
        let log = Log::new();
        let _subscribed = subscribe(&log);
        let (latch, spy, pool) = (Latch::new(), Spy::new(), pool(1));
        let (results, mut cancelled) = unbounded_channel();
        let router =
            blocks_then_sends_cancelled(&latch, results).layer(OffloadLayer::new(pool.clone()).detached()).layer(
                tower_http::trace::TraceLayer::new_for_http()
                    .make_span_with(|_: &http::Request<Body>| tracing::error_span!("the_request")),
            );
        let address = serve(spy.around(router)).await;
        let client = Raw::with(address, GET).await;
        latch.reached().await;
        drop(client);
        spy.dropped().await;
        assert!(!log.has("detached call ended"));
        latch.open();
        assert_eq!(cancelled.recv().await, Some(false));
        pool.run(|| ()).await.unwrap();
        assert!(log.has("call abandoned by its caller"));
        assert_eq!(log.span_of("detached call ended"), Some("the_request"));
    })
    .await;
}
#[tokio::test]
async fn panic_after_a_hang_up_is_logged_with_its_message() {
    use crate::tower_http::{Log, subscribe};

    within(async {
        let log = Log::new();
        let _subscribed = subscribe(&log);
        let (latch, spy, pool) = (Latch::new(), Spy::new(), pool(1));
        let handler = {
            let latch = latch.clone();
            async move || -> &'static str {
                latch.block();
                panic!("unheard {}", "panic")
            }
        };
        let router = Router::new().route("/", get(handler)).layer(OffloadLayer::new(pool.clone()));
        let address = serve(spy.around(router)).await;
        let client = Raw::with(address, GET).await;
        latch.reached().await;
        drop(client);
        spy.dropped().await;
        latch.open();
        pool.run(|| ()).await.unwrap();
        assert_eq!(pool.stats().panicked, 1);
        assert!(log.has("call panicked") && log.has("unheard panic"));
    })
    .await;
}

#[tokio::test]
async fn queued_request_never_runs_after_a_hang_up() {
    within(async {
        let (latch, spy, pool, ran) = (Latch::new(), Spy::new(), one_thread(2), Arc::new(AtomicBool::new(false)));
        let held = hold(&pool, &latch).await;
        let handler = {
            let ran = ran.clone();
            async move || ran.store(true, SeqCst)
        };
        let router = Router::new().route("/", get(handler)).layer(OffloadLayer::new(pool.clone()));
        let address = serve(spy.around(router)).await;
        let client = Raw::with(address, GET).await;
        spy.pending(1).await;
        assert_eq!((pool.stats().queued, pool.stats().in_flight), (1, 2));
        drop(client);
        spy.dropped().await;
        assert_eq!((pool.stats().abandoned, pool.stats().in_flight), (1, 1), "removed while the thread is blocked");
        latch.open();
        held.await.unwrap();
        pool.run(|| ()).await.unwrap(); // it was queued behind the cancelled call
        assert!(!ran.load(SeqCst));
        assert_eq!((pool.stats().started, pool.stats().queued), (2, 0));

        let latch = Latch::new();
        let held = hold(&pool, &latch).await;
        let both = [pool.run(|| ()), pool.run(|| ())];
        latch.open();
        for queued in both.into_iter().chain([held]) {
            queued.await.expect("both permits of the queue are released");
        }
    })
    .await;
}

#[tokio::test]
async fn shutdown_report_omits_abandoned_queued_requests() {
    within(async {
        let (latch, inner, outer, pool) = (Latch::new(), Spy::new(), Spy::new(), one_thread(4));
        let parks = Router::new().route("/park", get(async || pending::<()>().await));
        let router = inner.around(parks).route("/", get(async || "never")).layer(OffloadLayer::new(pool.clone()));
        let address = serve(outer.around(router)).await;
        let _parked = Raw::with(address, GET.replace("GET /", "GET /park")).await;
        inner.pending(1).await;
        outer.pending(1).await;
        let _held = hold(&pool, &latch).await; // the pool has one thread, so the first call has released it
        let client = Raw::with(address, GET).await;
        outer.pending(1).await;
        drop(client);
        outer.dropped().await;
        let report = pool.shutdown(std::time::Duration::ZERO).await;
        latch.open();
        assert_eq!((report.running, report.queued, report.parked), (1, 0, 1));
    })
    .await;
}

#[tokio::test]
async fn queued_detached_request_runs_after_a_hang_up() {
    within(async {
        let (first, latch, spy, pool) = (Latch::new(), Latch::new(), Spy::new(), one_thread(1));
        let held = hold(&pool, &first).await;
        let (results, mut cancelled) = unbounded_channel();
        let layer = OffloadLayer::new(pool.clone()).detached();
        let address = serve(spy.around(blocks_then_sends_cancelled(&latch, results).layer(layer))).await;
        let client = Raw::with(address, GET).await;
        spy.pending(1).await;
        drop(client);
        spy.dropped().await;
        latch.open();
        first.open();
        assert_eq!(cancelled.recv().await, Some(false));
        held.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn waiting_request_takes_no_permit_after_a_hang_up() {
    within(async {
        let (latch, spy, pool) = (Latch::new(), Spy::new(), pool(2));
        let (results, mut cancelled) = unbounded_channel();
        let layer = OffloadLayer::new(pool.clone()).max_in_flight(1).wait(std::time::Duration::MAX).max_waiting(1);
        let address = serve(spy.around(blocks_then_sends_cancelled(&latch, results).layer(layer))).await;
        let first = Raw::with(address, GET).await;
        latch.reached().await;
        let second = Raw::with(address, GET).await;
        spy.pending(2).await;
        drop(second);
        spy.dropped().await;
        let third = Raw::with(address, GET).await;
        spy.pending(1).await; // at most one request may wait, and the second one no longer does
        latch.open();
        assert!(first.read_some().await.starts_with("HTTP/1.1 200"));
        assert!(third.read_some().await.starts_with("HTTP/1.1 200"));
        assert_eq!((cancelled.recv().await, cancelled.recv().await), (Some(false), Some(false)));
        assert_eq!((pool.stats().started, pool.stats().rejected), (2, 0));
    })
    .await;
}

/// The call owns the permit, not the response future.
#[tokio::test]
async fn running_handler_keeps_its_permit_after_a_hang_up() {
    within(async {
        let (latch, spy, pool) = (Latch::new(), Spy::new(), pool(2));
        let (results, mut cancelled) = unbounded_channel();
        let layer = OffloadLayer::new(pool.clone()).max_in_flight(1);
        let address = serve(spy.around(blocks_then_sends_cancelled(&latch, results).layer(layer))).await;
        let client = Raw::with(address, GET).await;
        latch.reached().await;
        drop(client);
        spy.dropped().await;
        crate::support::get(address, "/").await.assert_unavailable();
        latch.open();
        assert_eq!(cancelled.recv().await, Some(true));
        while pool.stats().in_flight > 0 {
            tokio::task::yield_now().await;
        }
        crate::support::get(address, "/").await.assert_ok("");
    })
    .await;
}

/// The runtime is entered during the drop.
#[tokio::test]
async fn handler_that_awaits_is_dropped_on_the_pool() {
    struct OnDrop(UnboundedSender<(String, bool)>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            let in_runtime = tokio::runtime::Handle::try_current().is_ok();
            self.0.send((thread_name(), in_runtime)).unwrap();
        }
    }

    within(async {
        let (drops, mut dropped) = unbounded_channel();
        let (enters, mut entered) = unbounded_channel();
        let handler = async move || {
            let _guard = OnDrop(drops.clone());
            enters.send(()).unwrap();
            pending::<()>().await;
        };
        let pool = one_thread(1);
        let address = serve(Router::new().route("/", get(handler)).layer(OffloadLayer::new(pool.clone()))).await;
        let client = Raw::with(address, GET).await;
        entered.recv().await.unwrap();
        drop(client);
        let (thread, in_runtime) = dropped.recv().await.unwrap();
        assert!(is_pool_thread(&thread) && in_runtime, "dropped on {thread:?}, in a runtime: {in_runtime}");
    })
    .await;
}
