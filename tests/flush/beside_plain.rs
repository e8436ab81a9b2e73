//! Unusual clients, beside a plain connection: the same input gets the same bytes, calls the same
//! handlers, and each call has one outcome.

use std::{
    convert::Infallible,
    future,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};
use tower::{Layer, service_fn};
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background, after_response::Delivery, flush::Tracker, pool::Inline,
};

use super::support::{BoxError, frames};

/// Between two segments. The clock is paused, so it costs no time.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Reads for as long as something arrives.
    Reads,
    /// Closes its writing side, and reads.
    ShutsDown,
    /// Closes the connection without reading.
    Leaves,
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    received: Vec<u8>,
    calls: Vec<String>,
}

type Body = UnsyncBoxBody<Bytes, BoxError>;

fn body(frames: Vec<Result<Frame<Bytes>, BoxError>>) -> Body {
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

fn data(text: &'static str) -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

/// Responds as the path says.
async fn respond(mut request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let response = Response::builder();
    let trailers = || HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("end"))]);
    let response = match path.as_str() {
        "/echo" => {
            let mut text = match request.body_mut().collect().await {
                Ok(all) => all.to_bytes().to_vec(),
                Err(_) => b"error".to_vec(),
            };
            text.push(b'.');
            response.body(body(vec![Ok(Frame::data(text.into()))]))
        }
        "/fields" => {
            let fields = request.headers().iter().map(|(name, value)| format!("{name}={value:?};"));
            response.body(body(vec![Ok(Frame::data(fields.collect::<String>().into()))]))
        }
        "/empty-frames" => response.body(body(vec![data(""), data("a"), data(""), data("b"), data("")])),
        "/trailers" => response.body(body(vec![data("a"), Ok(Frame::trailers(trailers()))])),
        "/trailers-twice" => {
            response.body(body(vec![Ok(Frame::trailers(trailers())), Ok(Frame::trailers(trailers()))]))
        }
        "/data-after-trailers" => response.body(body(vec![data("a"), Ok(Frame::trailers(trailers())), data("b")])),
        "/empty-trailers" => response.body(body(vec![Ok(Frame::trailers(HeaderMap::new()))])),
        "/fails" => response.body(body(vec![data("a"), Err("fails".into())])),
        "/fails-at-once" => response.body(body(vec![Err("fails".into())])),
        "/short" => response.header("content-length", "5").body(body(vec![data("ab")])),
        "/long" => response.header("content-length", "2").body(body(vec![data("abcdef")])),
        "/zero-length" => response.header("content-length", "0").body(body(vec![data("abc")])),
        "/two-lengths" => {
            response.header("content-length", "2").header("content-length", "2").body(body(vec![data("ab")]))
        }
        "/no-length" => response.header("content-length", "x").body(body(vec![data("ab")])),
        "/chunked-and-length" => {
            response.header("transfer-encoding", "chunked").header("content-length", "2").body(body(vec![data("ab")]))
        }
        "/204" => response.status(204).body(body(vec![data("no")])),
        "/205" => response.status(205).body(body(vec![data("no")])),
        "/304" => response.status(304).header("content-length", "100").body(body(vec![data("no")])),
        "/101" => response.status(101).body(body(vec![])),
        "/103" => response.status(103).body(body(vec![])),
        "/599" => response.status(599).body(body(vec![data("599")])),
        "/close" => response.header("connection", "close").body(body(vec![data("last")])),
        "/mark" => response.header("www-authenticate", "Basic").status(401).body(body(vec![])),
        "/pends" => {
            let frames = stream::iter([data("a")]).chain(stream::once(future::pending()));
            response.body(StreamBody::new(frames).boxed_unsync())
        }
        "/never" => future::pending().await,
        "/slow" => {
            sleep(PAUSE * 3).await;
            response.body(body(vec![data("slow")]))
        }
        "/large" => response.body(body(vec![Ok(Frame::data(vec![b'x'; 200_000].into()))])),
        "/many-frames" => response.body(body((0..300).map(|_| data("0123456789")).collect())),
        _ if request.method() == Method::CONNECT => {
            let upgrade = hyper::upgrade::on(request);
            tokio::spawn(async move {
                let Ok(upgraded) = upgrade.await else { return };
                let mut io = TokioIo::new(upgraded);
                let mut start = [0; 4];
                if io.read_exact(&mut start).await.is_ok() {
                    let _ = io.write_all(&start).await;
                    let _ = io.shutdown().await;
                }
            });
            response.body(body(vec![]))
        }
        _ => response.status(StatusCode::NOT_FOUND).body(body(vec![data("?")])),
    };
    response.unwrap()
}

