//! HTTP/1 over an in-memory connection: clients do not notice hooks and tasks.

use axum::{Router, body::Body, extract::Request, routing::get};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::BodyExt;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tower_offload::{
    AfterResponse, Background,
    after_response::{Delivery, End, Outcome},
};

use crate::support::{Log, after_shutdown, hold, layer, logging, on_no_thread, on_threads, panics};

/// Returns a client of `router` on a connection that buffers at most `bytes`.
async fn connect(router: Router, bytes: usize) -> SendRequest<Body> {
    let (client, server) = tokio::io::duplex(bytes);
    let service = TowerToHyperService::new(router);
    let server = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service);
    tokio::spawn(async { drop(server.await) });
    let (sender, connection) = handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(async { drop(connection.await) });
    sender
}

async fn get_text(client: &mut SendRequest<Body>, path: &str) -> Bytes {
    client.ready().await.unwrap();
    let request = Request::builder().uri(path).header("host", "test").body(Body::empty()).unwrap();
    client.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes()
}

/// Returns a router whose handler registers a hook that sends the outcome, and calls `register`.
fn reporting(
    background: &Background,
    register: impl Fn(AfterResponse) + Clone + Send + Sync + 'static,
    body: impl Fn() -> Body + Clone + Send + Sync + 'static,
) -> (Router, UnboundedReceiver<Outcome>) {
    let (tx, rx) = unbounded_channel();
    let handler = async move |after: AfterResponse| {
        let tx = tx.clone();
        after.hook(move |outcome| tx.send(outcome.clone()).unwrap());
        register(after);
        body()
    };
    (Router::new().route("/{*path}", get(handler)).layer(layer(background)), rx)
}

#[tokio::test]
async fn response_and_next_request_do_not_wait_for_tasks() {
    let background = on_threads(1).max_running(1).build();
    let held = hold(&background).await;
    let (router, mut rx) =
        reporting(&background, |after| drop(after.spawn_blocking(|| ()).unwrap()), || Body::from("body"));
    let mut client = connect(router, 1024).await;
    for number in 1..=3 {
        assert_eq!(get_text(&mut client, "/a").await, "body");
        let outcome = rx.recv().await.unwrap();
        assert_eq!((outcome.end, outcome.delivery, outcome.body_bytes), (End::Complete, Delivery::HandedOver, 4));
        assert!(rx.try_recv().is_err());
        assert_eq!(background.stats().completed, 0, "request {number}: the tasks wait");
    }
    held.release();
    assert_eq!(after_shutdown(&background).await.completed, 4);
}

/// The connection buffers only a few bytes.
#[tokio::test]
async fn task_runs_after_the_last_chunk_was_taken() {
    let (background, log) = (on_no_thread(), Log::default());
    let (written, ran) = (log.clone(), log.clone());
    let body = move || {
        let log = written.clone();
        Body::from_stream(futures_util::stream::iter(0..4).map(move |chunk| {
            log.add(format!("chunk {chunk}"));
            Ok::<_, std::convert::Infallible>(vec![b'.'; 100])
        }))
    };
    let (router, mut rx) =
        reporting(&background, move |after| drop(after.spawn_blocking(ran.adds("task")).unwrap()), body);
    let mut client = connect(router, 16).await;
    assert_eq!(get_text(&mut client, "/a").await.len(), 400);
    assert_eq!(rx.recv().await.unwrap().body_bytes, 400);
    after_shutdown(&background).await;
    assert_eq!(log.entries(), ["chunk 0", "chunk 1", "chunk 2", "chunk 3", "task"]);
}

