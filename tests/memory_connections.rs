//! Counts the bytes that are allocated with an allocator of its own, so it is a program of its own; its tests run one at a time.
#![allow(clippy::unwrap_used)]

use std::{
    alloc::System,
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tower::{Layer, service_fn, util::BoxCloneService};
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background, ThreadPool,
    after_response::{AfterResponseService, Delivery, End, Outcome},
    flush::{Tracker, TrackerStats},
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// All bytes of the process are counted, so there must be no other test meanwhile.
static ALONE: Mutex<()> = Mutex::new(());

/// Requests in a round, on either protocol.
const ROUND: u64 = 32;
/// Every so manieth request has a task, on the pool and on the runtime in turns.
const TASK: u64 = 10;
/// What is nobody's in particular: a thread that goes to sleep has freed a little or not. A byte kept of every tenth request would be
/// five times that.
const STRAY: usize = 2 * 1024;

/// What a stream may send before the client grants more, by default (RFC 9113, section 6.9.2).
const WINDOW: usize = 65_535;
const BODY: &[u8] = b"hello";

#[test]
fn a_hundred_thousand_requests_on_a_connection_keep_nothing() {
    keeps_nothing(100_000);
}

#[test]
#[ignore = "takes a while; with `cargo test --release`"]
fn a_million_requests_on_a_connection_keep_nothing() {
    keeps_nothing(1_000_000);
}

/// On one connection of each protocol, tracked, with the layer, a hook for each request and a task for every tenth.
fn keeps_nothing(requests: u64) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(http1_keeps_nothing(requests / ROUND));
    runtime.block_on(http2_keeps_nothing(requests / ROUND));
}

/// Half of a round one by one, half of it in one piece.
async fn http1_keeps_nothing(rounds: u64) {
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
    const HALF: usize = ROUND as usize / 2;

    let mut world = World::default();
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let (io, service) = world.tracker.track(TokioIo::new(server), world.service());
    let served = tokio::spawn(http1::Builder::new().auto_date_header(false).serve_connection(io, service));
    let (pipeline, mut received) = (REQUEST.repeat(HALF), [0; RESPONSE.len()]);
    let round = async |world: &World| {
        for _ in 0..HALF {
            client.write_all(REQUEST).await.unwrap();
            client.read_exact(&mut received).await.unwrap();
            assert_eq!(received, RESPONSE);
        }
        client.write_all(&pipeline).await.unwrap();
        for _ in 0..HALF {
            client.read_exact(&mut received).await.unwrap();
            assert_eq!(received, RESPONSE);
        }
        world.settled().await;
    };
    let rounds = world.kept("http/1", rounds, round).await;

    drop(client);
    served.await.unwrap().unwrap();
    let told = world.told();
    assert_eq!(told, Told { handled: rounds * ROUND, flushed: rounds * ROUND, ..Told::default() });
    let stats = world.tracker.stats();
    assert_eq!((stats.flushed, without_flushed(stats)), (told.flushed, (0, 0, 0, 0, 0)));
}

