//! Hostile HTTP/2 clients. The limits of hyper and h2 apply to a tracked connection like to a plain
//! one: each test sends the same bytes to both.
//!
//! h2 reads the same frames in the same polls, so the tests with [`Arrived`] find equal numbers.
//! How many frames the server reads in one poll of a socket depends on timing, so the tests with
//! sockets compare bounds and error codes.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::oneshot,
    time::{Instant, Sleep, sleep, timeout},
};
use tower::{Layer, service_fn};
use tower_offload::{
    Background,
    after_response::{AfterResponseLayer, Delivery, End},
    flush::{Tracker, TrackerStats},
};

use crate::support::{HTTP2, PLAIN_HTTP2, Setup, Stack, frames, on_each};

const ENHANCE_YOUR_CALM: u32 = 11;

/// hyper's default for `max_concurrent_streams`.
const CONCURRENT: usize = 200;

/// Every flood here is many times longer. It leaves room for the streams that may be open at once,
/// and for the requests that the server accepts before the limit is reached.
const MAX_HANDLERS: usize = 3 * CONCURRENT;

/// How a connection ended.
#[derive(Debug)]
struct Seen {
    /// The error code of the last GOAWAY frame. It can be missing: a server that closes with bytes
    /// unread resets the socket.
    go_away: Option<u32>,
    /// `true` if the server answered the PING after the flood.
    survived: bool,
    handlers: usize,
    /// Every frame that the server sent: its type and its stream.
    frames: Vec<(u8, u32)>,
}

impl Seen {
    fn count(&self, kind: u8) -> usize {
        self.frames.iter().filter(|(of, _)| *of == kind).count()
    }
}

/// Sends the packets on a new connection, then a PING, and reads until the PING is answered or the
/// connection ends.
async fn send(setup: Setup, packets: Vec<Vec<u8>>) -> Seen {
    const LAST: &[u8; 8] = b"the last";
    let site = setup.start();
    let (io, _wire) = site.connect().await;
    let (mut reader, mut writer) = tokio::io::split(io);
    let (ended, end) = oneshot::channel::<()>();
    let writes = tokio::spawn(async move {
        let first = [frames::PREFACE, &frames::settings()].concat();
        for packet in [first].into_iter().chain(packets).chain([frames::frame(6, 0, 0, LAST)]) {
            if writer.write_all(&packet).await.and(writer.flush().await).is_err() {
                return;
            }
        }
        // Keeps the socket open until the last frame was read.
        let _ = end.await;
    });
    let mut seen = Seen { go_away: None, survived: false, handlers: 0, frames: Vec::new() };
    let mut bytes = VecDeque::new();
    let mut buffer = [0; 1 << 14];
    'connection: while let Ok(read @ 1..) = reader.read(&mut buffer).await {
        bytes.extend(&buffer[..read]);
        while let Some((kind, flags, stream, payload)) = frames::take(&mut bytes) {
            seen.frames.push((kind, stream));
            match kind {
                6 if flags & 1 == 1 && payload == LAST => {
                    seen.survived = true;
                    break 'connection;
                }
                7 => seen.go_away = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap())),
                _ => (),
            }
        }
    }
    seen.handlers = site.registered();
    drop(ended);
    writes.await.unwrap();
    seen
}

/// Sends the packets to a plain and then to a tracked connection of each stack.
async fn on_both(packets: fn() -> Vec<Vec<u8>>, check: fn(Stack, [Seen; 2])) {
    on_each(PLAIN_HTTP2, move |stack| async move {
        let plain = send(Setup::on(stack).untracked(), packets()).await;
        let tracked = send(Setup::on(stack), packets()).await;
        check(stack, [plain, tracked]);
    })
    .await;
}

/// Both connections were ended by a limit, before most of the flood was processed.
fn calmed(stack: Stack, seen: [Seen; 2]) {
    calmed_within(MAX_HANDLERS, stack, seen);
}

fn calmed_within(max_handlers: usize, stack: Stack, seen: [Seen; 2]) {
    for (tracked, Seen { go_away, survived, handlers, .. }) in [false, true].into_iter().zip(seen) {
        let case = format!("{stack:?}, tracked: {tracked}, {handlers} handlers, {go_away:?}");
        assert!(!survived, "{case}");
        assert!(go_away.is_none_or(|code| code == ENHANCE_YOUR_CALM), "{case}");
        assert!(handlers <= max_handlers, "{case}");
    }
}

