//! Random pipelined HTTP/1 requests over random transports, compared with what the client received.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    sync::mpsc,
};
use tower::{Layer, service_fn};
use tower_offload::{
    Background,
    after_response::{AfterResponse, AfterResponseLayer, Delivery, End, Outcome},
    flush::Tracker,
};

use crate::support::{Chop, Choppy, within};

/// A linear congruential generator.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// Accepts random parts of writes, and is pending at random.
struct Moody {
    random: Random,
    /// The maximum number of bytes accepted at once.
    size: usize,
}

impl Chop for Moody {
    fn pauses(&mut self, _: bool) -> bool {
        self.random.below(4) == 0
    }

    fn max_write(&mut self) -> usize {
        1 + self.random.clone().below(self.size)
    }
}

/// A request, and the exact bytes of its response.
struct Exchange {
    request: Vec<u8>,
    response: Vec<u8>,
    body: u64,
}

/// Returns a random request. Its path is its number, the kind of its response and the length.
fn exchange(number: usize, random: &mut Random) -> Exchange {
    let length = if random.below(8) == 0 { random.below(6_000) } else { random.below(60) };
    let (kind, body) = match random.below(5) {
        0 if length > 0 => ("head", 0), // otherwise hyper sends no length
        1 => ("empty", 0),
        2 => ("chunks", 3 * length),
        _ => ("full", length),
    };
    let response = match kind {
        "empty" => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        "chunks" if length > 0 => {
            let chunk = format!("{length:X}\r\n{}\r\n", "x".repeat(length));
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(3))
        }
        "chunks" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "head" => format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"),
        _ => format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{}", "x".repeat(length)),
    };
    let method = if kind == "head" { "HEAD" } else { "POST" };
    // The handler reads no body.
    let unread = if kind == "head" { String::new() } else { "unread".repeat(random.below(4)) };
    let request = format!(
        "{method} /{number}/{kind}/{length} HTTP/1.1\r\nhost: site\r\ncontent-length: {}\r\n\r\n{unread}",
        unread.len()
    );
    Exchange { request: request.into_bytes(), response: response.into_bytes(), body: body as u64 }
}

fn body(kind: &str, length: usize) -> UnsyncBoxBody<Bytes, Infallible> {
    match kind {
        "empty" => Full::default().boxed_unsync(),
        "chunks" => {
            let frames = stream::unfold(0, move |sent| async move {
                tokio::task::yield_now().await;
                (sent < 3 && length > 0).then(|| (Ok(Frame::data(Bytes::from(vec![b'x'; length]))), sent + 1))
            });
            StreamBody::new(frames).boxed_unsync()
        }
        _ => Full::from(vec![b'x'; length]).boxed_unsync(),
    }
}

/// Number, outcome, and the number of bytes that the transport had accepted.
type Reported = (usize, Outcome, usize);

/// Serves the transport until the connection ends, and returns what was reported.
async fn serve(io: Choppy<Moody>, pipeline_flush: bool, works: bool) -> Vec<Reported> {
    let (sender, mut outcomes) = mpsc::unbounded_channel();
    let accepted = io.accepted();
    let called = Arc::new(AtomicUsize::new(0));
    let calls = called.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        calls.fetch_add(1, SeqCst);
        let path: Vec<_> = request.uri().path().split('/').map(str::to_owned).collect();
        let (number, length) = (path[1].parse().unwrap(), path[3].parse().unwrap());
        let (sender, accepted) = (sender.clone(), accepted.clone());
        request.extensions().get::<AfterResponse>().unwrap().hook(move |outcome| {
            let _ = sender.send((number, outcome.clone(), accepted.load(SeqCst)));
        });
        async move {
            if works {
                tokio::task::yield_now().await;
            }
            let status = if path[2] == "empty" { 204 } else { 200 };
            Ok::<_, Infallible>(Response::builder().status(status).body(body(&path[2], length)).unwrap())
        }
    });
    let service = TowerToHyperService::new(AfterResponseLayer::new(Background::default()).layer(service));
    let tracker = Tracker::new();
    let (io, service) = tracker.track(TokioIo::new(io), service);
    let mut builder = http1::Builder::new();
    builder.pipeline_flush(pipeline_flush).auto_date_header(false);
    _ = builder.serve_connection(io, service).await;
    // Every request that reached the handler has an outcome now, or at the next poll of its task.
    let mut reported = Vec::new();
    for _ in 0..called.load(SeqCst) {
        reported.push(outcomes.recv().await.unwrap());
    }
    assert!(outcomes.try_recv().is_err(), "each has one outcome");
    let stats = tracker.stats();
    assert_eq!((stats.gave_up, stats.unmapped, stats.mismatched), (0, 0, 0), "{stats:?}");
    reported
}

