//! Timeouts and limits of connections. Time is paused.

use std::{future::IntoFuture, time::Duration};

use axum::{Router, body::Bytes, http::StatusCode, routing::get};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::{Instant, sleep, timeout},
};
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background,
    axum::{serve, serve::Serve},
};

use crate::support::{MemoryListener, app, ask, in_memory, read_response, read_to_close, send_get};

/// The preface of HTTP/2 and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const HOUR: Duration = Duration::from_secs(3600);

type Server = Serve<MemoryListener, Router, Router>;

/// Connects to a server with these options.
fn connect(options: impl FnOnce(Server) -> Server) -> DuplexStream {
    let (listener, connect) = in_memory();
    let (app, _) = app(&Background::default());
    tokio::spawn(options(serve(listener, app)).into_future());
    connect()
}

/// Checks that the server closes the connection in `seconds` from now.
async fn closes_after(io: &mut DuplexStream, seconds: u64) {
    let start = Instant::now();
    read_to_close(io).await;
    assert_eq!(start.elapsed().as_secs(), seconds);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_nothing_is_closed() {
    closes_after(&mut connect(|server| server), 30).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_half_a_preface_is_closed() {
    let mut io = connect(|server| server);
    io.write_all(&PREFACE[..10]).await.unwrap();
    closes_after(&mut io, 30).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_half_a_head_is_closed() {
    let mut io = connect(|server| server);
    io.write_all(b"GET / HTTP/1.1\r\nhost: s").await.unwrap();
    closes_after(&mut io, 30).await;
}

#[tokio::test(start_paused = true)]
async fn sending_slowly_does_not_extend_the_header_timeout() {
    let mut io = connect(|server| server);
    let start = Instant::now();
    io.write_all(b"GET /full/5 HTTP/1.1\r\nx: ").await.unwrap();
    while io.write_all(b"x").await.is_ok() {
        assert!(start.elapsed() < HOUR);
        sleep(Duration::from_secs(7)).await;
    }
    assert_eq!(start.elapsed().as_secs(), 35);
}

#[tokio::test(start_paused = true)]
async fn an_idle_http1_connection_is_closed() {
    let mut io = connect(|server| server);
    for _ in 0..3 {
        send_get(&mut io, "/full/5").await;
        assert_eq!(read_response(&mut io).await.1, 5);
        sleep(Duration::from_secs(20)).await;
    }
    closes_after(&mut io, 10).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_handler_is_not_limited() {
    let mut io = connect(|server| server);
    let start = Instant::now();
    send_get(&mut io, "/slow/50000").await;
    read_response(&mut io).await;
    assert_eq!(start.elapsed().as_secs(), 50);
}

#[tokio::test(start_paused = true)]
async fn the_header_timeout_can_be_set() {
    closes_after(&mut connect(|server| server.header_read_timeout(Duration::from_secs(2))), 2).await;
    let mut io = connect(|server| server.header_read_timeout(Duration::from_secs(2)));
    io.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    closes_after(&mut io, 2).await;
}

#[tokio::test(start_paused = true)]
async fn the_header_timeout_can_be_removed() {
    for bytes in [&b""[..], b"GET /full/5 HTTP/1.1\r\n"] {
        let mut io = connect(|server| server.header_read_timeout(None));
        io.write_all(bytes).await.unwrap();
        assert!(timeout(HOUR, io.read_u8()).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn an_http2_client_without_pongs_is_closed() {
    let mut io = connect(|server| server);
    io.write_all(PREFACE).await.unwrap();
    closes_after(&mut io, 50).await;
}

#[tokio::test(start_paused = true)]
async fn the_longest_timeouts_do_not_overflow() {
    let longest = |server: Server| {
        server
            .header_read_timeout(Duration::MAX)
            .http2_keep_alive_interval(Duration::MAX)
            .http2_keep_alive_timeout(Duration::MAX)
    };
    let response = ask(&mut connect(longest), "/full/5").await;
    assert!(response.ends_with("\r\n\r\nxxxxx"), "{response}");
    let (mut client, connection) = h2::client::handshake(connect(longest)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("http://site/full/5").body(()).unwrap();
    assert_eq!(client.send_request(request, true).unwrap().0.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn http2_pings_can_be_set_and_removed() {
    let seconds = Duration::from_secs;
    let mut io = connect(|server| server.http2_keep_alive_interval(seconds(3)).http2_keep_alive_timeout(seconds(4)));
    io.write_all(PREFACE).await.unwrap();
    closes_after(&mut io, 7).await;

    let mut io = connect(|server| server.http2_keep_alive_interval(None));
    io.write_all(PREFACE).await.unwrap();
    assert!(timeout(HOUR, io.read_to_end(&mut Vec::new())).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_idle_http2_client_with_pongs_stays_connected() {
    let (mut client, connection) = h2::client::handshake(connect(|server| server)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        sleep(HOUR).await;
        let request = http::Request::get("http://site/full/5").body(()).unwrap();
        let response = client.send_request(request, true).unwrap().0.await.unwrap();
        assert_eq!(response.status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn the_number_of_concurrent_streams_is_announced() {
    assert_eq!(announced_streams(connect(|server| server)).await, Some(200));
    assert_eq!(announced_streams(connect(|server| server.http2_max_concurrent_streams(7))).await, Some(7));
    assert_eq!(announced_streams(connect(|server| server.http2_max_concurrent_streams(None))).await, None);
}

/// Reads `SETTINGS_MAX_CONCURRENT_STREAMS` from the first frame of the server (RFC 9113, section
/// 6.5).
async fn announced_streams(mut io: DuplexStream) -> Option<u32> {
    io.write_all(PREFACE).await.unwrap();
    let mut header = [0; 9];
    io.read_exact(&mut header).await.unwrap();
    assert_eq!(header[3], 4, "the first frame is SETTINGS");
    let mut settings = vec![0; usize::from(u16::from_be_bytes([header[1], header[2]]))];
    io.read_exact(&mut settings).await.unwrap();
    let of_streams = settings.chunks(6).find(|setting| setting[..2] == [0, 3])?;
    Some(u32::from_be_bytes(of_streams[2..].try_into().unwrap()))
}

/// Each request registers a task. The response is 503 if the background has no room.
fn registering(background: &Background) -> Router {
    let register = async |after: AfterResponse| match after.task("mail").spawn(async {}) {
        Ok(_) => (StatusCode::OK, "x"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "full"),
    };
    Router::new().route("/", get(register)).layer(AfterResponseLayer::new(background.clone()))
}

/// Each response holds the place of its task until its end is reported.
#[tokio::test(start_paused = true)]
async fn clients_that_grant_no_window_do_not_fill_the_background() {
    let background = Background::builder().max_tasks(200).build();
    let (listener, connect) = in_memory();
    tokio::spawn(serve(listener, registering(&background)).into_future());

    let (mut client, connection) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(connect()).await.unwrap();
    tokio::spawn(connection); // answers pings
    let mut kept = Vec::new();
    for _ in 0..200 {
        let request = http::Request::get("http://site/").body(()).unwrap();
        kept.push(client.send_request(request, true).unwrap().0.await.unwrap());
        client = client.ready().await.unwrap();
    }
    sleep(HOUR).await;
    assert_eq!((background.stats().reserved, background.stats().awaiting_response), (0, 0));
    let response = ask(&mut connect(), "/").await;
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
}

/// No time passes: the tasks of the hostile clients still wait for their responses.
#[tokio::test]
async fn six_clients_without_windows_leave_room_for_a_seventh() {
    let background = Background::default();
    let (listener, connect) = in_memory();
    tokio::spawn(serve(listener, registering(&background)).into_future());
    let mut kept = Vec::new();
    for _ in 0..6 {
        let (mut client, connection) =
            h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(connect()).await.unwrap();
        tokio::spawn(connection);
        for _ in 0..200 {
            let request = http::Request::get("http://site/").body(()).unwrap();
            let response = client.send_request(request, true).unwrap().0.await.unwrap();
            assert_eq!(response.status(), 200);
            kept.push(response);
            client = client.ready().await.unwrap();
        }
    }
    let response = ask(&mut connect(), "/").await;
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    background.spawn(async {}).unwrap();
}
