//! HTTP/1 responses that hyper never writes are not reported as flushed, even if the transport is
//! flushed or shut down.

use http::StatusCode;
use tower_offload::after_response::{Delivery, End};

use crate::{
    pipelining::{together, with_one_flush},
    support::{HTTP1, Http1, Setup, Stack, on_each},
};

/// Returns requests whose response heads hyper refuses to encode. It takes them back and closes the
/// connection. On the server's side most of these responses are complete, because their bodies are
/// not polled.
fn refused(stack: Stack) -> impl Iterator<Item = (&'static str, &'static str)> {
    let refused = [("GET", "/both/5"), ("GET", "/two/5"), ("GET", "/word/5"), ("HEAD", "/both/5"), ("HEAD", "/word/5")];
    // axum empties the body for HEAD, and then hyper ignores the length.
    refused.into_iter().filter(move |request| !(stack.is_axum() && *request == ("HEAD", "/word/5")))
}

fn of(method: &str, path: &str, fields: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: site\r\n{fields}\r\n")
}

/// With `pipeline_flush`, hyper shuts down while a response waits for the next one, which
/// `connection: close` prevents.
#[tokio::test]
async fn shutdown_with_a_buffered_response_is_not_a_flush() {
    on_each(&with_one_flush(), |stack| async move {
        for (path, length) in [("/full/5", 5), ("/chunks/2/10", 20), ("/empty", 0), ("/length/1/7", 7)] {
            let mut site = Setup::on(stack).pipeline_flush().start();
            let mut client = Http1::connect(&site).await;
            client.send(of("GET", path, "connection: close\r\n") + &of("GET", "/full/9", "")).await;
            let came = client.rest().await;
            let record = site.record(path).await;
            if record.delivery == Delivery::Flushed {
                assert!(came > length && record.taken >= came, "{came} bytes came: {record:?}");
            } else {
                assert_eq!((record.end, came), (End::Aborted, 0), "{record:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn rejected_head_is_not_flushed() {
    on_each(HTTP1, |stack| async move {
        for (method, path) in refused(stack) {
            let mut site = Setup::on(stack).start();
            let mut client = Http1::connect(&site).await;
            let before = client.wire.read();
            client.send(of(method, path, "")).await;
            assert_eq!(client.rest().await, 0, "{method} {path}");
            let record = site.record(path).await;
            assert_ne!(record.delivery, Delivery::Flushed, "{method} {record:?}");
            assert!(stack.is_tls() || client.wire.read() == before);
        }
    })
    .await;
}

/// The interim response is written and flushed, and the final one is not.
#[tokio::test]
async fn rejected_head_is_not_flushed_after_100_continue() {
    on_each(HTTP1, |stack| async move {
        for (_, path) in refused(stack).filter(|(method, _)| *method == "GET") {
            let mut site = Setup::on(stack).start();
            let mut client = Http1::connect(&site).await;
            let path = format!("/read{path}");
            client.send(of("POST", &path, "expect: 100-continue\r\ncontent-length: 3\r\n")).await;
            assert_eq!(client.head().await.status, 100);
            client.send("abc").await;
            assert_eq!(client.rest().await, 0, "{path}");
            let record = site.record(&path).await;
            assert_ne!(record.delivery, Delivery::Flushed, "{record:?}");
        }
    })
    .await;
}

/// Both responses share the flush, which covers only the first one.
#[tokio::test]
async fn rejected_head_is_not_flushed_with_the_response_before() {
    on_each(&with_one_flush(), |stack| async move {
        for (method, path) in refused(stack) {
            let mut site = Setup::on(stack).pipeline_flush().start();
            let mut client = Http1::connect(&site).await;
            client.send(of("GET", "/full/3", "") + &of(method, path, "")).await;
            assert_eq!(client.answer().await.body, 3);
            assert_eq!(client.rest().await, 0, "{method} {path}");
            site.record("/full/3").await.is_flushed(3);
            let record = site.record(path).await;
            assert_ne!(record.delivery, Delivery::Flushed, "{method} {record:?}");
        }
    })
    .await;
}

/// hyper sends a 500 instead, which has no outcome.
#[tokio::test]
async fn informational_status_is_a_handler_error() {
    on_each(HTTP1, |stack| async move {
        for path in ["/status/102/0", "/status/103/0", "/status/103/5"] {
            let mut site = Setup::on(stack).start();
            let mut client = Http1::connect(&site).await;
            client.send(together(&[path])).await;
            assert_eq!(client.head().await.status, 500);
            let record = site.record(path).await;
            record.is(End::HandlerError, Delivery::NotDelivered);
            assert_eq!((record.status, record.is_success), (None::<StatusCode>, false), "{record:?}");
        }
    })
    .await;
}

/// The bytes for the tunnel follow the request, so hyper hands over the connection without writing
/// the head.
#[tokio::test]
async fn flush_of_tunnel_bytes_is_not_the_flush_of_its_head() {
    on_each(&with_one_flush(), |stack| async move {
        let mut site = Setup::on(stack).pipeline_flush().start();
        let mut client = Http1::connect(&site).await;
        client.send(of("GET", "/upgrade", "connection: upgrade\r\nupgrade: capitals\r\n") + "through the tunnel").await;
        if client.exactly(18).await == b"THROUGH THE TUNNEL" {
            client.shut_writing().await;
            assert_eq!(client.rest().await, 0);
            site.record("/upgrade").await.is(End::Aborted, Delivery::NotDelivered);
        } else {
            site.record("/upgrade").await.is_flushed(0);
        }
    })
    .await;
}
