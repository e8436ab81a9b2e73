//! Requests and responses pass through the layer unchanged.

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, Request},
    http::StatusCode,
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{future::join_all, stream};
use http::Method;
use tower_offload::OffloadLayer;

use crate::support::{self, Http1, Http2, Raw, absolute, one_thread, request, send, serve, within};

/// Returns routes that echo the body as a stream and from a buffer, and routes with short
/// responses.
fn echo() -> Router {
    Router::new()
        .route("/stream", post(async |request: Request| Response::new(request.into_body())))
        .route("/buffer", post(async |body: Bytes| body))
        .route("/none", get(async || StatusCode::NO_CONTENT))
        .route("/some", get(async || ([("x-kept", "yes")], "some")))
        .layer(DefaultBodyLimit::disable())
        .layer(OffloadLayer::new(one_thread(64)))
}

/// Returns pseudo-random bytes.
fn bytes(length: usize) -> Bytes {
    let mut state = 1_u32;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

#[tokio::test]
async fn head_response_has_no_body() {
    within(async {
        let mut connection = Http1::connect(serve(echo()).await).await;
        let response = connection.send(request(Method::HEAD, "/some", Body::empty())).await;
        assert_eq!((response.status, response.text()), (StatusCode::OK, ""));
        assert_eq!((response.header("content-length"), response.header("x-kept")), ("4", "yes"));
        connection.get("/some").await.assert_ok("some");
    })
    .await;
}

#[tokio::test]
async fn no_content_response_has_no_body() {
    within(async {
        let mut connection = Http1::connect(serve(echo()).await).await;
        let response = connection.get("/none").await;
        assert_eq!((response.status, response.text()), (StatusCode::NO_CONTENT, ""));
        assert_eq!((response.header("content-length"), response.header("transfer-encoding")), ("", ""));
        connection.get("/some").await.assert_ok("some");
    })
    .await;
}

#[tokio::test]
async fn responses_of_axum_itself_pass() {
    within(async {
        let address = serve(echo()).await;
        assert_eq!(support::get(address, "/missing").await.status, StatusCode::NOT_FOUND);
        let response = send(address, request(Method::DELETE, "/some", Body::empty())).await;
        assert_eq!((response.status, response.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET,HEAD"));
    })
    .await;
}

#[tokio::test]
async fn large_bodies_are_echoed_unchanged() {
    within(async {
        let (address, sent) = (serve(echo()).await, bytes(8 << 20));
        let (mut http1, mut http2) = (Http1::connect(address).await, Http2::connect(address).await);
        for path in ["/buffer", "/stream"] {
            let response = http1.send(request(Method::POST, path, sent.clone())).await;
            assert!(response.status.is_success() && response.body == sent, "{path} over HTTP/1");
            let response = http2.send(absolute(Method::POST, path, sent.clone())).await;
            assert!(response.status.is_success() && response.body == sent, "{path} over HTTP/2");
        }
    })
    .await;
}

#[tokio::test]
async fn chunked_upload_is_echoed_unchanged() {
    within(async {
        let mut connection = Http1::connect(serve(echo()).await).await;
        let sent = bytes(300_000);
        for path in ["/buffer", "/stream"] {
            let chunks: Vec<_> =
                sent.chunks(1000).map(|chunk| Ok::<_, std::io::Error>(Bytes::copy_from_slice(chunk))).collect();
            let upload = request(Method::POST, path, Body::from_stream(stream::iter(chunks)));
            assert!(connection.send(upload).await.body == sent, "{path}");
        }
    })
    .await;
}

#[tokio::test]
async fn raw_chunked_upload_is_echoed() {
    within(async {
        let mut client = Raw::with(
            serve(echo()).await,
            "POST /buffer HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n",
        )
        .await;
        assert!(client.read_until("\r\n\r\n").await.contains("content-length: 7"));
        assert_eq!(client.read_exact(7).await, b"abcdefg");
    })
    .await;
}

#[tokio::test]
async fn concurrent_http2_streams_are_echoed_unchanged() {
    within(async {
        let client = Http2::connect(serve(echo()).await).await;
        let calls = (0..50_usize).map(|number| {
            let mut stream = client.clone();
            async move {
                let sent = bytes(100_000 + number);
                let path = if number % 2 == 0 { "/buffer" } else { "/stream" };
                let response = stream.send(absolute(Method::POST, path, sent.clone())).await;
                assert!(response.status.is_success() && response.body == sent, "stream {number}");
            }
        });
        join_all(calls).await;
    })
    .await;
}

#[tokio::test]
async fn expect_continue_is_answered_before_the_body() {
    within(async {
        let head = "POST /buffer HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
        let mut client = Raw::with(serve(echo()).await, head).await;
        assert_eq!(client.read_until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        client.write("hello").await;
        assert!(client.read_until("\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        assert_eq!(client.read_exact(5).await, b"hello");
    })
    .await;
}

/// The server does not ask the client for the body.
#[tokio::test]
async fn expect_continue_of_a_rejected_call_is_answered_503() {
    within(async {
        let full = support::FullPool::new().await;
        let router = Router::new().route("/", post(async |body: Bytes| body));
        let address = serve(router.layer(OffloadLayer::new(full.pool.clone()))).await;
        let head = "POST / HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
        let head = Raw::with(address, head).await.read_until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        full.release().await;
    })
    .await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    within(async {
        let router = Router::new().route("/{number}", get(async |path: axum::extract::Path<u32>| path.0.to_string()));
        let address = serve(router.layer(OffloadLayer::new(one_thread(64)))).await;
        let pipelined: String =
            (10..20).map(|number| format!("GET /{number} HTTP/1.1\r\nhost: test\r\n\r\n")).collect();
        let mut client = Raw::with(address, pipelined).await;
        for number in 10..20 {
            client.read_until("\r\n\r\n").await;
            assert_eq!(client.read_exact(2).await, number.to_string().as_bytes());
        }
    })
    .await;
}
