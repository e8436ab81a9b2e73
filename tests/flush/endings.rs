//! Rows of the table of edge cases that are the same on both protocols.

use http::StatusCode;
use tower_offload::after_response::{Delivery, End};

use crate::support::{ALL, Client, Setup, Stack, on_each};

/// What a client gets and a hook is told, by path. Each of these responses is complete.
const COMPLETE: &[(&str, u16, u64)] = &[
    ("/full/5", 200, 5),            // C1
    ("/full/100000", 200, 100_000), // C1
    ("/chunks/3/1000", 200, 3000),
    ("/chunks/0/0", 200, 0),
    ("/trailers/10", 200, 10), // C6
    ("/empty", 200, 0),        // C4
    ("/full/0", 200, 0),       // C4
    ("/status/204/0", 204, 0), // C3
    ("/status/304/0", 304, 0), // C3
    ("/status/404/9", 404, 9), // B4
    ("/status/302/0", 302, 0), // B4
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
async fn a_complete_response_on_a_tracked_connection_is_flushed() {
    on_each(ALL, |stack| each_complete_response(Setup::on(stack), Delivery::Flushed)).await;
}

#[tokio::test]
async fn a_complete_response_on_any_other_connection_is_handed_over() {
    on_each(ALL, |stack| each_complete_response(Setup::on(stack).untracked(), Delivery::HandedOver)).await;
}

/// A7.
#[tokio::test]
async fn each_response_of_a_kept_connection_has_its_own_outcome_in_order() {
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

/// C3: the body is dropped unpolled, with data left.
#[tokio::test]
async fn a_response_to_head_is_complete() {
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

/// B1.
#[tokio::test]
async fn a_hook_sees_the_status_and_the_headers_of_the_response() {
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
async fn a_grpc_status_in_trailers_is_seen_and_decides_on_success() {
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

/// B2: the connection ends then, as hyper wants it.
#[tokio::test]
async fn a_handler_that_fails_is_named_with_its_error() {
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

/// B3: hyper ends the connection on HTTP/1 and the stream on HTTP/2.
#[tokio::test]
async fn a_handler_that_panics_has_an_outcome() {
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
async fn a_body_that_panics_has_an_outcome() {
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

/// B8: the error of the body is told, not the end of the connection that it brings.
#[tokio::test]
async fn a_body_that_fails_is_named_with_its_error() {
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
