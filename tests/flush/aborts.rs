//! Clients, connections and servers that close before the end of a response.

use tokio::io::AsyncWriteExt;
use tower_offload::after_response::{Delivery, End};

use crate::support::{
    ALL, Client, HTTP1, HTTP2, Http1, Http2, PLAIN_HTTP1, PLAIN_HTTP2, Setup, Stack, frames, on_each, read,
};

const BIG: u64 = 8 << 20;

/// The body is no longer polled.
#[tokio::test]
async fn disconnect_during_the_body_is_aborted() {
    on_each(ALL, |stack| async move {
        for setup in [Setup::on(stack), Setup::on(stack).untracked()] {
            let mut site = setup.start();
            let mut client = Client::connect(&site).await;
            let started = client.start("/hang/1000").await;
            let _kept = client.await_head(started).await;
            client.hang_up().await;
            let record = site.record("/hang/1000").await;
            record.is(End::Aborted, Delivery::NotDelivered);
            assert_eq!((record.body_bytes, record.status), (1000, Some(http::StatusCode::OK)));
        }
    })
    .await;
}

#[tokio::test]
async fn disconnect_with_most_frames_unsent_is_aborted() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).small_buffers().start();
        let mut client = Http1::connect(&site).await;
        client.send_get("/chunks/64/131072").await;
        client.head().await;
        drop(client);
        let record = site.record("/chunks/64/131072").await;
        record.is(End::Aborted, Delivery::NotDelivered);
        assert!(record.body_bytes > 0 && record.body_bytes < BIG, "{record:?}");
    })
    .await;
}

/// The body ended long before the reset.
#[tokio::test]
async fn reset_while_the_end_is_buffered_is_aborted() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).small_buffers().start();
        let mut client = Http1::connect_to_reset(&site).await;
        client.send_get("/full/8388608").await;
        site.body_dropped("/full/8388608").await;
        client.head().await;
        drop(client);
        let record = site.record("/full/8388608").await;
        record.is(End::Aborted, Delivery::NotDelivered);
        assert_eq!(record.body_bytes, BIG);
        assert!(record.taken < BIG, "{record:?}");
    })
    .await;
}

/// h2 drops the queued frames of the stream. The connection stays open.
#[tokio::test]
async fn stream_reset_after_the_end_of_its_body_is_aborted() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::with_windows(&site, 65_535, 1 << 20).await;
        let response = client.start("/full/1048576").await.await.unwrap();
        site.body_dropped("/full/1048576").await;
        drop(response);
        let record = site.record("/full/1048576").await;
        record.is(End::Aborted, Delivery::NotDelivered);
        assert_eq!(record.body_bytes, 1 << 20);
        assert_eq!(client.get("/full/5").await.unwrap().body, 5);
        site.record("/full/5").await.is_flushed(5);
    })
    .await;
}

#[tokio::test]
async fn closed_connection_aborts_all_open_responses() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::with_windows(&site, 65_535, 1 << 20).await;
        let mut responses = Vec::new();
        for path in ["/full/1000000", "/hang/10", "/trailers/1000000"] {
            responses.push(client.start(path).await.await.unwrap());
        }
        let waiting = client.start("/wait/full/1").await;
        site.handlers.reached().await;
        client.hang_up().await;
        for path in ["/full/1000000", "/hang/10", "/trailers/1000000"] {
            site.record(path).await.is(End::Aborted, Delivery::NotDelivered);
        }
        site.record("/wait/full/1").await.is(End::NoResponse, Delivery::NotDelivered);
        drop((responses, waiting));
    })
    .await;
}