#[tokio::test]
async fn outcomes_agree_with_what_the_client_received() {
    for seed in 0..300 {
        within(case(seed)).await;
    }
}

#[tokio::test]
#[ignore = "takes a minute; with `cargo test --release`"]
async fn outcomes_agree_with_what_the_client_received_for_long() {
    for seed in 300..20_000 {
        within(case(seed)).await;
    }
}

/// hyper adds this field to the last response if it is about to close the connection.
const CLOSE: &[u8] = b"connection: close\r\n";

fn find_close(received: &[u8]) -> Option<usize> {
    received.windows(CLOSE.len()).position(|bytes| bytes == CLOSE)
}

/// Returns `true` if the last bytes are a part of that field.
fn ends_within_close(received: &[u8]) -> bool {
    (1..CLOSE.len()).any(|length| received.ends_with(&CLOSE[..length]))
}

async fn case(seed: u64) {
    let mut random = Random(seed);
    let exchanges: Vec<_> = (0..1 + random.below(12)).map(|number| exchange(number, &mut random)).collect();
    let (client, server) = duplex([64, 700, 1 << 16][random.below(3)]);
    let size = [1, 7, 60, 1 << 16][random.below(4)];
    let io = Choppy::new(server, Moody { random: random.clone(), size });
    let (pipeline_flush, works) = (random.below(2) == 0, random.below(2) == 0);
    let served = tokio::spawn(serve(io, pipeline_flush, works));

    let total: usize = exchanges.iter().map(|exchange| exchange.response.len()).sum();
    // The client leaves after this number of bytes, or reads everything.
    let leaves = if random.below(3) == 0 { random.below(total + 1) } else { total };
    let requests = exchanges.iter().flat_map(|exchange| exchange.request.clone()).collect::<Vec<_>>();
    let (mut reader, mut writer) = tokio::io::split(client);
    let writes = tokio::spawn(async move {
        _ = writer.write_all(&requests).await;
        writer
    });
    let (mut received, mut piece, mut is_closed) = (Vec::new(), [0; 300], false);
    loop {
        let has_close = leaves == total && (find_close(&received).is_some() || ends_within_close(&received));
        let leaves = leaves + if has_close { CLOSE.len() } else { 0 };
        if received.len() >= leaves {
            break;
        }
        for _ in 0..random.below(4) {
            tokio::task::yield_now().await;
        }
        let limit = (1 + random.below(300)).min(leaves - received.len());
        let read = reader.read(&mut piece[..limit]).await.unwrap();
        if read == 0 {
            // hyper closes if the rest of a request that was not read has not arrived.
            is_closed = true;
            break;
        }
        received.extend(&piece[..read]);
    }
    let expected = exchanges.iter().flat_map(|exchange| exchange.response.clone()).collect::<Vec<_>>();
    if let Some(at) = find_close(&received) {
        received.drain(at..at + CLOSE.len());
    }
    while ends_within_close(&received) && !expected.starts_with(&received) {
        received.pop();
    }
    let differs = expected.iter().zip(&received).position(|(expected, received)| expected != received);
    let around =
        differs.map(|at| String::from_utf8_lossy(&received[at.saturating_sub(120)..(at + 60).min(received.len())]));
    assert_eq!(around, None, "seed {seed}");
    let mut ends = Vec::new();
    for exchange in &exchanges {
        ends.push(ends.last().unwrap_or(&0) + exchange.response.len());
    }
    writes.abort();
    let writer = writes.await;
    if is_closed || leaves == total {
        // The client stays until all outcomes are known. An open connection does not end, so the
        // client lets the server flush what it has accepted.
        assert!(ends.contains(&received.len()), "seed {seed}: the last response is incomplete");
        let turns = if is_closed { usize::MAX } else { 1000 };
        for _ in (0..turns).take_while(|_| !served.is_finished()) {
            tokio::task::yield_now().await;
        }
    }
    drop((reader, writer));

    let reported = served.await.unwrap();
    for (number, outcome, accepted) in &reported {
        let case =
            format!("seed {seed}, response {number} ends at {}, {accepted} accepted: {outcome:?}", ends[*number]);
        match outcome.delivery {
            Delivery::Flushed => {
                assert!(*accepted >= ends[*number], "early: {case}");
                assert_eq!((outcome.end, outcome.body_bytes), (End::Complete, exchanges[*number].body), "{case}");
            }
            _ => assert!(leaves < total && !is_closed, "everything was received: {case}"),
        }
    }
    if is_closed || leaves == total {
        assert_eq!(ends[reported.len() - 1], received.len(), "seed {seed}");
    }
}