/// A round is 32 requests in one piece: one is malformed and never passed on, one is reset before there is a response, one when a
/// window of its response has come, with the rest still queued.
async fn http2_keeps_nothing(rounds: u64) {
    const MALFORMED: u64 = 5;
    const UNANSWERED: u64 = 11;
    const LARGE: u64 = 23;

    let mut world = World::default();
    let (client, server) = tokio::io::duplex(1 << 16);
    let (io, service) = world.tracker.track(TokioIo::new(server), world.service());
    let mut builder = http2::Builder::new(TokioExecutor::new());
    // Unlimited, for malformed requests by the thousand are what h2 calls an attack.
    builder.auto_date_header(false).max_local_error_reset_streams(None);
    let served = tokio::spawn(builder.serve_connection(io, service));
    let mut client = Client::new(client).await;
    let mut next = 1;
    let round = async |world: &World| {
        let mut requests = Vec::new();
        let first = next;
        for number in 0..ROUND {
            requests.extend(match number {
                MALFORMED => headers(next, &[&[0x82], &get("/")[..]].concat()), // the method twice
                UNANSWERED => headers(next, &get("/unanswered")),
                LARGE => headers(next, &get("/large")),
                _ => headers(next, &get("/")),
            });
            next += 2;
        }
        let stream = |number: u64| first + 2 * u32::try_from(number).unwrap();
        requests.extend(reset(stream(UNANSWERED)));
        client.send(&requests).await;

        let (mut ended, mut refused, mut received, mut of_large) = (0, 0, 0, 0);
        while ended < ROUND - 3 || refused < 1 || of_large < WINDOW {
            let frame = client.read().await;
            match frame.kind {
                Frame::DATA => {
                    received += frame.length;
                    if frame.stream == stream(LARGE) {
                        of_large += frame.length;
                    } else {
                        assert!(frame.ends_stream && frame.length == BODY.len());
                        ended += 1;
                    }
                }
                Frame::RESET => {
                    assert_eq!(frame.stream, stream(MALFORMED));
                    refused += 1;
                }
                Frame::GOAWAY => panic!("the server gave up"),
                _ => {}
            }
        }
        client.send(&[reset(stream(LARGE)), window_update(received)].concat()).await;
        world.settled().await;
    };
    let rounds = world.kept("http/2", rounds, round).await;

    drop(client);
    let _ = served.await.unwrap();
    let told = world.told();
    let (handled, flushed) = (rounds * (ROUND - 1), rounds * (ROUND - 3));
    assert_eq!(told, Told { handled, flushed, aborted: rounds, unanswered: rounds, other: 0 });
    let stats = world.tracker.stats();
    assert_eq!((stats.flushed, without_flushed(stats)), (flushed, (0, 2 * rounds, 0, rounds, 0)));
}

/// Gave up, lost, mismatched, undelivered, unmapped.
fn without_flushed(stats: TrackerStats) -> (u64, u64, u64, u64, u64) {
    (stats.gave_up, stats.lost, stats.mismatched, stats.undelivered, stats.unmapped)
}

type Handler = BoxCloneService<Request<Incoming>, Response<Full<Bytes>>, Infallible>;

/// What both protocols have in common: the service, and what its hooks have seen.
struct World {
    tracker: Tracker,
    background: Background,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    handled: AtomicU64,
    flushed: AtomicU64,
    aborted: AtomicU64,
    unanswered: AtomicU64,
    other: AtomicU64,
}

/// How many responses each were begun, and told of.
#[derive(Debug, Default, PartialEq)]
struct Told {
    handled: u64,
    flushed: u64,
    aborted: u64,
    unanswered: u64,
    other: u64,
}

impl World {
    fn service(&self) -> TowerToHyperService<AfterResponseService<Handler>> {
        let (counts, large) = (self.counts.clone(), Bytes::from(vec![b'x'; 2 * WINDOW]));
        let handler = service_fn(move |request| handle(request, counts.clone(), large.clone()));
        TowerToHyperService::new(AfterResponseLayer::new(self.background.clone()).layer(Handler::new(handler)))
    }

    fn told(&self) -> Told {
        let Counts { handled, flushed, aborted, unanswered, other } = &*self.counts;
        Told {
            handled: handled.load(SeqCst),
            flushed: flushed.load(SeqCst),
            aborted: aborted.load(SeqCst),
            unanswered: unanswered.load(SeqCst),
            other: other.load(SeqCst),
        }
    }

