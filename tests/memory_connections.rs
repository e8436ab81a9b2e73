//! Counts allocated bytes with a global allocator, so these tests have their own binary and run one
//! at a time.
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

/// Serializes the tests, because all bytes of the process are counted.
static ALONE: Mutex<()> = Mutex::new(());

/// Number of requests in a round, on either protocol.
const ROUND_LENGTH: u64 = 32;
/// One request in this number has a task, alternately on the pool and on the runtime.
const TASK_PERIOD: u64 = 10;
/// The maximum growth in bytes without a leak, because a parked thread may have freed a little or
/// not. If every tenth request kept an allocation of 16 bytes, the difference would be almost
/// twenty times as large.
const MAX_STRAY: isize = 2 * 1024;

/// The number of bytes that a stream may send before the client grants more, by default (RFC 9113,
/// section 6.9.2).
const WINDOW: usize = 65_535;
const BODY: &[u8] = b"hello";

#[test]
fn many_requests_on_a_connection_keep_nothing() {
    keeps_nothing(25_000);
}

#[test]
#[ignore = "takes a while; with `cargo test --release`"]
fn a_million_requests_on_a_connection_keep_nothing() {
    keeps_nothing(1_000_000);
}

/// Tests one tracked connection of each protocol. Each request has a hook, and every tenth a task.
fn keeps_nothing(requests: u64) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(http1_keeps_nothing(requests / ROUND_LENGTH));
    runtime.block_on(http2_keeps_nothing(requests / ROUND_LENGTH));
}

/// The client sends all requests without waiting for a response, and no handler reads their bodies.
#[test]
fn pipelined_requests_with_unread_bodies_keep_memory_flat() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for pipeline_flush in [false, true] {
        runtime.block_on(pipelined_with_unread_bodies(pipeline_flush));
    }
}

async fn pipelined_with_unread_bodies(pipeline_flush: bool) {
    const REQUESTS: u64 = 20_000;
    const REQUEST: &[u8] = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 7\r\n\r\nunread.";
    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
    /// Requests and responses that are in the buffers at a time.
    const MAX_SPREAD: isize = 512 * 1024;

    let world = World::default();
    let (client, server) = tokio::io::duplex(1 << 16);
    let (io, service) = world.tracker.track(TokioIo::new(server), world.service());
    let mut builder = http1::Builder::new();
    builder.auto_date_header(false).pipeline_flush(pipeline_flush);
    let served = tokio::spawn(builder.serve_connection(io, service));
    let (mut reader, mut writer) = tokio::io::split(client);
    let requests = tokio::spawn(async move {
        for _ in 0..REQUESTS {
            writer.write_all(REQUEST).await.unwrap();
        }
        writer
    });
    let (mut received, mut levels) = ([0; RESPONSE.len()], Vec::new());
    for number in 0..REQUESTS {
        reader.read_exact(&mut received).await.unwrap();
        assert_eq!(received, RESPONSE);
        if number >= 2_000 && number % 500 == 0 {
            levels.push(live());
        }
    }
    let writer = requests.await.unwrap();
    world.settled().await;
    let spread = levels.iter().max().unwrap() - levels.iter().min().unwrap();
    println!("pipeline_flush {pipeline_flush}: {spread} bytes between the levels");
    assert!(spread < MAX_SPREAD, "{levels:?}");
    drop(reader.unsplit(writer));
    served.await.unwrap().unwrap();
    assert_eq!(world.counted(), Counted { handled: REQUESTS, flushed: REQUESTS, ..Counted::default() });
    assert_eq!(without_flushed(world.tracker.stats()), (0, 0, 0, 0, 0));
}

/// Sends half of each round one by one, and the other half pipelined.
async fn http1_keeps_nothing(rounds: u64) {
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
    const HALF: usize = ROUND_LENGTH as usize / 2;

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
    let counted = world.counted();
    assert_eq!(
        counted,
        Counted { handled: rounds * ROUND_LENGTH, flushed: rounds * ROUND_LENGTH, ..Counted::default() }
    );
    let stats = world.tracker.stats();
    assert_eq!((stats.flushed, without_flushed(stats)), (counted.flushed, (0, 0, 0, 0, 0)));
}

