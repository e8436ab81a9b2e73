//! Requests that the handler does not read, on HTTP/1.

use std::time::Duration;

use axum::{Router, routing::any};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};
use tower_offload::axum::serve;

use crate::support::{HTTP1, Server, in_memory, within};

/// Without the wait, the kernel resets the connection in most rounds, and the client loses a part
/// of the response.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_gets_the_whole_response_to_an_unread_upload() {
    const UPLOAD: usize = 30_000_000;
    const BODY: usize = 3_000_000;
    for transport in HTTP1 {
        let mut server = Server::start(transport).await;
        for round in 0..20 {
            let (mut reader, mut writer) = tokio::io::split(server.connect().await);
            let head = format!("GET /full/{BODY} HTTP/1.1\r\nhost: site\r\ncontent-length: {UPLOAD}\r\n\r\n");
            let upload = tokio::spawn(async move {
                _ = writer.write_all(head.as_bytes()).await;
                _ = writer.write_all(&vec![b'u'; UPLOAD]).await;
                writer
            });
            let mut received = Vec::new();
            let read = within(reader.read_to_end(&mut received)).await;
            let case = format!("{transport:?}, round {round}: {read:?}, {} bytes", received.len());
            assert!(read.is_ok() && received.len() > BODY, "{case}");
            server.flushed(&format!("/full/{BODY}"), BODY as u64).await;
            upload.abort();
        }
    }
}

/// Connects to a server whose handler reads no body, or all of it.
fn connect(reads: bool) -> tokio::io::DuplexStream {
    let handler = move |body: axum::body::Body| async move {
        if reads {
            axum::body::to_bytes(body, usize::MAX).await.unwrap();
        }
        "done"
    };
    let (listener, connect) = in_memory();
    tokio::spawn(serve(listener, Router::new().route("/", any(handler))).into_future());
    connect()
}

/// Waits until the server has closed its side, and returns the time.
async fn closed(io: &mut tokio::io::DuplexStream) -> Duration {
    let began = Instant::now();
    while io.write_all(b"more").await.is_ok() {
        sleep(Duration::from_millis(10)).await;
    }
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn rest_of_an_upload_is_discarded_for_a_limited_time() {
    let mut io = connect(false);
    io.write_all(b"POST / HTTP/1.1\r\nhost: site\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
    let mut response = String::new();
    io.read_to_string(&mut response).await.unwrap();
    assert!(response.ends_with("\r\n\r\ndone"), "{response}");
    let waited = closed(&mut io).await;
    assert!((4_900..5_100).contains(&waited.as_millis()), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn connection_is_closed_at_once_after_a_whole_request() {
    for body in ["content-length: 4\r\n\r\nbody", "transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"] {
        let mut io = connect(true);
        io.write_all(format!("POST / HTTP/1.1\r\nhost: site\r\nconnection: close\r\n{body}").as_bytes()).await.unwrap();
        let mut response = String::new();
        io.read_to_string(&mut response).await.unwrap();
        assert!(response.ends_with("\r\n\r\ndone"), "{response}");
        assert!(closed(&mut io).await < Duration::from_millis(100));
    }
}
