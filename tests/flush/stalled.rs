//! Clients that do not read: hooks wait until the socket has accepted the whole response.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_offload::after_response::{Delivery, End};

use crate::support::{
    HTTP1, HTTP2, Http1, Http2, PLAIN_HTTP1, PLAIN_HTTP2, Setup, Stack, drain, frames, on_each, read,
};

const BIG: u64 = 8 << 20;

/// Sends 8 MB to a socket that accepts a few kB while the client does not read.
async fn check_flushed_with_last_byte(stack: Stack, path: &str) {
    let mut site = Setup::on(stack).small_buffers().start();
    let mut client = Http1::connect(&site).await;
    client.send_get(path).await;
    let head = client.head().await; // may read a part of the body too
    assert!(site.unasked().is_empty(), "a hook ran while the client had read {} bytes", client.wire.read());
    assert_eq!(client.body_of(head).await.body, BIG);
    let record = site.record(path).await;
    record.is_flushed(BIG);
    assert_eq!(record.taken, client.wire.read());
}

#[tokio::test]
async fn one_big_frame_is_flushed_with_its_last_byte() {
    on_each(HTTP1, |stack| check_flushed_with_last_byte(stack, "/full/8388608")).await;
}

#[tokio::test]
async fn chunked_body_is_flushed_with_its_last_byte() {
    on_each(HTTP1, |stack| check_flushed_with_last_byte(stack, "/chunks/64/131072")).await;
}

#[tokio::test]
async fn body_of_known_length_is_flushed_with_its_last_byte() {
    on_each(HTTP1, |stack| check_flushed_with_last_byte(stack, "/length/64/131072")).await;
}

/// The body is dropped long before its bytes are accepted.
#[tokio::test]
async fn end_of_a_body_is_not_its_flush() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).small_buffers().start();
        let mut client = Http1::connect(&site).await;
        client.send_get("/full/8388608").await;
        site.body_dropped("/full/8388608").await;
        assert!(site.unasked().is_empty());
        client.answer().await;
        assert_eq!(site.record("/full/8388608").await.taken, client.wire.read());
    })
    .await;
}

#[tokio::test]
async fn untracked_connection_reports_the_hand_over() {
    on_each(PLAIN_HTTP1, |stack| async move {
        let mut site = Setup::on(stack).untracked().small_buffers().start();
        let mut client = Http1::connect(&site).await;
        client.send_get("/full/8388608").await;
        let record = site.record("/full/8388608").await;
        record.is(End::Complete, Delivery::HandedOver);
        assert_eq!(record.body_bytes, BIG);
        assert!(record.taken < BIG, "{record:?}");
        assert_eq!(client.answer().await.body, BIG);
    })
    .await;
}

/// One frame of 8 MB, and a client that grants no window.
#[tokio::test]
async fn stream_without_a_window_is_flushed_once_it_has_one() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).small_buffers().start();
        let mut client = Http2::with_windows(&site, 65_535, 65_535).await;
        let response = client.start("/full/8388608").await.await.unwrap();
        site.body_dropped("/full/8388608").await;
        assert!(site.unasked().is_empty());
        assert_eq!(drain(response.into_body()).await.unwrap().0, BIG);
        let record = site.record("/full/8388608").await;
        record.is_flushed(BIG);
        assert!(record.taken >= BIG, "{record:?}");
    })
    .await;
}

#[tokio::test]
async fn stream_does_not_wait_for_a_blocked_one() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::with_windows(&site, 65_535, 1 << 20).await;
        let blocked = client.start("/full/8388608").await.await.unwrap();
        site.body_dropped("/full/8388608").await;
        assert_eq!(client.get("/full/5").await.unwrap().body, 5);
        site.record("/full/5").await.is_flushed(5);
        assert!(site.unasked().is_empty());
        assert_eq!(drain(blocked.into_body()).await.unwrap().0, BIG);
        let record = site.record("/full/8388608").await;
        record.is_flushed(BIG);
        assert!(record.taken > BIG);
    })
    .await;
}

/// Another stream causes many flushes while one is blocked.
#[tokio::test]
async fn blocked_stream_ignores_flushes_of_another() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::with_windows(&site, 65_535, 1 << 24).await;
        let blocked = client.start("/full/1048576").await.await.unwrap();
        site.body_dropped("/full/1048576").await;
        assert_eq!(client.get("/full/8388608").await.unwrap().body, BIG);
        site.record("/full/8388608").await.is_flushed(BIG);
        assert!(site.unasked().is_empty());
        assert_eq!(drain(blocked.into_body()).await.unwrap().0, 1 << 20);
        let record = site.record("/full/1048576").await;
        record.is_flushed(1 << 20);
        assert!(record.taken > BIG + (1 << 20), "{record:?}");
    })
    .await;
}

/// Trailers wait for the data of their stream.
#[tokio::test]
async fn trailers_after_a_blocked_body_are_flushed_with_it() {
    on_each(PLAIN_HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::with_windows(&site, 1000, 1 << 20).await;
        let response = client.start("/trailers/200000").await;
        let stream = response.stream_id().as_u32();
        let response = response.await.unwrap();
        assert_eq!(client.get("/trailers/7").await.unwrap().body, 7);
        site.record("/trailers/7").await.is_flushed(7);
        assert!(site.unasked().is_empty());
        assert_eq!(drain(response.into_body()).await.unwrap().0, 200_000);
        let record = site.record("/trailers/200000").await;
        record.is_flushed(200_000);
        assert!(record.taken >= record.peer.wire.end_of(stream).unwrap());
    })
    .await;
}

#[tokio::test]
async fn body_through_a_narrow_window_is_flushed_with_its_last_byte() {
    on_each(PLAIN_HTTP2, |stack| async move {
        let mut site = Setup::on(stack).small_buffers().start();
        let mut client = Http2::with_windows(&site, 65_535, 65_535).await;
        let response = client.start("/chunks/64/32768").await;
        let stream = response.stream_id().as_u32();
        assert_eq!(read(response).await.unwrap().body, 2 << 20);
        let record = site.record("/chunks/64/32768").await;
        record.is_flushed(2 << 20);
        assert!(record.taken >= record.peer.wire.end_of(stream).unwrap());
    })
    .await;
}

/// TLS accepts bytes before it writes them, so it has the end of the stream long before the socket.
#[tokio::test]
async fn stream_over_tls_is_flushed_when_the_socket_has_it() {
    on_each(&[Stack::TlsHttp2], |stack| async move {
        let mut site = Setup::on(stack).small_buffers().start();
        let (mut io, wire) = site.connect().await;
        let request = [frames::PREFACE, &frames::settings(), &frames::get(1, "/full/60000")].concat();
        io.write_all(&request).await.unwrap();
        io.flush().await.unwrap();
        site.body_dropped("/full/60000").await;
        assert!(site.unasked().is_empty());
        let (mut ends, mut buffer) = (frames::Ends::default(), vec![0; 16 * 1024]);
        while ends.of(1).is_none() {
            let read = io.read(&mut buffer).await.unwrap();
            ends.pass(&buffer[..read]);
        }
        let record = site.record("/full/60000").await;
        record.is_flushed(60_000);
        assert!(record.taken > 60_000 && record.taken >= wire.read(), "{record:?}, of {}", wire.read());
    })
    .await;
}