#[tokio::test]
async fn disconnect_during_the_handler_is_no_response() {
    on_each(ALL, |stack| async move {
        for setup in [Setup::on(stack), Setup::on(stack).untracked()] {
            let mut site = setup.start();
            let mut client = Client::connect(&site).await;
            let _started = client.start("/wait/full/5").await;
            site.handlers.reached().await;
            client.hang_up().await;
            let record = site.record("/wait/full/5").await;
            record.is(End::NoResponse, Delivery::NotDelivered);
            assert_eq!((record.status, record.has_head, record.body_bytes), (None, false, 0), "{record:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn stream_reset_during_the_handler_is_no_response() {
    on_each(HTTP2, |stack| async move {
        for setup in [Setup::on(stack), Setup::on(stack).untracked()] {
            let mut site = setup.start();
            let mut client = Http2::connect(&site).await;
            let response = client.start("/wait/full/5").await;
            site.handlers.reached().await;
            drop(response);
            site.record("/wait/full/5").await.is(End::NoResponse, Delivery::NotDelivered);
            assert_eq!(client.get("/full/6").await.unwrap().body, 6);
        }
    })
    .await;
}

/// The handler may or may not run before the reset. If it registers a hook, the hook gets a correct
/// outcome.
#[tokio::test]
async fn reset_right_after_its_request_has_an_outcome() {
    /// h2 ends a connection with more resets than these in one read.
    const RESETS: u32 = 20;
    on_each(PLAIN_HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let (mut io, _wire) = site.connect().await;
        let mut bytes = [frames::PREFACE, &frames::settings()].concat();
        for number in 0..RESETS {
            let stream = number * 4 + 1;
            bytes.extend(frames::get(stream, &format!("/full/{}?reset", stream)));
            bytes.extend(frames::reset(stream));
            bytes.extend(frames::get(stream + 2, &format!("/full/{}", stream + 2)));
        }
        io.write_all(&bytes).await.unwrap();
        for number in 0..RESETS {
            let size = number * 4 + 3;
            site.record(&format!("/full/{size}")).await.is_flushed(size.into());
        }
        drop(io);
        site.shut_down();
        site.over().await;
        let resets = site.registered() - RESETS as usize;
        let records = site.records(resets).await;
        for record in records {
            let (size, _) = record.path.trim_start_matches("/full/").split_once('?').unwrap();
            let flushed = record.delivery == Delivery::Flushed;
            assert!(!flushed || record.peer.wire.end_of(size.parse().unwrap()).is_some(), "{record:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn disconnect_after_the_last_byte_stays_flushed() {
    on_each(ALL, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Client::connect(&site).await;
        client.get("/full/100").await;
        client.hang_up().await;
        site.record("/full/100").await.is_flushed(100);
    })
    .await;
}

/// The future of the connection is dropped during a response.
#[tokio::test]
async fn connection_dropped_by_the_server_aborts_the_response() {
    let stacks: Vec<Stack> = ALL.iter().copied().filter(|stack| !stack.is_axum()).collect();
    on_each(&stacks, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Client::connect(&site).await;
        let started = client.start("/hang/1000").await;
        let _kept = client.await_head(started).await;
        site.kill();
        site.record("/hang/1000").await.is(End::Aborted, Delivery::NotDelivered);
    })
    .await;
}

/// By default, hyper closes the connection if the client shuts down its sending side.
#[tokio::test]
async fn half_closed_client_aborts_the_response() {
    on_each(PLAIN_HTTP1, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        client.send_get("/gated/1000/1000").await;
        client.head().await;
        client.shut_writing().await;
        let got = client.rest().await;
        let record = site.record("/gated/1000/1000").await;
        record.is(End::Aborted, Delivery::NotDelivered);
        assert!(got < 2000 && record.body_bytes == 1000, "{got} {record:?}");
    })
    .await;
}

/// A stream that waited for its window is reset, and the next stream uses the window.
#[tokio::test]
async fn window_of_a_reset_stream_serves_the_next() {
    on_each(PLAIN_HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::with_windows(&site, 65_535, 65_535).await;
        for number in 1..=5_u64 {
            let path = format!("/full/1048576?{number}");
            let blocked = client.start(&path).await.await.unwrap();
            site.body_dropped(&path).await;
            drop(blocked);
            site.record(&path).await.is(End::Aborted, Delivery::NotDelivered);
            let path = format!("/full/{}", 100_000 + number);
            assert_eq!(read(client.start(&path).await).await.unwrap().body, 100_000 + number);
            site.record(&path).await.is_flushed(100_000 + number);
        }
    })
    .await;
}

/// The client grants a part of the response and then breaks the protocol, so the server closes the
/// connection.
#[tokio::test]
async fn malformed_frame_aborts_a_response_that_is_not_sent() {
    on_each(PLAIN_HTTP2, |stack| async move {
        for malformed in [frames::frame(9, 4, 1, &[]), frames::frame(4, 0, 0, &[0; 5])] {
            let mut site = Setup::on(stack).start();
            let (mut io, _wire) = site.connect().await;
            let request = [frames::PREFACE, &frames::initial_window(1000), &frames::get(1, "/full/30000")].concat();
            io.write_all(&request).await.unwrap();
            io.flush().await.unwrap();
            site.body_dropped("/full/30000").await;
            io.write_all(&malformed).await.unwrap();
            io.flush().await.unwrap();
            site.record("/full/30000").await.is(End::Aborted, Delivery::NotDelivered);
        }
    })
    .await;
}

/// An event stream or a long poll.
#[tokio::test]
async fn disconnect_before_the_first_frame_is_aborted() {
    on_each(ALL, |stack| async move {
        for setup in [Setup::on(stack), Setup::on(stack).untracked()] {
            for resets in [false, true] {
                let mut site = setup.clone().start();
                let mut client = Client::connect(&site).await;
                let started = client.start("/held/5").await;
                let kept = client.await_head(started).await;
                if resets && stack.is_http2() {
                    drop(kept);
                } else {
                    client.hang_up().await;
                }
                let record = site.record("/held/5").await;
                record.is(End::Aborted, Delivery::NotDelivered);
                assert_eq!((record.body_bytes, record.status), (0, Some(http::StatusCode::OK)));
            }
        }
    })
    .await;
}
