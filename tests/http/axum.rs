//! Every way to add the layer to an axum application, with the default strategy and without
//! `HandleErrorLayer`.

use std::convert::Infallible;

use axum::{
    Router,
    extract::{
        Request,
        ws::{Message, WebSocketUpgrade},
    },
    handler::Handler,
    http::StatusCode,
    response::IntoResponse,
    routing::{any, get},
};
use tower::ServiceBuilder;
use tower_offload::{
    OffloadLayer,
    offload::service_fn_blocking,
    pool::{Inline, Pool, TokioBlocking},
};

use crate::support::{self, Raw, is_pool_thread, one_thread, pool, serve, thread_name, within};

async fn current_thread() -> String {
    thread_name()
}

async fn assert_offloaded(router: Router) {
    let response = support::get(serve(router).await, "/").await;
    assert_eq!(response.status, StatusCode::OK);
    assert!(is_pool_thread(response.text()), "ran on {:?}", response.text());
}

#[tokio::test]
async fn without_the_layer_a_handler_runs_on_the_runtime() {
    within(async {
        let response = support::get(serve(Router::new().route("/", get(current_thread))).await, "/").await;
        assert!(!is_pool_thread(response.text()), "ran on {:?}", response.text());
    })
    .await;
}

#[tokio::test]
async fn router_layer_offloads() {
    within(assert_offloaded(Router::new().route("/", get(current_thread)).layer(OffloadLayer::new(pool(2))))).await;
}

#[tokio::test]
async fn router_layer_offloads_the_fallback() {
    within(assert_offloaded(Router::new().fallback(current_thread).layer(OffloadLayer::new(pool(2))))).await;
}

#[tokio::test]
async fn router_layer_offloads_a_nested_router() {
    within(async {
        let router = Router::new().nest("/nested", Router::new().route("/route", get(current_thread)));
        let address = serve(router.layer(OffloadLayer::new(pool(2)))).await;
        assert!(is_pool_thread(support::get(address, "/nested/route").await.text()));
    })
    .await;
}

#[tokio::test]
async fn route_layer_offloads() {
    within(assert_offloaded(Router::new().route("/", get(current_thread)).route_layer(OffloadLayer::new(pool(2)))))
        .await;
}

#[tokio::test]
async fn route_layer_leaves_a_404_on_the_runtime() {
    within(async {
        let pool = pool(2);
        let router = Router::new().route("/", get(current_thread)).route_layer(OffloadLayer::new(pool.clone()));
        assert_eq!(support::get(serve(router).await, "/missing").await.status, StatusCode::NOT_FOUND);
        assert_eq!(pool.stats().started, 0);
    })
    .await;
}

#[tokio::test]
async fn method_router_layer_offloads() {
    within(assert_offloaded(Router::new().route("/", get(current_thread).layer(OffloadLayer::new(pool(2)))))).await;
}

#[tokio::test]
async fn handler_layer_offloads() {
    within(assert_offloaded(Router::new().route("/", get(current_thread.layer(OffloadLayer::new(pool(2))))))).await;
}

#[tokio::test]
async fn service_builder_offloads() {
    let stack = ServiceBuilder::new().layer(OffloadLayer::new(pool(2))).layer(OffloadLayer::new(pool(2)));
    within(assert_offloaded(Router::new().route("/", get(current_thread)).layer(stack))).await;
}

#[tokio::test]
async fn service_fn_blocking_is_a_route_service() {
    let name = |_: Request| Ok::<_, Infallible>(thread_name().into_response());
    let service = ServiceBuilder::new().layer(OffloadLayer::new(pool(2))).service(service_fn_blocking(name));
    within(assert_offloaded(Router::new().route_service("/", service))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn multi_thread_runtime_offloads() {
    within(assert_offloaded(Router::new().route("/", get(current_thread)).layer(OffloadLayer::new(pool(2))))).await;
}

/// Serves an application that uses a timer and `spawn`.
async fn serves_on(pool: impl Pool) {
    let nap = async || {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await; // uses the timer
        tokio::spawn(async { "done" }).await.unwrap()
    };
    let address = serve(Router::new().route("/", get(nap)).layer(OffloadLayer::new(pool))).await;
    let mut connection = support::Http1::connect(address).await;
    for _ in 0..10 {
        connection.get("/").await.assert_ok("done");
    }
}

#[tokio::test]
async fn every_pool_serves_axum() {
    within(async {
        serves_on(pool(2)).await;
        serves_on(tower_offload::ThreadPool::blocking(4)).await;
        serves_on(TokioBlocking::new(2)).await;
        serves_on(Inline::new()).await;
    })
    .await;
}
#[tokio::test]
async fn rayon_serves_axum() {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    within(serves_on(tower_offload::pool::Rayon::new(threads))).await;
}

#[tokio::test]
async fn graceful_shutdown_waits_for_an_offloaded_call() {
    within(async {
        let latch = support::Latch::new();
        let held = latch.clone();
        let handler = async move || {
            held.block();
            "done"
        };
        let router = Router::new().route("/", get(handler)).layer(OffloadLayer::new(pool(1)));
        let (listener, address) = support::bind().await;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = axum::serve(listener, router).with_graceful_shutdown(async { drop(stopped.await) });
        let server = tokio::spawn(async { server.await });

        let call = tokio::spawn(support::get(address, "/"));
        latch.reached().await;
        stop.send(()).unwrap();
        latch.open();
        call.await.unwrap().assert_ok("done");
        server.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn websocket_upgrade_passes_through_the_layer() {
    within(async {
        let upgrade = async |upgrade: WebSocketUpgrade| {
            upgrade.on_upgrade(async |mut socket| {
                while let Some(Ok(message)) = socket.recv().await {
                    if let Message::Text(text) = message {
                        socket.send(Message::Text(format!("echo {text}").into())).await.unwrap();
                    }
                }
            })
        };
        let pool = one_thread(1);
        let router = Router::new().route("/", any(upgrade)).layer(OffloadLayer::new(pool.clone()));
        let mut client = Raw::with(
            serve(router).await,
            "GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await;
        let head = client.read_until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        assert_eq!(pool.stats().in_flight, 0, "an open socket is not a call");

        let mask = [1, 2, 3, 4];
        let mut frame = vec![0x81, 0x80 | 2];
        frame.extend(mask);
        frame.extend(b"hi".iter().zip(mask).map(|(byte, mask)| byte ^ mask));
        client.write(frame).await;
        assert_eq!(client.read_exact(9).await, b"\x81\x07echo hi");
    })
    .await;
}
