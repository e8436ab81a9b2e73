//! Clients that hang up while their request is queued, runs or awaits.

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
    OffloadLayer, ThreadPool,
    offload::{cancellation, cancelled},
    pool::{Pool, Run},
};

use crate::support::{
    GET, Http2, Latch, Raw, Spy, absolute, is_pool_thread, one_thread, pool, serve, thread_name, within,
};

/// A sync handler that blocks at the latch and then says whether it is still wanted.
fn asks(latch: &Latch, answers: UnboundedSender<bool>) -> Router {
    let latch = latch.clone();
    Router::new().route(
        "/",
        get(async move || {
            let token = cancellation();
            assert!(!cancelled() && !token.is_cancelled());
            latch.block();
            assert_eq!(cancelled(), token.is_cancelled());
            answers.send(cancelled()).unwrap();
        }),
    )
}

/// Has the pool's only thread wait at the latch.
async fn hold(pool: &ThreadPool, latch: &Latch) -> Run<()> {
    let held = pool.run({
        let latch = latch.clone();
        move || latch.block()
    });
    latch.reached().await;
    held
}

/// E10
#[tokio::test]
async fn a_client_that_hangs_up_cancels_the_running_handler() {
    within(async {
        let (latch, spy, pool) = (Latch::new(), Spy::new(), pool(1));
        let (answers, mut cancelled) = unbounded_channel();
        let address = serve(spy.around(asks(&latch, answers).layer(OffloadLayer::new(pool.clone())))).await;
        let client = Raw::with(address, GET).await;
        latch.reached().await;
        drop(client);
        spy.left().await;
        latch.open();
        assert_eq!(cancelled.recv().await, Some(true));
        assert_eq!(pool.stats().abandoned, 1);
    })
    .await;
}

/// E10
#[tokio::test]
async fn a_reset_http2_stream_cancels_the_running_handler() {
    within(async {
        let (latch, spy, pool) = (Latch::new(), Spy::new(), pool(1));
        let (answers, mut cancelled) = unbounded_channel();
        let address = serve(spy.around(asks(&latch, answers).layer(OffloadLayer::new(pool.clone())))).await;
        let client = Http2::connect(address).await;
        let mut stream = client.clone();
        let call = tokio::spawn(async move { stream.send(absolute(Method::GET, "/", Body::empty())).await });
        latch.reached().await;
        call.abort();
        spy.left().await;
        latch.open();
        assert_eq!(cancelled.recv().await, Some(true));
        drop(client); // the connection was up all the time
    })
    .await;
}

/// P8, E10
#[tokio::test]
async fn detached_work_ends_though_its_client_hangs_up() {
    within(async {
        let (latch, spy, pool) = (Latch::new(), Spy::new(), pool(1));
        let (answers, mut cancelled) = unbounded_channel();
        let layer = OffloadLayer::new(pool.clone()).detached();
        let address = serve(spy.around(asks(&latch, answers).layer(layer))).await;
        let client = Raw::with(address, GET).await;
        latch.reached().await;
        drop(client);
        spy.left().await;
        assert_eq!((pool.stats().abandoned, pool.stats().in_flight), (1, 1));
        latch.open();
        assert_eq!(cancelled.recv().await, Some(false));
        pool.run(|| ()).await.unwrap(); // behind it on the only thread
        assert_eq!((pool.stats().completed, pool.stats().in_flight), (2, 0));
    })
    .await;
}

/// P8, E10: work that awaits, and goes on after the hang-up on the pool.
#[tokio::test]
async fn detached_work_that_awaits_ends_though_its_client_hangs_up() {
    within(async {
        let (spy, pool) = (Spy::new(), pool(1));
        let (go_on, wait) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let (ends, mut ended) = unbounded_channel();
        let handler = {
            let (go_on, here) = (go_on.clone(), wait.clone());
            async move || {
                here.notify_one();
                go_on.notified().await;
                ends.send(thread_name()).unwrap();
            }
        };
        let layer = OffloadLayer::new(pool.clone()).detached();
        let address = serve(spy.around(Router::new().route("/", get(handler)).layer(layer))).await;
        let client = Raw::with(address, GET).await;
        wait.notified().await;
        drop(client);
        spy.left().await;
        go_on.notify_one();
        assert!(is_pool_thread(&ended.recv().await.unwrap()));
    })
    .await;
}

/// P8: the end of detached work is logged, and with the span of its request.
#[tokio::test]
async fn the_end_of_detached_work_is_logged() {
    use crate::tower_http::{Log, subscribe};

    within(async {
        let log = Log::new();
        let _subscribed = subscribe(&log);
        let (latch, spy, pool) = (Latch::new(), Spy::new(), pool(1));
        let (answers, mut cancelled) = unbounded_channel();
        let router = asks(&latch, answers).layer(OffloadLayer::new(pool.clone()).detached()).layer(
            tower_http::trace::TraceLayer::new_for_http()
                .make_span_with(|_: &http::Request<Body>| tracing::error_span!("the_request")),
        );
        let address = serve(spy.around(router)).await;
        let client = Raw::with(address, GET).await;
        latch.reached().await;
        drop(client);
        spy.left().await;
        assert!(!log.has("detached call ended"));
        latch.open();
        assert_eq!(cancelled.recv().await, Some(false));
        pool.run(|| ()).await.unwrap();
        assert!(log.has("call abandoned by its caller"));
        assert_eq!(log.span_of("detached call ended"), Some("the_request"));
    })
    .await;
}

