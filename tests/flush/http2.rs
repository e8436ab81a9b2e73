//! Ends of responses that exist only on HTTP/2.

use bytes::Bytes;
use http::Method;
use tokio::io::AsyncWriteExt;
use tower_offload::after_response::{Delivery, End};

use crate::support::{HTTP2, Http2, PLAIN_HTTP2, Setup, frames, on_each, read};

/// hyper sends `END_STREAM` anyway, so the end is on the wire. This client does not compare the
/// length; others reset the stream.
#[tokio::test]
async fn body_under_its_length_is_too_short_but_flushed() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let (mut io, _wire) = site.connect().await;
        let requests = [frames::get(1, "/short/1000/100"), frames::get(3, "/full/5")].concat();
        io.write_all(&[frames::PREFACE, &frames::settings(), &requests].concat()).await.unwrap();
        io.flush().await.unwrap();
        let record = site.record("/short/1000/100").await;
        record.is(End::BodyTooShort, Delivery::Flushed);
        assert_eq!(record.body_bytes, 100);
        site.record("/full/5").await.is_flushed(5);
    })
    .await;
}

#[tokio::test]
async fn body_error_resets_only_its_stream() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::connect(&site).await;
        assert!(client.get("/error/2/100").await.unwrap_err().is_reset());
        site.record("/error/2/100").await.is(End::BodyError, Delivery::NotDelivered);
        assert_eq!(client.get("/full/5").await.unwrap().body, 5);
        site.record("/full/5").await.is_flushed(5);
    })
    .await;
}

#[tokio::test]
async fn trailers_are_flushed() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::connect(&site).await;
        let read = client.get("/trailers/200000").await.unwrap();
        assert_eq!((read.body, &read.trailers.unwrap()["x-after"]), (200_000, &http::HeaderValue::from(1)));
        site.record("/trailers/200000").await.is_flushed(200_000);
    })
    .await;
}

/// The handler does not read the request, so the server resets the stream with `NO_ERROR` after
/// `END_STREAM`.
#[tokio::test]
async fn no_error_reset_after_the_end_stays_flushed() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::connect(&site).await;
        for path in ["/full/5", "/chunks/3/70000", "/empty", "/trailers/9"] {
            let (response, _request) = client.request(Method::POST, path, false).await;
            let _ = read(response).await;
            let record = site.record(path).await;
            record.is(End::Complete, Delivery::Flushed);
        }
    })
    .await;
}

#[tokio::test]
async fn requests_with_bodies_are_mapped_to_their_streams() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::connect(&site).await;
        let mut responses = Vec::new();
        for size in 1..=20 {
            let (response, mut request) = client.request(Method::POST, &format!("/full/{size}"), false).await;
            request.send_data(Bytes::from(vec![b'q'; size * 7]), true).unwrap();
            responses.push(response);
        }
        for (size, response) in (1..=20).zip(responses) {
            assert_eq!(read(response).await.unwrap().body, size);
            site.record(&format!("/full/{size}")).await.is_flushed(size);
        }
    })
    .await;
}

/// Many streams overlap. Each hook runs after the end of its own stream was accepted.
#[tokio::test]
async fn hooks_of_overlapping_streams_run_after_their_own_end() {
    on_each(PLAIN_HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::with_windows(&site, 65_535, 100_000).await;
        let mut reads = Vec::new();
        for number in 0..40_u64 {
            let path = format!("/full/{}", number * 5000 + 1);
            let response = client.start(&path).await;
            let stream = response.stream_id().as_u32();
            reads.push((path, number * 5000 + 1, stream, tokio::spawn(read(response))));
        }
        for (path, size, stream, read) in reads {
            assert_eq!(read.await.unwrap().unwrap().body, size);
            let record = site.record(&path).await;
            record.is_flushed(size);
            assert!(record.taken >= record.peer.wire.end_of(stream).unwrap(), "{record:?}");
        }
    })
    .await;
}
