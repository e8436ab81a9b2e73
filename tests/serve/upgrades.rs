//! WebSockets on HTTP/1 and HTTP/2.

use std::{future::IntoFuture, time::Duration};

use axum::{
    Router,
    extract::{WebSocketUpgrade, ws::WebSocket},
    routing::any,
};
use h2::ext::Protocol;
use http::{Method, Request, Version};
use hyper::body::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, oneshot},
};
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background,
    after_response::{Delivery, End},
    axum::serve,
};

use crate::support::{in_memory, read_until, within};

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nhost: site\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
/// "hi" in a text frame with a mask of zeros (RFC 6455, section 5.2).
const MASKED_TEXT: &[u8] = b"\x81\x82\0\0\0\0hi";
const TEXT: &[u8] = b"\x81\x02hi";

/// Returns an app whose WebSocket echoes, and a receiver of the outcome of the response that began
/// it.
fn app() -> (Router, mpsc::UnboundedReceiver<(End, Delivery)>) {
    let (sender, outcomes) = mpsc::unbounded_channel();
    let echo = async move |after: AfterResponse, upgrade: WebSocketUpgrade| {
        after.hook(move |outcome| sender.send((outcome.end, outcome.delivery)).unwrap());
        upgrade.on_upgrade(|mut socket: WebSocket| async move {
            while let Some(Ok(message)) = socket.recv().await {
                if socket.send(message).await.is_err() {
                    return;
                }
            }
        })
    };
    (Router::new().route("/ws", any(echo)).layer(AfterResponseLayer::new(Background::default())), outcomes)
}

#[tokio::test]
async fn a_web_socket_on_http1_echoes() {
    let (listener, connect) = in_memory();
    let (app, mut outcomes) = app();
    tokio::spawn(serve(listener, app).into_future());
    let mut io = connect();
    io.write_all(UPGRADE.as_bytes()).await.unwrap();
    assert!(read_until(&mut io, "\r\n\r\n").await.starts_with("http/1.1 101 "));
    assert_eq!(within(outcomes.recv()).await, Some((End::Complete, Delivery::Flushed)));
    io.write_all(MASKED_TEXT).await.unwrap();
    let mut echo = [0; TEXT.len()];
    within(io.read_exact(&mut echo)).await.unwrap();
    assert_eq!(echo, TEXT);
}

/// RFC 8441.
#[tokio::test]
async fn a_web_socket_on_http2_echoes() {
    let (listener, connect) = in_memory();
    let (app, mut outcomes) = app();
    tokio::spawn(serve(listener, app).into_future());
    let (mut client, connection) = h2::client::handshake(connect()).await.unwrap();
    tokio::spawn(connection);
    // The settings of the server, which allow the protocol, arrive with its first response.
    let request = Request::get("http://site/nowhere").body(()).unwrap();
    within(client.send_request(request, true).unwrap().0).await.unwrap();
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("http://site/ws")
        .version(Version::HTTP_2)
        .header("sec-websocket-version", "13")
        .extension(Protocol::from_static("websocket"));
    let (response, mut tunnel) = client.send_request(request.body(()).unwrap(), false).unwrap();
    let response = within(response).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(within(outcomes.recv()).await, Some((End::Complete, Delivery::Flushed)));
    tunnel.send_data(Bytes::from_static(MASKED_TEXT), false).unwrap();
    assert_eq!(within(response.into_body().data()).await.unwrap().unwrap(), TEXT);
}

#[tokio::test(start_paused = true)]
async fn shutdown_leaves_a_web_socket_to_its_handler() {
    let (listener, connect) = in_memory();
    let (app, _outcomes) = app();
    let (stop, stopped) = oneshot::channel::<()>();
    let background = Background::default();
    let server = serve(listener, app).shutdown(async { drop(stopped.await) }, Duration::from_secs(10), &background);
    let server = tokio::spawn(server.into_future());
    let mut io = connect();
    io.write_all(UPGRADE.as_bytes()).await.unwrap();
    read_until(&mut io, "\r\n\r\n").await;
    drop(stop);
    assert!(within(server).await.unwrap().is_clean());
    io.write_all(MASKED_TEXT).await.unwrap();
    let mut echo = [0; TEXT.len()];
    within(io.read_exact(&mut echo)).await.unwrap();
    assert_eq!(echo, TEXT);
}
