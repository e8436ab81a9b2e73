//! Ends of responses that exist only on HTTP/1.

use http::StatusCode;
use tower_offload::after_response::{Delivery, End};

use crate::support::{HTTP1, Http1, Setup, on_each};

#[tokio::test]
async fn reached_content_length_is_flushed_without_an_end() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        for (path, length) in [("/length/2/500", 1000), ("/length/10/100000", 1_000_000)] {
            assert_eq!(client.get(path).await.body, length);
            let record = site.record(path).await;
            record.is_flushed(length);
            assert!(!record.truncated, "{record:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn body_over_its_length_is_flushed_and_truncated() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        assert_eq!(client.get("/long/50/200").await.body, 50);
        let record = site.record("/long/50/200").await;
        record.is_flushed(50);
        assert!(record.truncated, "{record:?}");
        assert_eq!(client.get("/full/5").await.body, 5);
    })
    .await;
}

#[tokio::test]
async fn body_under_its_length_is_too_short_and_not_sent() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        client.send_get("/short/1000/100").await;
        let record = site.record("/short/1000/100").await;
        record.is(End::BodyTooShort, Delivery::NotDelivered);
        assert_eq!(record.body_bytes, 100);
        assert_eq!(client.rest().await, 0);
    })
    .await;
}

#[tokio::test]
async fn body_under_its_length_is_too_short_if_untracked() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).untracked().start();
        let mut client = Http1::connect(&site).await;
        client.send_get("/short/1000/100").await;
        let record = site.record("/short/1000/100").await;
        assert_eq!((record.end, record.body_bytes), (End::BodyTooShort, 100), "{record:?}");
        assert_ne!(record.delivery, Delivery::Flushed);
    })
    .await;
}

/// hyper drops such bodies without a poll.
#[tokio::test]
async fn not_modified_and_no_content_are_complete_with_data_left() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        for (path, status) in [("/status/304/500", 304), ("/status/204/500", 204)] {
            assert_eq!(client.get(path).await.status, status);
            let record = site.record(path).await;
            record.is_flushed(0);
            assert_eq!(record.status, StatusCode::from_u16(status).ok());
        }
    })
    .await;
}

/// hyper sends trailers only if the client accepts them.
#[tokio::test]
async fn trailers_are_flushed_with_and_without_te() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        for (te, trailers) in [("te: trailers\r\n", "x-after: 1\r\n"), ("", "")] {
            client.send(format!("GET /trailers/10 HTTP/1.1\r\nhost: site\r\n{te}\r\n")).await;
            let answer = client.answer().await;
            assert_eq!((answer.body, &*answer.trailers), (10, trailers));
            let record = site.record("/trailers/10").await;
            record.is_flushed(10);
            assert_eq!(record.taken, client.wire.read());
        }
    })
    .await;
}

#[tokio::test]
async fn http10_body_delimited_by_the_connection_is_flushed() {
    on_each(HTTP1, |stack| async move {
        for (path, length) in [("/chunks/3/1000", 3000), ("/full/77", 77), ("/chunks/0/0", 0)] {
            let mut site = Setup::on(stack).start();
            let mut client = Http1::connect(&site).await;
            client.send(format!("GET {path} HTTP/1.0\r\n\r\n")).await;
            let head = client.head().await;
            assert_eq!(client.body_of(head).await.body, length);
            site.record(path).await.is_flushed(length);
        }
    })
    .await;
}

#[tokio::test]
async fn connection_close_is_flushed_before_the_close() {
    on_each(HTTP1, |stack| async move {
        for (path, length) in [("/chunks/3/1000", 3000), ("/full/77", 77), ("/length/3/1000", 3000)] {
            let mut site = Setup::on(stack).start();
            let mut client = Http1::connect(&site).await;
            client.send(format!("GET {path} HTTP/1.1\r\nhost: site\r\nconnection: close\r\n\r\n")).await;
            assert_eq!(client.answer().await.body, length);
            assert_eq!(client.rest().await, 0);
            site.record(path).await.is_flushed(length);
        }
    })
    .await;
}

/// The interim response has no outcome.
#[tokio::test]
async fn expect_100_continue_has_one_outcome() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        client
            .send("POST /full/5 HTTP/1.1\r\nhost: site\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc")
            .await;
        let mut head = client.head().await;
        if head.status == 100 {
            head = client.head().await;
        }
        assert_eq!(client.body_of(head).await.body, 5);
        site.record("/full/5").await.is_flushed(5);
        assert_eq!(site.registered(), 1);
    })
    .await;
}

/// The handler reads the body, so hyper sends and flushes 100 before there is a response.
#[tokio::test]
async fn final_response_after_100_continue_is_flushed_on_its_own() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        client
            .send("POST /read/chunks/2/10 HTTP/1.1\r\nhost: site\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n")
            .await;
        assert_eq!(client.head().await.status, 100);
        assert!(site.unasked().is_empty());
        client.send("abc").await;
        assert_eq!(client.answer().await.body, 20);
        let record = site.record("/read/chunks/2/10").await;
        record.is_flushed(20);
        assert_eq!(record.taken, client.wire.read());
    })
    .await;
}