/// Both connections were ended, or neither.
fn alike(stack: Stack, [plain, tracked]: [Seen; 2]) {
    assert_eq!(tracked.survived, plain.survived, "{stack:?}");
    if let (Some(tracked), Some(plain)) = (tracked.go_away, plain.go_away) {
        assert_eq!(tracked, plain, "{stack:?}");
    }
    assert!(tracked.handlers <= 1 && plain.handlers <= 1, "{stack:?}");
}

/// Identifiers of client streams, in order.
fn streams() -> impl Iterator<Item = u32> {
    (0..).map(|number| 2 * number + 1)
}

/// Joins HEADERS and RST_STREAM frames of the same streams into a packet.
type Arrange = fn(&[Vec<u8>], &[Vec<u8>]) -> Vec<u8>;

/// Returns packets that open and reset `batch` streams each.
fn resets(path: &str, batches: usize, batch: usize, arrange: Arrange) -> Vec<Vec<u8>> {
    let mut streams = streams();
    let packets = (0..batches).map(|_| {
        let (mut opens, mut resets) = (Vec::new(), Vec::new());
        for stream in streams.by_ref().take(batch) {
            opens.push(frames::get(stream, path));
            resets.push(frames::reset(stream));
        }
        arrange(&opens, &resets)
    });
    packets.collect()
}

