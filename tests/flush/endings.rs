//! Ends of responses that are the same on HTTP/1 and HTTP/2.

use http::StatusCode;
use tower_offload::after_response::{Delivery, End};

use crate::support::{ALL, Client, Setup, Stack, on_each};

/// Path, status and body length of complete responses.
const COMPLETE: &[(&str, u16, u64)] = &[
    ("/full/5", 200, 5),
    ("/full/100000", 200, 100_000),
    ("/chunks/3/1000", 200, 3000),
    ("/chunks/0/0", 200, 0),
    ("/trailers/10", 200, 10),
    ("/empty", 200, 0),
    ("/full/0", 200, 0),
    ("/status/204/0", 204, 0),
    ("/status/304/0", 304, 0),
    ("/status/404/9", 404, 9),
    ("/status/302/0", 302, 0),
    ("/status/500/7", 500, 7),
];

async fn each_complete_response(setup: Setup, delivery: Delivery) {
    let mut site = setup.start();
    let mut client = Client::connect(&site).await;
    for &(path, status, body) in COMPLETE {
        assert_eq!(client.get(path).await, (status, body), "{path}");
        let record = site.record(path).await;
        record.is(End::Complete, delivery);
        assert_eq!(
            (record.status, record.body_bytes),
            (Some(StatusCode::from_u16(status).unwrap()), body),
            "{record:?}"
        );
        assert_eq!(record.is_success, status < 400, "{record:?}");
        assert!(record.has_head && !record.truncated && record.error.is_none(), "{record:?}");
    }
    assert_eq!(site.registered(), COMPLETE.len());
    assert!(site.unasked().is_empty());
}

#[tokio::test]
async fn complete_response_is_flushed_if_tracked() {
    on_each(ALL, |stack| each_complete_response(Setup::on(stack), Delivery::Flushed)).await;
}

#[tokio::test]
async fn complete_response_is_handed_over_if_untracked() {
    on_each(ALL, |stack| each_complete_response(Setup::on(stack).untracked(), Delivery::HandedOver)).await;
}

#[tokio::test]
async fn each_response_on_a_connection_has_its_own_outcome() {
    on_each(ALL, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Client::connect(&site).await;
        for size in 1..=20 {
            client.get(&format!("/full/{size}")).await;
            site.record(&format!("/full/{size}")).await.is_flushed(size);
        }
    })
    .await;
}

/// The body is dropped without a poll, with data left.
#[tokio::test]
async fn response_to_head_is_complete() {
    on_each(ALL, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Client::connect(&site).await;
        for path in ["/full/5?head", "/chunks/3/100?head", "/empty?head"] {
            assert_eq!(client.head(path).await, 200);
            // hyper sends the body on HTTP/2, axum does not.
            let record = site.record(path).await;
            record.is(End::Complete, Delivery::Flushed);
            let sent = stack.is_http2() && !stack.is_axum();
            assert!(sent || record.body_bytes == 0, "{record:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn outcome_has_the_status_and_headers() {
    on_each(ALL, |stack| async move {
        let mut site = Setup::on(stack).start();
        Client::connect(&site).await.get("/trailers/3").await;
        let record = site.record("/trailers/3").await;
        assert_eq!(record.status, Some(StatusCode::OK));
        assert_eq!(record.headers["trailer"], "x-after");
    })
    .await;
}

#[tokio::test]
async fn grpc_status_in_trailers_decides_success() {
    on_each(ALL, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Client::connect(&site).await;
        for (path, status, success) in [("/grpc/0", 0, true), ("/grpc/14", 14, false)] {
            client.get(path).await;
            let record = site.record(path).await;
            record.is_flushed(10);
            assert_eq!((record.grpc_status, record.is_success), (Some(status), success), "{record:?}");
        }
    })
    .await;
}

/// hyper closes the connection.
#[tokio::test]
async fn handler_error_is_reported_with_its_text() {
    let stacks: Vec<Stack> = ALL.iter().copied().filter(|stack| !stack.is_axum()).collect();
    on_each(&stacks, |stack| async move {
        for setup in [Setup::on(stack), Setup::on(stack).untracked()] {
            let mut site = setup.start();
            let mut client = Client::connect(&site).await;
            let _started = client.start("/fail").await;
            let record = site.record("/fail").await;
            record.is(End::HandlerError, Delivery::NotDelivered);
            assert_eq!((record.status, record.has_head, record.is_success), (None, false, false), "{record:?}");
            assert!(record.error.as_ref().unwrap().contains("the handler failed"), "{record:?}");
        }
    })
    .await;
}

/// hyper closes the connection on HTTP/1 and resets the stream on HTTP/2.
#[tokio::test]
async fn handler_panic_has_an_outcome() {
    on_each(ALL, |stack| async move {
        for setup in [Setup::on(stack), Setup::on(stack).untracked()] {
            let mut site = setup.start();
            let mut client = Client::connect(&site).await;
            let _started = client.start("/panic").await;
            let record = site.record("/panic").await;
            record.is(End::HandlerError, Delivery::NotDelivered);
            assert_eq!((record.status, record.error.as_deref()), (None, Some("panicked")), "{record:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn body_panic_has_an_outcome() {
    on_each(ALL, |stack| async move {
        for setup in [Setup::on(stack), Setup::on(stack).untracked()] {
            let mut site = setup.start();
            let mut client = Client::connect(&site).await;
            let _started = client.start("/panic-in-body/3/100").await;
            let record = site.record("/panic-in-body/3/100").await;
            record.is(End::BodyError, Delivery::NotDelivered);
            assert_eq!((record.body_bytes, record.error.as_deref()), (300, Some("panicked")), "{record:?}");
        }
    })
    .await;
}

/// The outcome has the error of the body, and not that of the connection or stream, which ends too.
#[tokio::test]
async fn body_error_is_reported_with_its_text() {
    on_each(ALL, |stack| async move {
        for setup in [Setup::on(stack), Setup::on(stack).untracked()] {
            let mut site = setup.start();
            let mut client = Client::connect(&site).await;
            let _started = client.start("/error/3/100").await;
            let record = site.record("/error/3/100").await;
            record.is(End::BodyError, Delivery::NotDelivered);
            assert_eq!(record.body_bytes, 300);
            assert!(record.error.as_ref().unwrap().contains("the body failed"), "{record:?}");
        }
    })
    .await;
}