/// Sends the 32 requests of each round in one write. One is malformed and never delivered, one is
/// reset before there is a response, and one is reset after a window of its response, with the rest
/// still queued.
async fn http2_keeps_nothing(rounds: u64) {
    const MALFORMED: u64 = 5;
    const UNANSWERED: u64 = 11;
    const LARGE: u64 = 23;

    let mut world = World::default();
    let (client, server) = tokio::io::duplex(1 << 16);
    let (io, service) = world.tracker.track(TokioIo::new(server), world.service());
    let mut builder = http2::Builder::new(TokioExecutor::new());
    // No limit, because h2 treats thousands of malformed requests as an attack.
    builder.auto_date_header(false).max_local_error_reset_streams(None);
    let served = tokio::spawn(builder.serve_connection(io, service));
    let mut client = Client::new(client).await;
    let mut next = 1;
    let round = async |world: &World| {
        let mut requests = Vec::new();
        let first = next;
        for number in 0..ROUND_LENGTH {
            requests.extend(match number {
                MALFORMED => headers(next, &[&[0x82], &get("/")[..]].concat()), // two methods
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
        while ended < ROUND_LENGTH - 3 || refused < 1 || of_large < WINDOW {
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
    let counted = world.counted();
    let (handled, flushed) = (rounds * (ROUND_LENGTH - 1), rounds * (ROUND_LENGTH - 3));
    assert_eq!(counted, Counted { handled, flushed, aborted: rounds, unanswered: rounds, other: 0 });
    let stats = world.tracker.stats();
    assert_eq!((stats.flushed, without_flushed(stats)), (flushed, (0, 2 * rounds, 0, rounds, 0)));
}

/// Returns the counters `gave_up`, `lost`, `mismatched`, `undelivered` and `unmapped`.
fn without_flushed(stats: TrackerStats) -> (u64, u64, u64, u64, u64) {
    (stats.gave_up, stats.lost, stats.mismatched, stats.undelivered, stats.unmapped)
}

type Handler = BoxCloneService<Request<Incoming>, Response<Full<Bytes>>, Infallible>;

/// The parts that both protocols share: the service, and the outcomes that its hooks have counted.
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

/// Numbers of requests that reached the handler, and of their outcomes.
#[derive(Debug, Default, PartialEq)]
struct Counted {
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

    fn counted(&self) -> Counted {
        let Counts { handled, flushed, aborted, unanswered, other } = &*self.counts;
        Counted {
            handled: handled.load(SeqCst),
            flushed: flushed.load(SeqCst),
            aborted: aborted.load(SeqCst),
            unanswered: unanswered.load(SeqCst),
            other: other.load(SeqCst),
        }
    }

    /// Waits until every hook and every task has run.
    async fn settled(&self) {
        loop {
            let Counted { handled, flushed, aborted, unanswered, other } = self.counted();
            let tasks = self.background.stats();
            let open = tasks.awaiting_response + tasks.reserved + tasks.queued + tasks.running;
            if handled == flushed + aborted + unanswered + other && open == 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Plays rounds as a warm-up, and then `rounds` more, which must keep no memory. Returns the
    /// total number of rounds.
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
            while live() - before > MAX_STRAY {
                tokio::time::sleep(Duration::from_millis(1)).await; // a thread that parks frees the rest
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(60), idle).await;
        let kept = live() - before;
        println!("{name}: {kept} bytes kept of {} requests, {most} at the most between rounds", rounds * ROUND_LENGTH);
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

/// Returns the number of live bytes. Signed, because a thread may be freeing earlier allocations.
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
    if number.is_multiple_of(2 * TASK_PERIOD) {
        after.task("on the pool").always().spawn_blocking(|| ()).unwrap();
    } else if number.is_multiple_of(TASK_PERIOD) {
        after.task("on the runtime").always().spawn(tokio::task::yield_now()).unwrap();
    }
    let body = match request.uri().path() {
        "/large" => large,
        "/unanswered" => std::future::pending().await,
        _ => Bytes::from_static(BODY),
    };
    Ok(Response::new(Full::new(body)))
}

/// An HTTP/2 client that sends exactly the given bytes.
struct Client(BufReader<DuplexStream>);

/// The header of a frame.
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
        client.send(&window_update(64 * WINDOW)).await; // so that only the windows of streams limit the server
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

/// Returns a HEADERS frame with a whole request.
fn headers(stream: u32, block: &[u8]) -> Vec<u8> {
    frame(Frame::HEADERS, 0x5, stream, block)
}

/// Returns the header block of a GET request in HPACK, with static fields and literals.
fn get(path: &str) -> Vec<u8> {
    let length = u8::try_from(path.len()).unwrap();
    [&[0x82, 0x86, 0x04, length], path.as_bytes(), &[0x01, 1, b'a']].concat()
}

/// Returns a RST_STREAM frame with `CANCEL`.
fn reset(stream: u32) -> Vec<u8> {
    frame(Frame::RESET, 0, stream, &8_u32.to_be_bytes())
}

fn window_update(bytes: usize) -> Vec<u8> {
    frame(Frame::WINDOW_UPDATE, 0, 0, &u32::try_from(bytes).unwrap().to_be_bytes())
}