/// Serves a client that sends these segments, and returns what it saw. Checks that each call has
/// one outcome.
async fn serve(segments: &[Vec<u8>], then: Then, is_tracked: bool) -> Seen {
    let background = Background::new(Inline::new());
    let (calls, outcomes) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let service = service_fn({
        let (calls, outcomes) = (calls.clone(), outcomes.clone());
        move |request: Request<Incoming>| {
            let line = format!("{} {}", request.method(), request.uri());
            calls.lock().unwrap().push(line.clone());
            let outcomes = outcomes.clone();
            let after = request.extensions().get::<AfterResponse>().unwrap();
            after.hook(move |outcome| outcomes.lock().unwrap().push((line, outcome.delivery)));
            async move { Ok::<_, Infallible>(respond(request).await) }
        }
    });
    let service = TowerToHyperService::new(AfterResponseLayer::new(background.clone()).layer(service));
    let (mut client, server) = tokio::io::duplex(1 << 14);
    let io = TokioIo::new(server);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().auto_date_header(false).timer(TokioTimer::new());
    builder.http2().auto_date_header(false).enable_connect_protocol().timer(TokioTimer::new());
    let tracker = Tracker::new();
    let mut server = if is_tracked {
        let (io, service) = tracker.track(io, service);
        tokio::spawn(async move { drop(builder.serve_connection_with_upgrades(io, service).await) })
    } else {
        tokio::spawn(async move { drop(builder.serve_connection_with_upgrades(io, service).await) })
    };
    let mut received = Vec::new();
    for segment in segments {
        // The server may have closed the connection, or may not read.
        let _ = timeout(PAUSE, client.write_all(segment)).await;
        sleep(PAUSE).await;
    }
    if then == Then::ShutsDown {
        let _ = client.shutdown().await;
    }
    if then != Then::Leaves {
        let mut part = [0; 4096];
        while let Ok(Ok(length @ 1..)) = timeout(Duration::from_secs(1), client.read(&mut part)).await {
            received.extend(&part[..length]);
        }
    }
    drop(client);
    // hyper does not notice that a client left while a pipelined request is buffered.
    if timeout(Duration::from_secs(5), &mut server).await.is_err() {
        server.abort();
    }
    sleep(Duration::from_secs(1)).await;
    let calls = calls.lock().unwrap().clone();
    let outcomes = outcomes.lock().unwrap();
    let (mut called, mut ended): (Vec<_>, Vec<_>) = (calls.clone(), outcomes.iter().map(|it| it.0.clone()).collect());
    called.sort();
    ended.sort();
    assert_eq!(called, ended, "calls and outcomes, tracked: {is_tracked}");
    if !is_tracked {
        assert!(outcomes.iter().all(|it| it.1 != Delivery::Flushed));
    }
    Seen { received, calls }
}

/// Returns the names of the clients that see a difference.
async fn differences(clients: Vec<(String, Vec<Vec<u8>>, Then)>) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, segments, then) in clients {
        let plain = serve(&segments, then, false).await;
        let tracked = serve(&segments, then, true).await;
        if plain != tracked {
            differences.push(format!(
                "{name}, {then:?}: plain {:?} {:?}, tracked {:?} {:?}",
                plain.calls,
                Bytes::from(plain.received),
                tracked.calls,
                Bytes::from(tracked.received)
            ));
        }
    }
    differences
}

