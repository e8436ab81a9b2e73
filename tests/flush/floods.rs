//! Hostile HTTP/2 clients. The limits of hyper and h2 apply to a tracked connection like to a plain
//! one: each test sends the same bytes to both.
//!
//! How many frames the server reads in one poll depends on timing, so these tests compare bounds
//! and error codes, not exact counts.

use std::collections::VecDeque;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
};

use crate::support::{PLAIN_HTTP2, Setup, Stack, frames, on_each};

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

/// Packets of HEADERS and RST_STREAM frames, each with `batch` streams in the order that `arrange`
/// gives.
fn resets(path: &str, batches: usize, batch: usize, arrange: fn(&[Vec<u8>], &[Vec<u8>]) -> Vec<u8>) -> Vec<Vec<u8>> {
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

/// The limit acts only when the server finds more than 20 pairs at once. A server that reads faster
/// than this client writes runs many handlers first, tracked or not. A tracked connection has to
/// find them twice: once to stop gating, and once for h2 to count.
///
/// The requests fill many reads, so that a reset seldom comes in the same read as its request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset_of_large_requests_is_ended() {
    const REQUESTS: usize = 4_000;
    fn large() -> Vec<Vec<u8>> {
        let pair = |stream| [frames::get_with_field(stream, "/wait/full/5", 8_000), frames::reset(stream)].concat();
        streams().take(REQUESTS).map(pair).collect::<Vec<_>>().chunks(50).map(|pairs| pairs.concat()).collect()
    }
    on_both(large, |stack, seen| calmed_within(REQUESTS - 100, stack, seen)).await;
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
            assert_eq!((seen.survived, seen.handlers, seen.count(3)), (true, 1, 0), "{stack:?}");
            assert!(seen.count(0) <= BYTES + 1, "{stack:?}");
        }
    })
    .await;
}