#[tokio::test]
async fn panicking_task_leaves_the_connection_open() {
    let (background, failures) = logging(on_threads(1));
    let register = |after: AfterResponse| {
        after.spawn_blocking(|| panics("in a task")).unwrap();
        after.spawn(async { panics("in an async task") }).unwrap();
        after.hook(|_| panics("in a hook"));
    };
    let (router, mut rx) = reporting(&background, register, || Body::from("body"));
    let mut client = connect(router, 1024).await;
    for _ in 0..3 {
        assert_eq!(get_text(&mut client, "/a").await, "body");
        assert_eq!(rx.recv().await.unwrap().end, End::Complete);
    }
    assert_eq!(after_shutdown(&background).await.failed, 6);
    assert_eq!(failures.entries().len(), 6);
}

#[tokio::test]
async fn disconnect_after_the_body_cancels_nothing() {
    let background = on_threads(1).build();
    let held = hold(&background).await;
    let (router, mut rx) = reporting(&background, |after| drop(after.spawn(async {}).unwrap()), || Body::from("body"));
    let mut client = connect(router, 1024).await;
    assert_eq!(get_text(&mut client, "/a").await, "body");
    drop(client);
    assert_eq!(rx.recv().await.unwrap().end, End::Complete);
    held.release();
    assert_eq!(after_shutdown(&background).await.completed, 2);
}

#[tokio::test]
async fn disconnect_during_the_body_is_aborted_and_runs_the_task() {
    let background = on_no_thread();
    let body = || Body::from_stream(futures_util::stream::repeat_with(|| Ok::<_, std::convert::Infallible>("more")));
    let (router, mut rx) = reporting(&background, |after| drop(after.spawn_blocking(|| ()).unwrap()), body);
    let mut client = connect(router, 64).await;
    client.ready().await.unwrap();
    let request = Request::builder().uri("/a").header("host", "test").body(Body::empty()).unwrap();
    let mut response = client.send_request(request).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    drop((response, client));
    let outcome = rx.recv().await.unwrap();
    assert_eq!((outcome.end, outcome.delivery), (End::Aborted, Delivery::NotDelivered));
    assert!(outcome.body_bytes > 0);
    assert_eq!(after_shutdown(&background).await.completed, 1);
}

#[tokio::test]
async fn graceful_shutdown_of_server_then_background_loses_nothing() {
    let background = on_threads(1).build();
    let (router, mut rx) =
        reporting(&background, |after| drop(after.spawn_blocking(|| ()).unwrap()), || Body::from("body"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async { stopped.await.unwrap() };
    let server = tokio::spawn(axum::serve(listener, router).with_graceful_shutdown(stopped).into_future());
    let (mut client, connection) = handshake(TokioIo::new(socket.await.unwrap())).await.unwrap();
    tokio::spawn(async { drop(connection.await) });
    assert_eq!(get_text(&mut client, "/a").await, "body");
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
    let report = background.shutdown(crate::support::LONG).await;
    assert!(report.is_clean());
    assert_eq!(background.stats().completed, 1);
    assert!(rx.recv().await.is_some());
}

/// The runtime has one thread. If the task held it, the second request would not be served.
#[tokio::test]
async fn async_task_that_blocks_delays_no_other_request() {
    let background = Background::default();
    let (started, starts) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let parts = std::sync::Arc::new(std::sync::Mutex::new(Some((started, released))));
    let blocks = async move |after: AfterResponse| {
        let (started, released) = parts.lock().unwrap().take().unwrap();
        let work = async move {
            started.send(()).unwrap();
            released.recv_timeout(crate::support::LONG).map_err(|_| "no other request was served")
        };
        after.spawn(work).unwrap();
        "blocks"
    };
    let router = Router::new().route("/blocks", get(blocks)).route("/ping", get(async || "pong"));
    let router = router.layer(layer(&background));
    let mut client = connect(router.clone(), 1024).await;
    assert_eq!(get_text(&mut client, "/blocks").await, "blocks");
    starts.await.unwrap();
    for client in [&mut client, &mut connect(router, 1024).await] {
        assert_eq!(get_text(client, "/ping").await, "pong");
    }
    release.send(()).unwrap();
    assert_eq!(after_shutdown(&background).await.completed, 1);
}