const PATHS: [&str; 30] = [
    "/echo",
    "/fields",
    "/empty-frames",
    "/trailers",
    "/trailers-twice",
    "/data-after-trailers",
    "/empty-trailers",
    "/fails",
    "/fails-at-once",
    "/short",
    "/long",
    "/zero-length",
    "/two-lengths",
    "/no-length",
    "/chunked-and-length",
    "/204",
    "/205",
    "/304",
    "/101",
    "/103",
    "/599",
    "/close",
    "/mark",
    "/pends",
    "/never",
    "/slow",
    "/large",
    "/many-frames",
    "/?",
    "/%00",
];

const HTTP1: [&str; 30] = [
    "GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.0\r\n\r\n",
    "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\nGET /echo HTTP/1.0\r\n\r\n",
    "GET / HTTP/2.0\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\rx",
    "PRI * HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\nGET /echo HTTP/1.1\r\nhost: x\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc",
    "POST /204 HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\nexpect: 200-ok\r\ncontent-length: 3\r\n\r\nabc",
    "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3;a=b;c=\"d\"\r\nabc\r\n0;e\r\nx: y\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /204 HTTP/1.1\r\nhost: x\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nabc",
    "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab",
    "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 18446744073709551615\r\n\r\nabc",
    "POST /204 HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nabc",
    "GET /large HTTP/1.1\r\nhost: x\r\n\r\nGET /large HTTP/1.1\r\nhost: x\r\n\r\nGET /echo HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET /slow HTTP/1.1\r\nhost: x\r\n\r\nGET /echo HTTP/1.1\r\nhost: x\r\n\r\n\r\n\r\nGET /204 HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET /pends HTTP/1.1\r\nhost: x\r\n\r\nGET /echo HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET /echo HTTP/1.1\r\nhost: x\r\n\r\n\0\0\0garbage",
    "CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\nabcd",
    "CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\nHTTP/1.1 200 OK\r\n",
    "OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET http://other/echo HTTP/1.1\r\nhost: x\r\nwww-authenticate: x\r\n\r\n",
    "GET /101 HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nmore",
    "GET /echo HTTP/1.1\r\nhost: x\r\nx:\x01\r\n\r\n",
];