    /// Every hook has run, and every task.
    async fn settled(&self) {
        loop {
            let Told { handled, flushed, aborted, unanswered, other } = self.told();
            let tasks = self.background.stats();
            let open = tasks.reserved + tasks.queued + tasks.running;
            if handled == flushed + aborted + unanswered + other && open == 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Plays some rounds until everything is warm, and then all of them, which must keep nothing. Returns how many there were.
    async fn kept(&mut self, name: &str, rounds: u64, mut round: impl AsyncFnMut(&Self)) -> u64 {
        let warm_up = 200.min(rounds);
        for _ in 0..warm_up {
            round(self).await;
        }
        let (before, mut most) = (live(), 0);
        for _ in 0..rounds {
            round(self).await;
            most = most.max(live() - before);
        }
        let idle = async {
            while (live() - before).unsigned_abs() > STRAY {
                tokio::time::sleep(Duration::from_millis(1)).await; // a thread that goes to sleep frees the last of it
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(60), idle).await;
        let kept = live() - before;
        println!("{name}: {kept} bytes kept of {} requests, {most} at the most between rounds", rounds * ROUND);
        in_time.expect("memory is kept");
        warm_up + rounds
    }
}

impl Default for World {
    fn default() -> Self {
        let pool = ThreadPool::builder().threads(1).build().unwrap();
        Self { tracker: Tracker::new(), background: Background::new(pool), counts: Arc::default() }
    }
}

/// In bytes. Signed, since a thread may just be freeing what was there before.
fn live() -> isize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as isize - stats.bytes_deallocated as isize
}

async fn handle(
    request: Request<Incoming>,
    counts: Arc<Counts>,
    large: Bytes,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let after = request.extensions().get::<AfterResponse>().unwrap();
    let number = counts.handled.fetch_add(1, SeqCst);
    after.hook(move |outcome: &Outcome| {
        let counter = match (outcome.end, outcome.delivery) {
            (End::Complete, Delivery::Flushed) => &counts.flushed,
            (End::Aborted, Delivery::NotDelivered) => &counts.aborted,
            (End::NoResponse, Delivery::NotDelivered) => &counts.unanswered,
            _ => &counts.other,
        };
        counter.fetch_add(1, SeqCst);
    });
    if number.is_multiple_of(2 * TASK) {
        after.task("on the pool").always().spawn_blocking(|| ()).unwrap();
    } else if number.is_multiple_of(TASK) {
        after.task("on the runtime").always().spawn(tokio::task::yield_now()).unwrap();
    }
    let body = match request.uri().path() {
        "/large" => large,
        "/unanswered" => std::future::pending().await,
        _ => Bytes::from_static(BODY),
    };
    Ok(Response::new(Full::new(body)))
}

/// An HTTP/2 client that says what it is told to.
struct Client(BufReader<DuplexStream>);

/// Without its payload.
struct Frame {
    kind: u8,
    stream: u32,
    length: usize,
    ends_stream: bool,
}

impl Frame {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RESET: u8 = 3;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const WINDOW_UPDATE: u8 = 8;
}

impl Client {
    async fn new(io: DuplexStream) -> Self {
        let mut client = Self(BufReader::new(io));
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        client.send(&frame(Frame::SETTINGS, 0, 0, &[])).await;
        client.send(&window_update(64 * WINDOW)).await; // beside a stream's window, the connection's is never short
        client
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).await.unwrap();
    }

    async fn read(&mut self) -> Frame {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.unwrap();
        let [a, b, c, kind, flags, stream @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let mut payload = [0; 1 << 14];
        self.0.read_exact(&mut payload[..length]).await.unwrap();
        let ends_stream = matches!(kind, Frame::DATA | Frame::HEADERS) && flags & 1 != 0;
        if kind == Frame::SETTINGS && flags & 1 == 0 {
            self.send(&frame(Frame::SETTINGS, 1, 0, &[])).await;
        }
        Frame { kind, stream: u32::from_be_bytes(stream), length, ends_stream }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A whole request.
fn headers(stream: u32, block: &[u8]) -> Vec<u8> {
    frame(Frame::HEADERS, 0x5, stream, block)
}

/// In HPACK: static fields and literals.
fn get(path: &str) -> Vec<u8> {
    let length = u8::try_from(path.len()).unwrap();
    [&[0x82, 0x86, 0x04, length], path.as_bytes(), &[0x01, 1, b'a']].concat()
}

/// With `CANCEL`.
fn reset(stream: u32) -> Vec<u8> {
    frame(Frame::RESET, 0, stream, &8_u32.to_be_bytes())
}

fn window_update(bytes: usize) -> Vec<u8> {
    frame(Frame::WINDOW_UPDATE, 0, 0, &u32::try_from(bytes).unwrap().to_be_bytes())
}
