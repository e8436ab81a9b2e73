//! Clients, connections and servers that go away.

use tokio::io::AsyncWriteExt;
use tower_offload::after_response::{Delivery, End};

use crate::support::{
    ALL, Client, HTTP1, HTTP2, Http1, Http2, PLAIN_HTTP1, PLAIN_HTTP2, Setup, Stack, frames, on_each, read,
};

const BIG: u64 = 8 << 20;

/// B6: although nobody polls the body any more.
#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_body_aborts_it() {
    on_each(ALL, |stack| async move {
        for setup in [Setup::on(stack), Setup::on(stack).untracked()] {
            let mut site = setup.start();
            let mut client = Client::connect(&site).await;
            let started = client.start("/hang/1000").await;
            let _kept = client.await_head(started).await;
            client.hang_up().await;
            let record = site.record("/hang/1000").await;
            record.is(End::Aborted, Delivery::None);
            assert_eq!((record.body_bytes, record.status), (1000, Some(http::StatusCode::OK)));
        }
    })
    .await;
}

/// C5.
#[tokio::test]
async fn a_client_that_leaves_with_most_frames_left_aborts_the_body() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).small_buffers().start();
        let mut client = Http1::connect(&site).await;
        client.send_get("/chunks/64/131072").await;
        client.head().await;
        drop(client);
        let record = site.record("/chunks/64/131072").await;
        record.is(End::Aborted, Delivery::None);
        assert!(record.body_bytes > 0 && record.body_bytes < BIG, "{record:?}");
    })
    .await;
}

/// The body ended long before.
#[tokio::test]
async fn a_reset_while_the_end_of_the_body_is_in_a_buffer_aborts_it() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).small_buffers().start();
        let mut client = Http1::connect_to_reset(&site).await;
        client.send_get("/full/8388608").await;
        site.body_dropped("/full/8388608").await;
        client.head().await;
        drop(client);
        let record = site.record("/full/8388608").await;
        record.is(End::Aborted, Delivery::None);
        assert_eq!(record.body_bytes, BIG);
        assert!(record.taken < BIG, "{record:?}");
    })
    .await;
}

/// T3d, C7: h2 drops what it has queued, and the connection goes on.
#[tokio::test]
async fn a_stream_that_is_reset_after_the_end_of_its_body_is_aborted() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::with_windows(&site, 65_535, 1 << 20).await;
        let response = client.start("/full/1048576").await.await.unwrap();
        site.body_dropped("/full/1048576").await;
        drop(response);
        let record = site.record("/full/1048576").await;
        record.is(End::Aborted, Delivery::None);
        assert_eq!(record.body_bytes, 1 << 20);
        assert_eq!(client.get("/full/5").await.unwrap().body, 5);
        site.record("/full/5").await.is_flushed(5);
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_ends_aborts_all_that_is_open_on_it() {
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
            site.record(path).await.is(End::Aborted, Delivery::None);
        }
        site.record("/wait/full/1").await.is(End::NoResponse, Delivery::None);
        drop((responses, waiting));
    })
    .await;
}

/// B10.
#[tokio::test]
async fn a_client_that_leaves_while_the_handler_runs_gets_no_response() {
    on_each(ALL, |stack| async move {
        for setup in [Setup::on(stack), Setup::on(stack).untracked()] {
            let mut site = setup.start();
            let mut client = Client::connect(&site).await;
            let _started = client.start("/wait/full/5").await;
            site.handlers.reached().await;
            client.hang_up().await;
            let record = site.record("/wait/full/5").await;
            record.is(End::NoResponse, Delivery::None);
            assert_eq!((record.status, record.has_head, record.body_bytes), (None, false, 0), "{record:?}");
        }
    })
    .await;
}

/// C7.
#[tokio::test]
async fn a_stream_that_is_reset_while_the_handler_runs_gets_no_response() {
    on_each(HTTP2, |stack| async move {
        for setup in [Setup::on(stack), Setup::on(stack).untracked()] {
            let mut site = setup.start();
            let mut client = Http2::connect(&site).await;
            let response = client.start("/wait/full/5").await;
            site.handlers.reached().await;
            drop(response);
            site.record("/wait/full/5").await.is(End::NoResponse, Delivery::None);
            assert_eq!(client.get("/full/6").await.unwrap().body, 6);
        }
    })
    .await;
}

/// Whether the handler has a chance to register is the runtime's choice; if it does, it is told, and not nonsense.
#[tokio::test]
async fn a_reset_right_behind_its_request_leaves_no_hook_without_an_outcome() {
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

/// B7: what was flushed stays flushed.
#[tokio::test]
async fn a_client_that_leaves_after_the_last_byte_changes_nothing() {
    on_each(ALL, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Client::connect(&site).await;
        client.get("/full/100").await;
        client.hang_up().await;
        site.record("/full/100").await.is_flushed(100);
    })
    .await;
}

/// The future of the connection is dropped in the middle of a response.
#[tokio::test]
async fn a_server_that_drops_the_connection_aborts_the_response() {
    let stacks: Vec<Stack> = ALL.iter().copied().filter(|stack| !stack.is_axum()).collect();
    on_each(&stacks, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Client::connect(&site).await;
        let started = client.start("/hang/1000").await;
        let _kept = client.await_head(started).await;
        site.kill();
        site.record("/hang/1000").await.is(End::Aborted, Delivery::None);
    })
    .await;
}

/// A client that only shuts its own side is still there to be answered, if hyper is told so; here it is not.
#[tokio::test]
async fn a_client_that_has_sent_all_and_reads_on_is_told_of_no_more_than_it_got() {
    on_each(PLAIN_HTTP1, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        client.send_get("/gated/1000/1000").await;
        client.head().await;
        client.shut_writing().await;
        let got = client.rest().await;
        let record = site.record("/gated/1000/1000").await;
        record.is(End::Aborted, Delivery::None);
        assert!(got < 2000 && record.body_bytes == 1000, "{got} {record:?}");
    })
    .await;
}

/// Both sides of the flow control: a stream that waited for its window, then was reset, then another uses the window.
#[tokio::test]
async fn the_window_of_a_stream_that_was_reset_serves_the_next() {
    on_each(PLAIN_HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::with_windows(&site, 65_535, 65_535).await;
        for number in 1..=5_u64 {
            let path = format!("/full/1048576?{number}");
            let blocked = client.start(&path).await.await.unwrap();
            site.body_dropped(&path).await;
            drop(blocked);
            site.record(&path).await.is(End::Aborted, Delivery::None);
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
            site.record("/full/30000").await.is(End::Aborted, Delivery::None);
        }
    })
    .await;
}