#[tokio::test(start_paused = true)]
async fn http1_clients_see_what_they_see_on_a_plain_connection() {
    let mut clients = Vec::new();
    let mut add = |name: String, text: &[u8]| {
        for then in [Then::Reads, Then::ShutsDown, Then::Leaves] {
            clients.push((name.clone(), vec![text.to_vec()], then));
        }
        // The rest of such a request is ordinary.
        if !name.contains(" /") || name.contains("\\r") {
            // In segments of one byte.
            clients.push((format!("{name} bytewise"), text.iter().map(|byte| vec![*byte]).collect(), Then::Reads));
        }
    };
    for text in HTTP1 {
        add(format!("{text:?}"), text.as_bytes());
    }
    for path in PATHS {
        for method in ["GET", "HEAD", "POST"] {
            for version in ["1.0", "1.1"] {
                let request = format!("{method} {path} HTTP/{version}\r\nhost: x\r\nte: trailers\r\n\r\n");
                add(format!("{method} {path} {version}"), request.repeat(2).as_bytes());
            }
        }
    }
    let differences = differences(clients).await;
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Encodes a HPACK literal without indexing, with a literal name.
fn field(name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![0x00, u8::try_from(name.len()).unwrap()];
    field.extend(name.as_bytes());
    field.push(u8::try_from(value.len()).unwrap());
    field.extend(value.as_bytes());
    field
}

fn block(method: &str, path: &str, rest: &[(&str, &str)]) -> Vec<u8> {
    let start = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x")];
    start.iter().chain(rest).flat_map(|(name, value)| field(name, value)).collect()
}

fn request(stream: u32, block: &[u8]) -> Vec<u8> {
    frames::frame(1, 5, stream, block)
}

/// A HEADERS frame and CONTINUATION frames, split at each position.
fn continued(stream: u32, block: &[u8], size: usize) -> Vec<u8> {
    let mut parts = block.chunks(size).peekable();
    let mut bytes = frames::frame(1, 1, stream, parts.next().unwrap());
    while let Some(part) = parts.next() {
        bytes.extend(frames::frame(9, if parts.peek().is_none() { 4 } else { 0 }, stream, part));
    }
    bytes
}

fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frames::frame(8, 0, stream, &increment.to_be_bytes())
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    frames::frame(4, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

fn http2() -> Vec<(String, Vec<Vec<u8>>)> {
    let get = |stream, path| request(stream, &block("GET", path, &[]));
    let open = |stream, path| frames::frame(1, 4, stream, &block("POST", path, &[]));
    let ping = || frames::frame(6, 0, 0, &[7; 8]);
    let mut clients: Vec<(&str, Vec<Vec<u8>>)> = vec![
        (
            "connect",
            vec![
                frames::frame(1, 4, 1, &[field(":method", "CONNECT"), field(":authority", "x:1")].concat()),
                frames::frame(0, 0, 1, b"abcd"),
            ],
        ),
        (
            "extended connect",
            vec![
                frames::frame(1, 4, 1, &block("CONNECT", "/ws", &[(":protocol", "websocket")])),
                frames::frame(0, 1, 1, b"abcd"),
            ],
        ),
        ("connect with path", vec![request(1, &block("CONNECT", "/ws", &[]))]),
        ("protocol without connect", vec![request(1, &block("GET", "/echo", &[(":protocol", "websocket")]))]),
        (
            "priority frames",
            vec![frames::frame(2, 0, 1, &[0, 0, 0, 3, 9]), get(1, "/echo"), frames::frame(2, 0, 1, &[0, 0, 0, 3, 9])],
        ),
        ("priority on itself", vec![frames::frame(2, 0, 1, &[0, 0, 0, 1, 9]), get(1, "/echo")]),
        ("priority of four bytes", vec![frames::frame(2, 0, 1, &[0; 4]), get(1, "/echo")]),
        (
            "headers with priority",
            vec![frames::frame(1, 0x25, 1, &[&[0, 0, 0, 0, 200][..], &block("GET", "/echo", &[])].concat())],
        ),
        (
            "headers depend on itself",
            vec![frames::frame(1, 0x25, 1, &[&[0, 0, 0, 1, 200][..], &block("GET", "/echo", &[])].concat())],
        ),
        (
            "padded and priority",
            vec![frames::frame(
                1,
                0x2d,
                1,
                &[&[3, 0, 0, 0, 0, 200][..], &block("GET", "/fields", &[]), &[0; 3]].concat(),
            )],
        ),
        ("padding of all", vec![frames::frame(1, 0xd, 1, &[255; 255]), get(3, "/echo")]),
        ("push disabled", vec![setting(2, 0), get(1, "/echo")]),
        ("push enabled", vec![setting(2, 1), get(1, "/echo")]),
        ("push 2", vec![setting(2, 2), get(1, "/echo")]),
        ("push promise of the client", vec![frames::frame(5, 4, 1, &[0, 0, 0, 2]), get(1, "/echo")]),
        ("negative window", vec![get(1, "/large"), setting(4, 0), window_update(1, 70_000), window_update(0, 100_000)]),
        (
            "window of a byte",
            vec![
                setting(4, 1),
                get(1, "/many-frames"),
                window_update(1, 1),
                window_update(1, 1),
                window_update(1, 5000),
            ],
        ),
        ("window too large", vec![setting(4, 0x8000_0000), get(1, "/echo")]),
        ("window update 0", vec![get(1, "/pends"), window_update(1, 0), get(3, "/echo")]),
        ("window update 0 of the connection", vec![get(1, "/pends"), window_update(0, 0), get(3, "/echo")]),
        ("window overflow", vec![get(1, "/pends"), window_update(1, 0x7fff_ffff), get(3, "/echo")]),
        ("window overflow of the connection", vec![get(1, "/pends"), window_update(0, 0x7fff_ffff), get(3, "/echo")]),
        ("window overflow by setting", vec![get(1, "/large"), window_update(1, 0x7fff_0000), setting(4, 0x7fff_ffff)]),
        ("frame size 0", vec![setting(5, 0), get(1, "/echo")]),
        ("frame size max", vec![setting(5, 0xff_ffff), frames::wide_window(), setting(4, 1 << 20), get(1, "/large")]),
        ("settings of five bytes", vec![frames::frame(4, 0, 0, &[0; 5]), get(1, "/echo")]),
        ("settings ack with payload", vec![frames::frame(4, 1, 0, &[0; 6]), get(1, "/echo")]),
        ("settings ack too many", vec![frames::frame(4, 1, 0, &[]), frames::frame(4, 1, 0, &[]), get(1, "/echo")]),
        ("settings on a stream", vec![frames::frame(4, 0, 1, &[]), get(1, "/echo")]),
        ("unknown settings", vec![setting(0xff, 9), setting(0, 0), get(1, "/echo")]),
        ("header table 0", vec![setting(1, 0), get(1, "/echo"), get(3, "/mark")]),
        ("header table of 4 GB", vec![setting(1, u32::MAX), get(1, "/echo"), get(3, "/mark")]),
        (
            "table size updates",
            vec![
                request(1, &[&[0x20, 0x3f, 0xe1, 0x1f][..], &block("GET", "/echo", &[])].concat()),
                request(3, &[&[0x20][..], &block("GET", "/fields", &[])].concat()),
            ],
        ),
        (
            "three table size updates",
            vec![request(1, &[&[0x20, 0x20, 0x20][..], &block("GET", "/echo", &[])].concat())],
        ),
        (
            "table size over the limit",
            vec![request(1, &[&[0x3f, 0xff, 0xff, 0x03][..], &block("GET", "/echo", &[])].concat())],
        ),
        ("table size update at the end", vec![request(1, &[&block("GET", "/echo", &[])[..], &[0x20]].concat())]),
        ("goaway, then a request", vec![get(1, "/slow"), frames::frame(7, 0, 0, &[0; 8]), get(3, "/echo"), ping()]),
        (
            "goaway with error",
            vec![get(1, "/pends"), frames::frame(7, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 2]), get(3, "/echo")],
        ),
        (
            "goaway twice, growing",
            vec![frames::frame(7, 0, 0, &[0; 8]), frames::frame(7, 0, 0, &[0, 0, 0, 9, 0, 0, 0, 0]), get(1, "/echo")],
        ),
        ("goaway of 7 bytes", vec![get(1, "/pends"), frames::frame(7, 0, 0, &[0; 7])]),
        ("pings", vec![(0..200).flat_map(|_| ping()).collect(), get(1, "/echo")]),
        ("ping of seven bytes", vec![frames::frame(6, 0, 0, &[0; 7]), get(1, "/echo")]),
        ("ping on a stream", vec![frames::frame(6, 0, 1, &[0; 8]), get(1, "/echo")]),
        ("padded data", vec![open(1, "/echo"), frames::frame(0, 8, 1, b"\x02ab\0\0"), frames::frame(0, 9, 1, b"\0")]),
        ("data is all padding", vec![open(1, "/echo"), frames::frame(0, 9, 1, &[&[255][..], &[0; 255]].concat())]),
        ("data with too much padding", vec![open(1, "/echo"), frames::frame(0, 9, 1, b"\x09ab"), get(3, "/echo")]),
        ("padded data without length", vec![open(1, "/echo"), frames::frame(0, 9, 1, b""), get(3, "/echo")]),
        ("empty data at the end", vec![open(1, "/echo"), frames::frame(0, 0, 1, b"ab"), frames::frame(0, 1, 1, b"")]),
        ("data after the end", vec![get(1, "/slow"), frames::frame(0, 1, 1, b"more"), get(3, "/echo")]),
        ("data on stream 0", vec![frames::frame(0, 1, 0, b"x"), get(1, "/echo")]),
        ("data on an idle stream", vec![frames::frame(0, 1, 9, b"x"), get(1, "/echo")]),
        (
            "trailers of a request",
            vec![
                open(1, "/echo"),
                frames::frame(0, 0, 1, b"ab"),
                frames::frame(1, 5, 1, &field("x", "y")),
                get(3, "/echo"),
            ],
        ),
        ("trailers without the end", vec![open(1, "/echo"), frames::frame(1, 4, 1, &field("x", "y")), get(3, "/echo")]),
        (
            "trailers with pseudo fields",
            vec![open(1, "/echo"), frames::frame(1, 5, 1, &field(":path", "y")), get(3, "/echo")],
        ),
        ("empty trailers", vec![open(1, "/echo"), frames::frame(1, 5, 1, &[]), get(3, "/echo")]),
        (
            "own www-authenticate",
            vec![request(1, &block("GET", "/fields", &[("www-authenticate", "a"), ("www-authenticate", "\u{80}b")]))],
        ),
        (
            "www-authenticate in trailers",
            vec![open(1, "/echo"), frames::frame(1, 5, 1, &field("www-authenticate", "y")), get(3, "/fields")],
        ),
        ("never indexed", vec![request(1, &[&block("GET", "/fields", &[])[..], &[0x10, 1, b'x', 1, b'y']].concat())]),
        ("last id", vec![get(0x7fff_ffff, "/echo"), get(1, "/echo")]),
        ("reserved bit", vec![get(0x8000_0001, "/echo"), get(3, "/echo")]),
        ("even id", vec![get(2, "/echo"), get(3, "/echo")]),
        ("id 0", vec![get(0, "/echo"), get(3, "/echo")]),
        ("id used twice", vec![get(1, "/echo"), get(1, "/echo"), get(3, "/echo")]),
        ("id used twice while open", vec![get(1, "/pends"), get(1, "/echo"), get(3, "/echo")]),
        ("lower id later", vec![get(5, "/echo"), get(3, "/echo"), get(7, "/echo")]),
        ("reset of an idle stream", vec![frames::reset(9), get(1, "/echo")]),
        ("reset of stream 0", vec![frames::reset(0), get(1, "/echo")]),
        ("reset of three bytes", vec![get(1, "/pends"), frames::frame(3, 0, 1, &[0; 3]), get(3, "/echo")]),
        ("reset twice", vec![get(1, "/pends"), frames::reset(1), frames::reset(1), get(3, "/echo")]),
        ("request after its reset", vec![get(1, "/pends"), frames::reset(1), get(1, "/echo"), get(3, "/echo")]),
        (
            "unknown frames",
            vec![frames::frame(0xbb, 0xff, 1, b"unknown"), get(1, "/echo"), frames::frame(0xbb, 1, 1, b"")],
        ),
        (
            "unknown frame in a block",
            vec![
                frames::frame(1, 1, 1, &block("GET", "/echo", &[])),
                frames::frame(0xbb, 0, 1, b""),
                frames::frame(9, 4, 1, b""),
            ],
        ),
        (
            "ping in a block",
            vec![frames::frame(1, 1, 1, &block("GET", "/echo", &[])), ping(), frames::frame(9, 4, 1, b"")],
        ),
        (
            "continuation of another stream",
            vec![frames::frame(1, 1, 1, &block("GET", "/echo", &[])), frames::frame(9, 4, 3, b"")],
        ),
        ("continuation alone", vec![frames::frame(9, 4, 1, &block("GET", "/echo", &[])), get(3, "/echo")]),
        ("frame too large", vec![frames::frame(0, 0, 1, &[0; 16_385]), get(1, "/echo")]),
        ("field of upper case", vec![request(1, &block("GET", "/echo", &[("X", "y")])), get(3, "/echo")]),
        ("connection field", vec![request(1, &block("GET", "/echo", &[("connection", "close")])), get(3, "/echo")]),
        ("te field", vec![request(1, &block("GET", "/echo", &[("te", "gzip")])), get(3, "/trailers")]),
        ("path twice", vec![request(1, &block("GET", "/echo", &[(":path", "/")])), get(3, "/echo")]),
        ("empty path", vec![request(1, &block("GET", "", &[])), get(3, "/echo")]),
        (
            "content-length differs",
            vec![
                frames::frame(1, 4, 1, &block("POST", "/echo", &[("content-length", "5")])),
                frames::frame(0, 1, 1, b"ab"),
                get(3, "/echo"),
            ],
        ),
        (
            "content-length without body",
            vec![request(1, &block("GET", "/echo", &[("content-length", "5")])), get(3, "/echo")],
        ),
        (
            "expect",
            vec![
                frames::frame(1, 4, 1, &block("POST", "/echo", &[("expect", "100-continue")])),
                frames::frame(0, 1, 1, b"ab"),
            ],
        ),
        (
            "huffman with eos",
            vec![
                request(1, &[&block("GET", "/echo", &[])[..], &[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff]].concat()),
                get(3, "/echo"),
            ],
        ),
        ("index 0", vec![request(1, &[&block("GET", "/echo", &[])[..], &[0x80]].concat()), get(3, "/echo")]),
        ("index of nothing", vec![request(1, &[&block("GET", "/echo", &[])[..], &[0xfe]].concat()), get(3, "/echo")]),
        ("http1 on http2", vec![b"GET / HTTP/1.1\r\n\r\n".to_vec()]),
        ("empty headers", vec![frames::frame(1, 5, 1, &[]), get(3, "/echo")]),
        (
            "extensible origin frame",
            vec![frames::frame(0xc, 0, 0, b"x"), frames::frame(0x10, 0, 0, b"\0\0\0\x01u=1"), get(1, "/echo")],
        ),
    ]
    .into_iter()
    .collect();
    let long = block("GET", "/echo", &[("www-authenticate", "a")]);
    let names: Vec<String> = (1..=long.len()).map(|size| format!("continuations of {size}")).collect();
    for (size, name) in names.iter().enumerate() {
        clients.push((name, vec![continued(1, &long, size + 1), get(3, "/echo")]));
    }
    let mut clients: Vec<(String, Vec<Vec<u8>>)> = clients.into_iter().map(|it| (it.0.to_owned(), it.1)).collect();
    for size in [100, 1000, 16_000, 16_300, 16_330, 16_340, 16_350, 16_360, 16_384, 16_400, 30_000, 300_000] {
        clients.push((format!("field of {size}"), vec![frames::get_with_field(1, "/echo", size), get(3, "/echo")]));
    }
    for path in PATHS {
        for method in ["GET", "HEAD", "POST"] {
            let parts =
                vec![request(1, &block(method, path, &[])), request(3, &block(method, path, &[("te", "trailers")]))];
            clients.push((format!("{method} {path}"), parts));
        }
    }
    clients
}

#[tokio::test(start_paused = true)]
async fn http2_clients_see_what_they_see_on_a_plain_connection() {
    let mut clients = Vec::new();
    let start = [frames::PREFACE, &frames::settings()].concat();
    for (name, parts) in http2() {
        let segments = [vec![start.clone()], parts].concat();
        for then in [Then::Reads, Then::ShutsDown, Then::Leaves] {
            clients.push((name.clone(), segments.clone(), then));
        }
        let whole = segments.concat();
        clients.push((format!("{name} in one segment"), vec![whole.clone()], Then::Reads));
        if whole.len() < 600 && !name.starts_with("GET /") && !name.contains("continuations") {
            clients.push((format!("{name} bytewise"), whole.iter().map(|byte| vec![*byte]).collect(), Then::Reads));
        }
    }
    let differences = differences(clients).await;
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
