//! Acknowledged responses that end in every way: the rows of the table in
//! `src/flush/ARCHITECTURE.md`.

use http::{Method, Request, Version};
use tower_offload::after_response::{Delivery, End};

use super::requesting;
use crate::support::{ALL, Client, HTTP1, HTTP2, Http1, Http2, Site, Stack, on_each};

const HYPER_HTTP1: &[Stack] = &[Stack::HyperHttp1, Stack::AutoHttp1, Stack::TlsHttp1];
const HYPER_HTTP2: &[Stack] = &[Stack::HyperHttp2, Stack::AutoHttp2, Stack::TlsHttp2];

/// Checks that this response was acknowledged, and is the only one that was.
async fn is_acknowledged(site: &mut Site, path: &str) {
    site.record(path).await.is(End::Complete, Delivery::Acknowledged);
    let stats = site.sure_stats();
    assert_eq!((stats.flushed, stats.acknowledged, stats.unacknowledged), (1, 1, 0), "{stats:?}");
}

#[tokio::test]
async fn complete_response_is_acknowledged() {
    on_each(ALL, |stack| async move {
        let mut site = requesting(stack).start();
        let mut client = Client::connect(&site).await;
        let paths = [
            "/full/5",
            "/full/1000000",
            "/chunks/3/1000",
            "/trailers/10",
            "/full/0",
            "/empty",
            "/status/204/0",
            "/status/304/0",
            "/status/404/9",
        ];
        for path in paths {
            client.get(path).await;
            site.record(path).await.is(End::Complete, Delivery::Acknowledged);
        }
        for path in ["/full/5?head", "/chunks/3/1000?head", "/empty?head"] {
            client.head(path).await;
            site.record(path).await.is(End::Complete, Delivery::Acknowledged);
        }
        let stats = site.sure_stats();
        let all = paths.len() as u64 + 3;
        assert_eq!((stats.flushed, stats.acknowledged, stats.unacknowledged), (all, all, 0), "{stats:?}");
    })
    .await;
}

#[tokio::test]
async fn incomplete_response_waits_for_no_acknowledgement() {
    on_each(HTTP1, |stack| async move {
        for (path, end) in [("/short/10/5", End::BodyTooShort), ("/error/1/10", End::BodyError)] {
            let mut site = requesting(stack).start();
            let mut client = Http1::connect(&site).await;
            client.send_get(path).await;
            site.record(path).await.is(end, Delivery::NotDelivered);
            let stats = site.sure_stats();
            assert_eq!((stats.flushed, stats.acknowledged, stats.unacknowledged), (0, 0, 0), "{stats:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn stream_that_is_reset_before_its_flush_waits_for_no_acknowledgement() {
    on_each(HTTP2, |stack| async move {
        let mut site = requesting(stack).start();
        let mut client = Http2::connect(&site).await;
        client.get("/error/1/10").await.unwrap_err();
        site.record("/error/1/10").await.is(End::BodyError, Delivery::NotDelivered);
        let response = client.start("/hang/5").await.await.unwrap();
        drop(response);
        site.record("/hang/5").await.is(End::Aborted, Delivery::NotDelivered);
        client.get("/full/5").await.unwrap();
        is_acknowledged(&mut site, "/full/5").await;
    })
    .await;
}

#[tokio::test]
async fn pipelined_responses_are_acknowledged() {
    on_each(HTTP1, |stack| async move {
        let mut site = requesting(stack).start();
        let mut client = Http1::connect(&site).await;
        let request = |n: u64| format!("GET /full/{n} HTTP/1.1\r\nhost: site\r\n");
        let heads: String = (1..=4).map(|n| request(n) + "\r\n").collect();
        client.send(heads + &request(5) + "connection: close\r\n\r\n").await;
        for n in 1..=5 {
            assert_eq!(client.answer().await.body, n);
            site.record(&format!("/full/{n}")).await.is(End::Complete, Delivery::Acknowledged);
        }
        assert_eq!(client.rest().await, 0);
    })
    .await;
}

/// The server closes the connection after the response, and waits for the acknowledgement before.
/// The end of the connection counts as a byte, which is behind those of the response.
#[tokio::test]
async fn last_response_of_a_connection_is_acknowledged() {
    on_each(HTTP1, |stack| async move {
        // The body of `/length` never ends.
        for (path, body) in [("/full/77", 77), ("/chunks/3/10", 30), ("/length/3/10", 30), ("/empty", 0)] {
            // On HTTP/1.0 the end of the connection is the end of a body without a length.
            for (version, fields) in [("1.1", "connection: close\r\n"), ("1.0", "")] {
                let mut site = requesting(stack).start();
                let mut client = Http1::connect(&site).await;
                client.send(format!("GET {path} HTTP/{version}\r\nhost: site\r\n{fields}\r\n")).await;
                assert_eq!(client.answer().await.body, body, "{path}, HTTP/{version}");
                is_acknowledged(&mut site, path).await;
                assert_eq!(client.rest().await, 0);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn tunnel_on_http1_is_acknowledged_with_its_head() {
    on_each(HYPER_HTTP1, |stack| async move {
        for (request, path) in [
            ("GET /upgrade HTTP/1.1\r\nhost: site\r\nconnection: upgrade\r\nupgrade: capitals\r\n\r\n", "/upgrade"),
            ("CONNECT other:80 HTTP/1.1\r\nhost: other:80\r\n\r\n", "CONNECT"),
        ] {
            let mut site = requesting(stack).start();
            let mut client = Http1::connect(&site).await;
            client.send(request).await;
            client.head().await;
            is_acknowledged(&mut site, path).await;
            client.send("through the tunnel").await;
            assert_eq!(client.exactly(18).await, b"THROUGH THE TUNNEL");
        }
    })
    .await;
}

#[tokio::test]
async fn tunnel_on_http2_is_acknowledged_with_its_head() {
    on_each(HYPER_HTTP2, |stack| async move {
        let mut site = requesting(stack).start();
        let mut client = Http2::connect(&site).await;
        let request = Request::builder().method(Method::CONNECT).uri("other:80").version(Version::HTTP_2);
        let (response, _tunnel) = client.send(request.body(()).unwrap(), false).await;
        let _back = response.await.unwrap();
        is_acknowledged(&mut site, "CONNECT").await;
    })
    .await;
}