fn pairs(opens: &[Vec<u8>], resets: &[Vec<u8>]) -> Vec<u8> {
    opens.iter().zip(resets).flat_map(|(open, reset)| [&open[..], reset].concat()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset_is_ended_like_on_a_plain_connection() {
    on_both(|| resets("/full/5", 100, 200, pairs), calmed).await;
}

/// Also over TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute"]
async fn rapid_reset_of_100_000_pairs_is_ended() {
    on_each(HTTP2, |stack| async move {
        for path in ["/full/5", "/wait/full/5"] {
            let flood = || resets(path, 500, 200, pairs);
            let plain = send(Setup::on(stack).untracked(), flood()).await;
            let tracked = send(Setup::on(stack), flood()).await;
            println!("{stack:?} {path}: {} handlers plain, {} tracked", plain.handlers, tracked.handlers);
            calmed(stack, [plain, tracked]);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset_of_slow_handlers_is_ended() {
    on_both(|| resets("/wait/full/5", 100, 200, pairs), calmed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset_after_all_opened_streams_is_ended() {
    on_both(|| resets("/wait/full/5", 100, 100, |opens, resets| [opens.concat(), resets.concat()].concat()), calmed)
        .await;
}

/// At every point at least one open stream is not reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset_interleaved_with_open_streams_is_ended() {
    fn chain(opens: &[Vec<u8>], resets: &[Vec<u8>]) -> Vec<u8> {
        let (first, rest) = opens.split_first().unwrap();
        let last = resets.last().unwrap();
        [first.clone(), pairs(rest, resets), last.clone()].concat()
    }
    on_both(|| resets("/wait/full/5", 100, 200, chain), calmed).await;
}

/// Every second request is not reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset_between_ordinary_requests_is_ended() {
    fn every_second(opens: &[Vec<u8>], resets: &[Vec<u8>]) -> Vec<u8> {
        let pairs = opens.chunks(2).zip(resets.chunks(2));
        pairs.flat_map(|(opens, resets)| [&opens[0][..], &resets[0], &opens[1]].concat()).collect()
    }
    on_both(|| resets("/wait/full/5", 100, 100, every_second), calmed).await;
}

/// The number of pairs in a flood of large requests.
const LARGE: usize = 4_000;

/// The limit acts only when the server finds more than 20 pairs at once. A server that reads faster
/// than this client writes runs many handlers first: a plain connection up to 1524 on a busy
/// machine.
const MAX_LARGE_HANDLERS: usize = 3_000;

/// The requests fill many reads, so that a reset seldom comes in the same read as its request.
fn large(path: &str) -> Vec<Vec<u8>> {
    let pair = |stream| [frames::get_with_field(stream, path, 8_000), frames::reset(stream)].concat();
    streams().take(LARGE).map(pair).collect::<Vec<_>>().chunks(50).map(|pairs| pairs.concat()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset_of_large_requests_is_ended() {
    on_both(|| large("/full/5"), |stack, seen| calmed_within(MAX_LARGE_HANDLERS, stack, seen)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset_of_large_requests_to_slow_handlers_is_ended() {
    on_both(|| large("/wait/full/5"), |stack, seen| calmed_within(MAX_LARGE_HANDLERS, stack, seen)).await;
}

/// The transport of a client whose bytes arrive in bursts, each once the server waits. It accepts
/// all bytes of the server.
struct Arrived {
    bursts: VecDeque<VecDeque<u8>>,
    pause: Pin<Box<Sleep>>,
    written: Arc<Mutex<VecDeque<u8>>>,
}

/// Time is paused in these tests, so it passes only when the server waits.
const PAUSE: Duration = Duration::from_millis(1);

impl AsyncRead for Arrived {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.pause.as_mut().poll(cx));
        let Some(burst) = self.bursts.front_mut() else { return Poll::Pending };
        let count = burst.len().min(buffer.remaining());
        buffer.put_slice(&burst.drain(..count).collect::<Vec<_>>());
        if burst.is_empty() {
            self.bursts.pop_front();
            self.pause.as_mut().reset(Instant::now() + PAUSE);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Arrived {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.written.lock().unwrap().extend(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// How a connection with [`Arrived`] ended.
#[derive(Debug)]
struct Served {
    /// The error code of the GOAWAY frame.
    go_away: Option<u32>,
    handlers: usize,
    stats: TrackerStats,
}

/// Serves the bursts until the connection ends or waits, with this limit of hyper. The path of a
/// request is the length of its response.
async fn serve(mut bursts: Vec<Vec<u8>>, max_resets: Option<usize>, is_tracked: bool) -> Served {
    let (handlers, written) = (Arc::new(AtomicUsize::new(0)), Arc::default());
    let called = handlers.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        called.fetch_add(1, SeqCst);
        let length = request.uri().path()[1..].parse().unwrap();
        async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![b'x'; length])))) }
    });
    let service = TowerToHyperService::new(AfterResponseLayer::new(Background::default()).layer(service));
    let start = [frames::PREFACE, &frames::settings(), &frames::wide_window()].concat();
    bursts[0].splice(..0, start);
    let io = TokioIo::new(Arrived {
        bursts: bursts.into_iter().map(VecDeque::from).collect(),
        pause: Box::pin(sleep(PAUSE)),
        written: Arc::clone(&written),
    });
    let tracker = Tracker::new();
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    if max_resets.is_some() {
        builder.max_pending_accept_reset_streams(max_resets);
    }
    let served = Duration::from_secs(1);
    let _ = if is_tracked {
        let (io, service) = tracker.track(io, service);
        timeout(served, builder.serve_connection(io, service)).await
    } else {
        timeout(served, builder.serve_connection(io, service)).await
    };
    let mut go_away = None;
    let mut written = written.lock().unwrap();
    while let Some((kind, _, _, payload)) = frames::take(&mut written) {
        if kind == 7 {
            go_away = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
    }
    Served { go_away, handlers: handlers.load(SeqCst), stats: tracker.stats() }
}

fn large_resets(batches: usize, batch: usize, arrange: Arrange) -> Vec<Vec<u8>> {
    let mut streams = streams();
    let packets = (0..batches).map(|_| {
        let streams: Vec<_> = streams.by_ref().take(batch).collect();
        let opens: Vec<_> = streams.iter().map(|stream| frames::get_with_field(*stream, "/5", 8_000)).collect();
        arrange(&opens, &streams.into_iter().map(frames::reset).collect::<Vec<_>>())
    });
    packets.collect()
}

fn opens_first(opens: &[Vec<u8>], resets: &[Vec<u8>]) -> Vec<u8> {
    [opens.concat(), resets.concat()].concat()
}

#[tokio::test(start_paused = true)]
async fn resets_that_have_arrived_run_no_handler() {
    let floods = [
        resets("/5", 1, 21, pairs),
        resets("/5", 2, 100, pairs),
        resets("/5", 1, 100, opens_first),
        large_resets(1, 21, pairs),
        large_resets(4, 50, pairs),
    ];
    for (number, flood) in floods.into_iter().enumerate() {
        for is_tracked in [false, true] {
            let served = serve(vec![flood.concat()], None, is_tracked).await;
            let seen = (served.go_away, served.handlers);
            assert_eq!(seen, (Some(ENHANCE_YOUR_CALM), 0), "flood {number}, tracked: {is_tracked}");
        }
    }
}

/// The limit is hyper's `max_pending_accept_reset_streams`.
#[tokio::test(start_paused = true)]
async fn limit_of_the_server_decides_about_resets() {
    for (limit, sent) in [(0, 1), (5, 5), (5, 6), (20, 20), (100, 100), (100, 101)] {
        for arrange in [pairs, opens_first] {
            for is_tracked in [false, true] {
                let served = serve(resets("/5", 1, sent, arrange), Some(limit), is_tracked).await;
                let expected = if sent > limit { (Some(ENHANCE_YOUR_CALM), 0) } else { (None, sent) };
                let seen = (served.go_away, served.handlers);
                assert_eq!(seen, expected, "{sent} resets, limit {limit}, tracked: {is_tracked}");
            }
        }
    }
}

/// Each reset is followed by a request that is not reset, or is far behind its own.
#[tokio::test(start_paused = true)]
async fn resets_anywhere_in_a_burst_count_as_on_a_plain_connection() {
    fn every_second(opens: &[Vec<u8>], resets: &[Vec<u8>]) -> Vec<u8> {
        let pairs = opens.chunks(2).zip(resets.chunks(2));
        pairs.flat_map(|(opens, resets)| [&opens[0][..], &resets[0], &opens[1]].concat()).collect()
    }
    fn resets_of_the_burst_before(opens: &[Vec<u8>], resets: &[Vec<u8>]) -> Vec<u8> {
        let (first, second) = opens.split_at(opens.len() / 2);
        [first.concat(), pairs(second, resets)].concat()
    }
    let floods = [
        vec![resets("/5", 4, 100, every_second).concat()],
        vec![large_resets(4, 100, every_second).concat()],
        vec![large_resets(4, 25, opens_first).concat()],
        resets("/5", 50, 30, every_second),
        resets("/5", 20, 60, resets_of_the_burst_before),
        large_resets(20, 12, opens_first),
        resets("/70000", 20, 40, every_second),
    ];
    for (number, flood) in floods.into_iter().enumerate() {
        let plain = serve(flood.clone(), None, false).await;
        let tracked = serve(flood, None, true).await;
        assert_eq!((tracked.go_away, tracked.handlers), (plain.go_away, plain.handlers), "flood {number}");
    }
}

/// Random requests, resets and pauses.
#[tokio::test(start_paused = true)]
async fn random_resets_count_as_on_a_plain_connection() {
    let mut random = 1_u64;
    let mut below = |limit: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % limit
    };
    let mut ended = 0;
    for case in 0..60 {
        let (mut bursts, mut open, mut ids) = (Vec::new(), Vec::new(), streams());
        let share = 1 + below(4);
        for _ in 0..20 {
            let mut burst = Vec::new();
            for _ in 0..below(60) {
                if below(5) < share || open.is_empty() {
                    let stream = ids.next().unwrap();
                    open.push(stream);
                    burst.extend(match below(10) {
                        0 => frames::malformed(stream),
                        1 => frames::get_with_field(stream, "/5", 8_000),
                        2 => frames::get_with_field(stream, "/5", 16_340 + below(30) as usize),
                        3 => frames::get(stream, "/100000"),
                        _ => frames::get(stream, "/5"),
                    });
                } else {
                    let stream = open.swap_remove(below(open.len() as u64) as usize);
                    burst.extend(frames::reset(stream));
                }
            }
            bursts.push(burst);
        }
        bursts.retain(|burst| !burst.is_empty());
        let plain = serve(bursts.clone(), None, false).await;
        let tracked = serve(bursts, None, true).await;
        assert_eq!((tracked.go_away, tracked.handlers), (plain.go_away, plain.handlers), "case {case}");
        let stats = tracked.stats;
        assert_eq!((stats.mismatched, stats.unmapped, stats.gave_up), (0, 0, 0), "case {case}: {stats:?}");
        ended += u32::from(plain.go_away.is_some());
    }
    assert!((10..50).contains(&ended), "{ended} of 60 were ended by the limit");
}

/// Each request has a response of its own length, so that the outcome of another would be counted
/// as mismatched.
#[tokio::test(start_paused = true)]
async fn live_requests_among_reset_ones_are_flushed() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Kind {
        Live,
        Reset,
        Malformed,
        MalformedAndReset,
    }
    use Kind::*;

    const REQUESTS: u32 = 5;
    for case in 0..4_u32.pow(REQUESTS) {
        let kinds = [Live, Reset, Malformed, MalformedAndReset];
        let kinds: Vec<_> = (0..REQUESTS).map(|at| kinds[(case / 4_u32.pow(at) % 4) as usize]).collect();
        let count = |kind| kinds.iter().filter(|of| **of == kind).count();
        for resets_last in [false, true] {
            let (mut packet, mut last) = (Vec::new(), Vec::new());
            for (stream, kind) in streams().zip(&kinds) {
                packet.extend(match kind {
                    Live | Reset => frames::get(stream, &format!("/{}", 100 + stream)),
                    Malformed | MalformedAndReset => frames::malformed(stream),
                });
                if matches!(kind, Reset | MalformedAndReset) {
                    let resets = if resets_last { &mut last } else { &mut packet };
                    resets.extend(frames::reset(stream));
                }
            }
            let Served { go_away, handlers, stats } = serve(vec![[packet, last].concat()], None, true).await;
            assert_eq!((go_away, handlers), (None, count(Live) + count(Reset)), "{kinds:?}");
            let outcomes = (stats.flushed, stats.mismatched + stats.unmapped, stats.lost);
            assert_eq!(outcomes, (count(Live) as u64, 0, count(Reset) as u64), "{kinds:?} {stats:?}");
        }
    }
}

/// h2 has counted all these resets and kept the connection, so it stays tracked.
#[tokio::test(start_paused = true)]
async fn request_after_many_permitted_resets_is_flushed() {
    for (limit, count, size) in [(None, 30, 20), (Some(1_000), 2, 900)] {
        let mut bursts = resets("/5", count, size, pairs);
        bursts.push(frames::get(99_999, "/7"));
        let served = serve(bursts, limit, true).await;
        assert_eq!((served.go_away, served.handlers), (None, count * size + 1));
        assert_eq!((served.stats.flushed, served.stats.gave_up), (1, 0), "{served:?}");
    }
}

/// On all stacks, in one segment.
#[tokio::test]
async fn reset_request_in_a_segment_is_not_delivered() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let (mut io, _wire) = site.connect().await;
        let mut bytes = [frames::PREFACE, &frames::settings()].concat();
        for stream in streams().take(12) {
            bytes.extend(frames::get(stream, &format!("/full/{}", 100 + stream)));
            if stream % 3 == 0 {
                bytes.extend(frames::reset(stream));
            }
        }
        io.write_all(&bytes).await.unwrap();
        io.flush().await.unwrap();
        for stream in streams().take(12) {
            let record = site.record(&format!("/full/{}", 100 + stream)).await;
            if stream % 3 == 0 {
                assert!(matches!(record.end, End::Aborted | End::NoResponse), "{record:?}");
                assert_eq!(record.delivery, Delivery::NotDelivered);
            } else {
                record.is_flushed(u64::from(100 + stream));
            }
        }
    })
    .await;
}

/// h2 counts a reset only while the stream waits to be accepted. A client that waits for each
/// handler is not limited, tracked or not.
#[tokio::test]
async fn resets_of_accepted_streams_are_not_limited() {
    on_each(PLAIN_HTTP2, |stack| async move {
        for setup in [Setup::on(stack).untracked(), Setup::on(stack)] {
            let mut site = setup.start();
            let (mut io, _wire) = site.connect().await;
            io.write_all(&[frames::PREFACE, &frames::settings()].concat()).await.unwrap();
            for stream in streams().take(200) {
                io.write_all(&frames::get(stream, "/wait/full/5")).await.unwrap();
                io.flush().await.unwrap();
                site.handlers.reached().await;
                io.write_all(&frames::reset(stream)).await.unwrap();
                io.flush().await.unwrap();
            }
            site.records(200).await;
            assert_eq!(site.registered(), 200);
        }
    })
    .await;
}

/// Requests that h2 resets because they are malformed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_are_limited() {
    on_both(|| streams().take(4_000).map(frames::malformed).collect(), calmed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_streams_are_limited() {
    on_both(|| streams().take(4_000).map(|stream| frames::get(stream, "/wait/full/5")).collect(), calmed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn continuation_flood_is_ended() {
    fn flood() -> Vec<Vec<u8>> {
        let open = frames::frame(1, 1, 1, &[0x82, 0x86]);
        [open].into_iter().chain((0..20_000).map(|_| frames::frame(9, 0, 1, &[]))).collect()
    }
    on_both(flood, calmed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_list_far_over_the_limit_ends_the_connection() {
    on_both(
        || vec![frames::get_with_field(1, "/full/5", 4_000_000)],
        |stack, seen| {
            assert!(seen.iter().all(|seen| !seen.survived && seen.handlers == 0), "{stack:?}: {seen:?}");
            alike(stack, seen);
        },
    )
    .await;
}

/// h2 has no limit for these. It answers each frame before it reads the next, so a client that does
/// not read is stopped by TCP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_and_pings_are_answered_one_by_one() {
    const COUNT: usize = 5_000;
    fn flood() -> Vec<Vec<u8>> {
        (0..COUNT).map(|_| [frames::settings(), frames::frame(6, 0, 0, &[7; 8])].concat()).collect()
    }
    on_both(flood, |stack, seen| {
        for seen in seen {
            assert!(seen.survived && seen.go_away.is_none(), "{stack:?}");
            assert_eq!(seen.count(6), COUNT + 1, "{stack:?}");
            // The server's own, and an acknowledgement of each.
            assert_eq!(seen.count(4), COUNT + 2, "{stack:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_data_flood_ends_like_on_a_plain_connection() {
    fn flood() -> Vec<Vec<u8>> {
        let open = frames::post(1, "/wait/full/5");
        [open].into_iter().chain((0..20_000).map(|_| frames::frame(0, 0, 1, &[]))).collect()
    }
    on_both(flood, alike).await;
}

/// The client grants one byte at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiny_windows_get_the_same_frames() {
    const BYTES: usize = 300;
    fn grants() -> Vec<Vec<u8>> {
        let open = [frames::initial_window(0), frames::get(1, "/full/300")].concat();
        [open].into_iter().chain((0..BYTES).map(|_| frames::frame(8, 0, 1, &1_u32.to_be_bytes()))).collect()
    }
    on_both(grants, |stack, seen| {
        for seen in seen {
            // The PING may be answered before the task of the handler has started.
            assert_eq!((seen.survived, seen.handlers <= 1, seen.count(3)), (true, true, 0), "{stack:?}");
            assert!(seen.count(0) <= BYTES + 1, "{stack:?}");
        }
    })
    .await;
}

/// A malformed request is an error of its stream, also if its frame has padding or a priority. A
/// frame that is too short for these is an error of the connection.
#[tokio::test(start_paused = true)]
async fn malformed_requests_end_what_they_end_on_a_plain_connection() {
    const PADDED: u8 = 0x8;
    const PRIORITY: u8 = 0x20;
    let valid = &frames::get(1, "/5")[9..];
    let repeated_method = [&[0x82], valid].concat();
    let blocks = [valid, &repeated_method, &valid[..valid.len() - 1], &[0x80], &[]];
    for (number, block) in blocks.into_iter().enumerate() {
        for padding in [None, Some(0), Some(1), Some(9), Some(255)] {
            for dependency in [None, Some(0_u32), Some(1)] {
                for missing in 0..8 {
                    let (mut payload, mut flags) = (Vec::new(), 0x5);
                    if let Some(padding) = padding {
                        payload.push(padding);
                        flags |= PADDED;
                    }
                    if let Some(stream) = dependency {
                        payload.extend(stream.to_be_bytes());
                        payload.push(0);
                        flags |= PRIORITY;
                    }
                    payload.extend(block);
                    payload.resize(payload.len() + usize::from(padding.unwrap_or(0)), 0);
                    payload.truncate(payload.len().saturating_sub(missing));
                    let flood = vec![[frames::frame(1, flags, 1, &payload), frames::get(3, "/5")].concat()];
                    let plain = serve(flood.clone(), None, false).await;
                    let tracked = serve(flood, None, true).await;
                    assert_eq!(
                        (tracked.go_away, tracked.handlers),
                        (plain.go_away, plain.handlers),
                        "block {number}, padding {padding:?}, dependency {dependency:?}, {missing} bytes missing"
                    );
                }
            }
        }
    }
}

/// The rest of the string, or a part of it, is the field that the transport appends.
#[tokio::test(start_paused = true)]
async fn block_that_ends_within_a_string_ends_the_connection() {
    const HUFFMAN: u8 = 0x80;
    for missing in 1..=20_u8 {
        for present in (0..=255).step_by(3).map(|byte| vec![byte]).chain([vec![]]) {
            for (huffman, before) in
                [(0, &[0x00, 1, b'x'][..]), (HUFFMAN, &[0x00, 1, b'x']), (0, &[0]), (HUFFMAN, &[0])]
            {
                let length = huffman | (missing + present.len() as u8);
                let block = [&frames::get(1, "/5")[9..], before, &[length], &present].concat();
                let bytes = [frames::frame(1, 0x5, 1, &block), frames::get(3, "/5")].concat();
                let served = serve(vec![bytes], None, true).await;
                assert!(
                    served.go_away.is_some() && served.handlers == 0,
                    "{missing} {before:?} {present:?}: {served:?}"
                );
            }
        }
    }
}
