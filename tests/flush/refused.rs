//! Requests that hyper or h2 rejects itself: no handler runs, and other responses keep their
//! outcomes.

use http::StatusCode;
use tokio::io::AsyncWriteExt;

use crate::support::{HTTP1, HTTP2, Http1, Http2, Setup, frames, on_each, read};

/// hyper's default for `max_concurrent_streams`.
const CONCURRENT: u32 = 200;

#[tokio::test]
async fn refused_streams_do_not_affect_other_outcomes() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let (mut io, _wire) = site.connect().await;
        let path = |number: u32| format!("/wait/full/{}", number + 1);
        let mut bytes = [frames::PREFACE, &frames::settings()].concat();
        for number in 0..CONCURRENT + 10 {
            bytes.extend(frames::get(number * 2 + 1, &path(number)));
        }
        io.write_all(&bytes).await.unwrap();
        io.flush().await.unwrap();
        for _ in 0..CONCURRENT {
            site.handlers.reached().await;
        }
        site.handlers.open();
        for number in 0..CONCURRENT {
            site.record(&path(number)).await.is_flushed((number + 1).into());
        }
        // A later stream is not confused with a refused one.
        let later = CONCURRENT + 20;
        io.write_all(&frames::get(later * 2 + 1, &path(later))).await.unwrap();
        io.flush().await.unwrap();
        site.record(&path(later)).await.is_flushed((later + 1).into());
        assert_eq!(site.registered(), CONCURRENT as usize + 1);
        assert!(site.unasked().is_empty());
    })
    .await;
}

#[tokio::test]
async fn oversized_fields_do_not_affect_other_streams() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let (mut io, wire) = site.connect().await;
        let parts = [
            frames::PREFACE,
            &frames::settings(),
            &frames::get(1, "/full/11"),
            &frames::get_with_field(3, "/full/12", 40_000),
            &frames::get(5, "/full/13"),
            &frames::get_with_field(7, "/full/14", 20_000),
            &frames::get_with_field(9, "/full/15", 10_000),
        ];
        io.write_all(&parts.concat()).await.unwrap();
        io.flush().await.unwrap();
        for size in [11, 13, 15] {
            site.record(&format!("/full/{size}")).await.is_flushed(size);
        }
        assert_eq!(site.registered(), 3);
        drop((io, wire));
    })
    .await;
}

/// h2 sends the 431 itself.
#[tokio::test]
async fn http2_431_has_no_outcome() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::connect(&site).await;
        client.get("/full/1").await.unwrap();
        site.record("/full/1").await.is_flushed(1);
        let request = http::Request::get("http://site/full/2").header("x", "v".repeat(20_000)).body(()).unwrap();
        let refused = read(client.send(request, true).await.0).await;
        assert!(refused.is_err() || refused.unwrap().head.status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        client.get("/full/3").await.unwrap();
        site.record("/full/3").await.is_flushed(3);
        assert_eq!(site.registered(), 2);
    })
    .await;
}

#[tokio::test]
async fn http1_431_has_no_outcome() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        assert_eq!(client.get("/full/5").await.body, 5);
        site.record("/full/5").await.is_flushed(5);
        let fields: String = (0..200).map(|number| format!("x-{number}: v\r\n")).collect();
        client.send(format!("GET /full/6 HTTP/1.1\r\nhost: site\r\n{fields}\r\n")).await;
        assert_eq!(client.head().await.status, 431);
        client.rest().await;
        assert_eq!(site.registered(), 1);
        assert!(site.unasked().is_empty());
    })
    .await;
}

/// The bytes after the request are not HTTP.
#[tokio::test]
async fn garbage_after_a_request_keeps_its_outcome() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        client.send("GET /full/5 HTTP/1.1\r\nhost: site\r\n\r\n\0\0nonsense\r\n\r\n").await;
        assert_eq!(client.answer().await.body, 5);
        site.record("/full/5").await.is_flushed(5);
        client.rest().await;
        assert!(site.unasked().is_empty());
    })
    .await;
}

/// Responses that were flushed before a connection error stay flushed.
#[tokio::test]
async fn connection_error_keeps_earlier_outcomes() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let (mut io, _wire) = site.connect().await;
        io.write_all(&[frames::PREFACE, &frames::settings(), &frames::get(1, "/full/5")].concat()).await.unwrap();
        io.flush().await.unwrap();
        site.record("/full/5").await.is_flushed(5);
        // An even identifier belongs to the server (RFC 9113, section 5.1.1).
        io.write_all(&frames::get(3, "/wait/full/6")).await.unwrap();
        io.flush().await.unwrap();
        site.handlers.reached().await;
        io.write_all(&frames::get(2, "/full/7")).await.unwrap();
        io.flush().await.unwrap();
        let record = site.record("/wait/full/6").await;
        assert_eq!(record.delivery, tower_offload::after_response::Delivery::NotDelivered, "{record:?}");
        assert!(site.unasked().is_empty());
    })
    .await;
}
