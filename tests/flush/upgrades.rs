//! Responses whose connection or stream becomes a tunnel. The outcome comes with the head.

use bytes::Bytes;
use h2::ext::Protocol;
use http::{Method, Request, StatusCode, Version};
use tower_offload::after_response::{Delivery, End};

use crate::support::{Http1, Http2, Setup, Stack, drain, on_each};

const HYPER_HTTP1: &[Stack] = &[Stack::HyperHttp1, Stack::AutoHttp1, Stack::TlsHttp1];
const HYPER_HTTP2: &[Stack] = &[Stack::HyperHttp2, Stack::AutoHttp2, Stack::TlsHttp2];

#[tokio::test]
async fn switching_protocols_is_flushed_with_its_head() {
    on_each(HYPER_HTTP1, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        client.send("GET /upgrade HTTP/1.1\r\nhost: site\r\nconnection: upgrade\r\nupgrade: capitals\r\n\r\n").await;
        assert_eq!(client.head().await.status, 101);
        let record = site.record("/upgrade").await;
        record.is_flushed(0);
        assert_eq!(record.status, Some(StatusCode::SWITCHING_PROTOCOLS));
        client.send("through the tunnel").await;
        assert_eq!(client.exactly(18).await, b"THROUGH THE TUNNEL");
    })
    .await;
}

#[tokio::test]
async fn connect_on_http1_is_flushed_with_its_head() {
    on_each(HYPER_HTTP1, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        client.send("CONNECT other:80 HTTP/1.1\r\nhost: other:80\r\n\r\n").await;
        assert_eq!(client.head().await.status, 200);
        site.record("CONNECT").await.is_flushed(0);
        client.send("through the tunnel").await;
        assert_eq!(client.exactly(18).await, b"THROUGH THE TUNNEL");
    })
    .await;
}

/// The stream ends with the tunnel, long after the response.
#[tokio::test]
async fn connect_on_http2_is_flushed_with_its_head() {
    on_each(HYPER_HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::connect(&site).await;
        let request = Request::builder().method(Method::CONNECT).uri("other:80").version(Version::HTTP_2);
        let (response, mut tunnel) = client.send(request.body(()).unwrap(), false).await;
        let mut back = response.await.unwrap().into_body();
        let record = site.record("CONNECT").await;
        record.is(End::Complete, Delivery::Flushed);
        assert_eq!(record.body_bytes, 0);
        tunnel.send_data(Bytes::from_static(b"through"), false).unwrap();
        assert_eq!(back.data().await.unwrap().unwrap(), "THROUGH");
        assert_eq!(client.get("/full/5").await.unwrap().body, 5);
        site.record("/full/5").await.is_flushed(5);
        tunnel.send_data(Bytes::new(), true).unwrap();
        let rest = drain(back).await.unwrap();
        assert_eq!(rest.0, 0);
        assert!(site.unasked().is_empty());
    })
    .await;
}

#[tokio::test]
async fn reset_of_a_tunnel_has_no_outcome() {
    on_each(HYPER_HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::connect(&site).await;
        let request = Request::builder().method(Method::CONNECT).uri("other:80").version(Version::HTTP_2);
        let (response, mut tunnel) = client.send(request.body(()).unwrap(), false).await;
        let back = response.await.unwrap();
        site.record("CONNECT").await.is(End::Complete, Delivery::Flushed);
        tunnel.send_reset(h2::Reason::CANCEL);
        drop(back);
        assert_eq!(client.get("/full/5").await.unwrap().body, 5);
        site.record("/full/5").await.is_flushed(5);
        assert!(site.unasked().is_empty());
    })
    .await;
}

#[tokio::test]
async fn web_socket_on_http1_is_flushed_with_its_head() {
    on_each(&[Stack::AxumHttp1], |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        client
            .send(
                "GET /ws HTTP/1.1\r\nhost: site\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            )
            .await;
        assert_eq!(client.head().await.status, 101);
        site.record("/ws").await.is_flushed(0);
        client.send(MASKED_TEXT).await;
        assert_eq!(client.exactly(4).await, b"\x81\x02hi");
    })
    .await;
}

/// RFC 8441.
#[tokio::test]
async fn web_socket_on_http2_is_flushed_with_its_head() {
    on_each(&[Stack::AxumHttp2], |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::connect(&site).await;
        // The server's settings, which allow the protocol, arrived before its first response.
        client.get("/full/5").await.unwrap();
        site.record("/full/5").await.is_flushed(5);
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri("http://site/ws")
            .version(Version::HTTP_2)
            .header("sec-websocket-version", "13")
            .extension(Protocol::from_static("websocket"));
        let (response, mut tunnel) = client.send(request.body(()).unwrap(), false).await;
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let record = site.record("/ws").await;
        record.is(End::Complete, Delivery::Flushed);
        assert_eq!(record.body_bytes, 0);
        tunnel.send_data(Bytes::from_static(MASKED_TEXT), false).unwrap();
        assert_eq!(&*response.into_body().data().await.unwrap().unwrap(), b"\x81\x02hi");
    })
    .await;
}

#[tokio::test]
async fn denied_web_socket_is_an_ordinary_response() {
    on_each(&[Stack::AxumHttp1], |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        client
            .send("GET /status/403/0 HTTP/1.1\r\nhost: site\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            .await;
        assert_eq!(client.answer().await.status, 403);
        site.record("/status/403/0").await.is_flushed(0);
        assert_eq!(client.get("/full/5").await.body, 5);
    })
    .await;
}

#[tokio::test]
async fn upgrades_on_an_untracked_connection_are_handed_over() {
    on_each(HYPER_HTTP1, |stack| async move {
        let mut site = Setup::on(stack).untracked().start();
        let mut client = Http1::connect(&site).await;
        client.send("GET /upgrade HTTP/1.1\r\nhost: site\r\nconnection: upgrade\r\nupgrade: capitals\r\n\r\n").await;
        site.record("/upgrade").await.is(End::Complete, Delivery::HandedOver);
    })
    .await;
}

/// "hi" in a text frame with a mask of zeros (RFC 6455, section 5.2).
const MASKED_TEXT: &[u8] = b"\x81\x82\0\0\0\0hi";