/// P20: a panic after the client hung up is counted and logged with its message.
#[tokio::test]
async fn a_panic_after_the_hang_up_is_logged_with_its_message() {
    use crate::tower_http::{Log, subscribe};

    within(async {
        let log = Log::new();
        let _subscribed = subscribe(&log);
        let (latch, spy, pool) = (Latch::new(), Spy::new(), pool(1));
        let handler = {
            let latch = latch.clone();
            async move || -> &'static str {
                latch.block();
                panic!("nobody {}", "listens")
            }
        };
        let router = Router::new().route("/", get(handler)).layer(OffloadLayer::new(pool.clone()));
        let address = serve(spy.around(router)).await;
        let client = Raw::with(address, GET).await;
        latch.reached().await;
        drop(client);
        spy.left().await;
        latch.open();
        pool.run(|| ()).await.unwrap();
        assert_eq!(pool.stats().panicked, 1);
        assert!(log.has("call panicked") && log.has("nobody listens"));
    })
    .await;
}

/// P5, E4
#[tokio::test]
async fn a_queued_request_whose_client_hangs_up_never_runs() {
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
        spy.left().await;
        assert_eq!((pool.stats().abandoned, pool.stats().in_flight), (1, 1), "gone, though the thread is held");
        latch.open();
        held.await.unwrap();
        pool.run(|| ()).await.unwrap(); // behind it in the queue
        assert!(!ran.load(SeqCst));
        assert_eq!((pool.stats().started, pool.stats().queued), (2, 0));

        let latch = Latch::new();
        let held = hold(&pool, &latch).await;
        let both = [pool.run(|| ()), pool.run(|| ())];
        latch.open();
        for queued in both.into_iter().chain([held]) {
            queued.await.expect("both places in the queue are free again");
        }
    })
    .await;
}

/// E15: what a shutdown leaves is named as what it is, though a client of a queued call has left.
#[tokio::test]
async fn a_shutdown_does_not_count_a_queued_request_whose_client_hung_up() {
    within(async {
        let (latch, inner, outer, pool) = (Latch::new(), Spy::new(), Spy::new(), one_thread(4));
        let parks = Router::new().route("/park", get(async || pending::<()>().await));
        let router = inner.around(parks).route("/", get(async || "never")).layer(OffloadLayer::new(pool.clone()));
        let address = serve(outer.around(router)).await;
        let _parked = Raw::with(address, GET.replace("GET /", "GET /park")).await;
        inner.pending(1).await;
        outer.pending(1).await;
        let _held = hold(&pool, &latch).await; // so the first call has given the thread back
        let client = Raw::with(address, GET).await;
        outer.pending(1).await;
        drop(client);
        outer.left().await;
        let left = pool.shutdown(std::time::Duration::ZERO).await;
        latch.open();
        assert_eq!((left.running, left.queued, left.parked), (1, 0, 1));
    })
    .await;
}

/// P8: work that was accepted, though not started, is detached as well.
#[tokio::test]
async fn a_queued_detached_request_runs_though_its_client_hangs_up() {
    within(async {
        let (first, latch, spy, pool) = (Latch::new(), Latch::new(), Spy::new(), one_thread(1));
        let held = hold(&pool, &first).await;
        let (answers, mut cancelled) = unbounded_channel();
        let layer = OffloadLayer::new(pool.clone()).detached();
        let address = serve(spy.around(asks(&latch, answers).layer(layer))).await;
        let client = Raw::with(address, GET).await;
        spy.pending(1).await;
        drop(client);
        spy.left().await;
        latch.open();
        first.open();
        assert_eq!(cancelled.recv().await, Some(false));
        held.await.unwrap();
    })
    .await;
}

/// E4: one that waits for a place leaves no trace either.
#[tokio::test]
async fn a_waiting_request_whose_client_hangs_up_takes_no_place() {
    within(async {
        let (latch, spy, pool) = (Latch::new(), Spy::new(), pool(2));
        let (answers, mut cancelled) = unbounded_channel();
        let layer = OffloadLayer::new(pool.clone()).max_in_flight(1).wait(std::time::Duration::MAX).max_waiting(1);
        let address = serve(spy.around(asks(&latch, answers).layer(layer))).await;
        let first = Raw::with(address, GET).await;
        latch.reached().await;
        let second = Raw::with(address, GET).await;
        spy.pending(2).await;
        drop(second);
        spy.left().await;
        let third = Raw::with(address, GET).await;
        spy.pending(1).await; // it may wait: the second does not any more
        latch.open();
        assert!(first.read_some().await.starts_with("HTTP/1.1 200"));
        assert!(third.read_some().await.starts_with("HTTP/1.1 200"));
        assert_eq!((cancelled.recv().await, cancelled.recv().await), (Some(false), Some(false)));
        assert_eq!((pool.stats().started, pool.stats().rejected), (2, 0));
    })
    .await;
}

/// P4: the place is the job's, not the client's.
#[tokio::test]
async fn a_client_that_hangs_up_frees_no_place_while_its_handler_runs() {
    within(async {
        let (latch, spy, pool) = (Latch::new(), Spy::new(), pool(2));
        let (answers, mut cancelled) = unbounded_channel();
        let layer = OffloadLayer::new(pool.clone()).max_in_flight(1);
        let address = serve(spy.around(asks(&latch, answers).layer(layer))).await;
        let client = Raw::with(address, GET).await;
        latch.reached().await;
        drop(client);
        spy.left().await;
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

/// E10: a future that awaits is dropped on the pool, inside the runtime.
#[tokio::test]
async fn a_handler_that_awaits_is_dropped_on_the_pool() {
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
