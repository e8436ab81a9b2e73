use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::Context,
};

use ::tokio::io::{AsyncRead, AsyncWrite};
use http::Version;
use hyper_util::rt::TokioIo;
use proptest::{collection::vec, prelude::*, sample::Index};
use tokio_test::{assert_pending, assert_ready_ok, task};

use super::*;
use crate::{
    after_response::{
        FlushOutcome::{self, *},
        TestResponse,
    },
    flush::{
        TrackerStats,
        tests::{
            generated::{data, frame, headers, reset},
            scripted::{self, FLUSHED, Read, Script, Scripted, connection, flushed, poll_read, stats, unmark},
        },
        tracker::Counters,
    },
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const ROOM: usize = 1 << 20;

trait Io: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// A tracked transport, its connection and script, and a task that polls it.
struct World {
    io: Box<dyn Io>,
    connection: Arc<Connection>,
    counters: Arc<Counters>,
    script: Arc<Mutex<Script>>,
    task: task::Spawn<()>,
}

impl World {
    /// One transport with tokio's traits and one with hyper's, which hyper-util adapts to tokio's.
    fn both() -> [Self; 2] {
        [false, true].map(|by_hyper| {
            let (connection, counters) = connection();
            let scripted = Scripted::default();
            let script = scripted.0.clone();
            let io: Box<dyn Io> = if by_hyper {
                Box::new(TokioIo::new(TrackedIo::new(TokioIo::new(scripted), connection.clone())))
            } else {
                Box::new(TrackedIo::new(scripted, connection.clone()))
            };
            Self { io, connection, counters, script, task: task::spawn(()) }
        })
    }

    fn poll<U>(&mut self, poll: impl FnOnce(Pin<&mut dyn Io>, &mut Context<'_>) -> U) -> U {
        let io = &mut self.io;
        self.task.enter(|cx, _| poll(Pin::new(&mut **io), cx))
    }

    fn read(&mut self, room: usize) -> Poll<io::Result<Vec<u8>>> {
        let io = &mut self.io;
        self.task.enter(|cx, _| poll_read(io, cx, room))
    }

    fn queue(&self, read: Read) {
        self.script.lock().unwrap().reads.push_back(read);
    }

    fn queue_bytes(&self, bytes: &[&[u8]]) {
        self.queue(Read::Bytes(bytes.concat()));
    }

    /// Writes, and the transport accepts `accepted` bytes.
    fn write(&mut self, bytes: &[u8], accepted: usize) {
        self.script.lock().unwrap().writes.push_back(Ok(accepted));
        assert_eq!(assert_ready_ok!(self.poll(|io, cx| io.poll_write(cx, bytes))), accepted.min(bytes.len()));
    }

    fn flush(&mut self) {
        self.script.lock().unwrap().flushes.push_back(Ok(()));
        assert_ready_ok!(self.poll(|io, cx| io.poll_flush(cx)));
    }

    fn begin(&self, stream: u32) -> TestResponse {
        scripted::begin_on(&self.connection, stream)
    }

    fn begin_http1(&self) -> TestResponse {
        scripted::begin(&self.connection, Version::HTTP_11)
    }

    fn open(&mut self, stream: u32) -> TestResponse {
        self.queue_bytes(&[&headers(stream, true)]);
        assert_ready_ok!(self.read(ROOM));
        self.begin(stream)
    }

    fn speaks_http2(&mut self) {
        self.queue_bytes(&[PREFACE]);
        assert_ready_ok!(self.read(24));
    }

    fn speaks_http1(&mut self) {
        self.queue_bytes(&[b"GET"]);
        assert_ready_ok!(self.read(ROOM));
    }
}

#[test]
fn http1_is_read_into_the_buffer_of_the_caller() {
    for mut world in World::both() {
        world.speaks_http1();
        assert_eq!(world.connection.protocol(), Protocol::Http1);
        world.queue_bytes(&[&[b'x'; 100_000]]);
        assert_eq!(assert_ready_ok!(world.read(123_456)).len(), 100_000);
        assert_eq!(world.script.lock().unwrap().rooms[1..], [123_456]);
    }
}

#[test]
fn http1_response_is_flushed_when_the_flush_returns() {
    for mut world in World::both() {
        world.speaks_http1();
        let response = world.begin_http1();
        world.write(HEAD, HEAD.len());
        response.end();
        assert_pending!(world.poll(|io, cx| io.poll_flush(cx)));
        assert_pending!(world.poll(|io, cx| io.poll_flush(cx)));
        assert_eq!(response.flush_outcome(), None);
        world.flush();
        assert_eq!(response.flush_outcome(), Some(FLUSHED));
    }
}

/// hyper takes back a head that it cannot encode, and flushes nevertheless.
#[test]
fn http1_flush_before_a_status_line_does_not_count() {
    for before in [&b""[..], b"HTTP/1.1 100 Continue\r\n\r\n"] {
        for mut world in World::both() {
            world.speaks_http1();
            let first = world.begin_http1();
            world.write(HEAD, HEAD.len());
            first.end();
            world.flush();
            if !before.is_empty() {
                world.write(before, before.len());
            }
            let second = world.begin_http1();
            second.end();
            world.flush();
            assert_eq!((first.flush_outcome(), second.flush_outcome()), (Some(FLUSHED), None));
            drop(world);
            assert_eq!(second.flush_outcome(), Some(Lost));
        }
    }
}

/// hyper may hand over an upgraded connection while the head is still in its buffer.
#[test]
fn flush_of_tunnel_bytes_loses_the_response() {
    for mut world in World::both() {
        world.speaks_http1();
        let response = world.begin_http1();
        response.end();
        world.write(b"bytes of the application", 24);
        assert_eq!(response.flush_outcome(), None);
        world.flush();
        assert_eq!(response.flush_outcome(), Some(Lost), "at once");
    }
}

/// The head of the second response leaves in one write with the first, and the flush covers both.
#[test]
fn pipelined_response_is_flushed_after_a_shared_write() {
    for mut world in World::both() {
        world.speaks_http1();
        let [first, second] = std::array::from_fn(|_| world.begin_http1());
        first.set_head(false);
        first.end();
        second.set_head(false);
        world.write(&[HEAD, HEAD].concat(), 2 * HEAD.len());
        world.flush();
        assert_eq!((first.flush_outcome(), second.flush_outcome()), (Some(FLUSHED), None));
        for _ in 0..2 {
            world.write(b"5\r\nchunk\r\n", 10);
            world.flush();
        }
        second.end();
        assert_eq!(second.flush_outcome(), None);
        world.write(b"0\r\n\r\n", 5);
        world.flush();
        assert_eq!(second.flush_outcome(), Some(FLUSHED));

        let third = world.begin_http1();
        third.set_head(false);
        third.end();
        world.flush();
        assert_eq!(third.flush_outcome(), None, "its head was not accepted");
        world.write(HEAD, HEAD.len());
        world.flush();
        assert_eq!(third.flush_outcome(), Some(FLUSHED));
        assert_eq!(world.counters.stats(), stats(|stats| stats.flushed = 3));
    }
}

#[test]
fn body_without_a_head_gives_up_at_once() {
    for mut world in World::both() {
        world.speaks_http1();
        let [waiting, open] = std::array::from_fn(|_| world.begin_http1());
        waiting.end();
        open.set_head(false);
        world.write(b"bytes of a body", 15);
        assert_eq!((waiting.flush_outcome(), open.flush_outcome()), (Some(GaveUp), Some(GaveUp)));
        assert_eq!(world.counters.stats(), stats(|stats| stats.gave_up = 2));
    }
}

#[test]
fn shutdown_is_not_a_flush() {
    for mut world in World::both() {
        world.speaks_http1();
        let response = world.begin_http1();
        world.write(HEAD, HEAD.len());
        response.end();
        assert_pending!(world.poll(|io, cx| io.poll_shutdown(cx)));
        assert_eq!(response.flush_outcome(), None);
        world.script.lock().unwrap().flushes.push_back(Ok(()));
        assert_ready_ok!(world.poll(|io, cx| io.poll_shutdown(cx)));
        assert_eq!(response.flush_outcome(), None, "the server may hold bytes that it never wrote");
    }
}

#[test]
fn end_within_the_preface_is_http1() {
    for mut world in World::both() {
        world.queue_bytes(&[b"PRI * "]);
        world.queue(Read::End);
        assert_eq!(assert_ready_ok!(world.read(ROOM)), b"PRI * ");
        assert_eq!(world.connection.protocol(), Protocol::Undecided);
        assert_eq!(assert_ready_ok!(world.read(ROOM)), b"");
        assert_eq!(world.connection.protocol(), Protocol::Http1);
    }
}

#[test]
fn requests_in_one_segment_have_their_own_streams() {
    for mut world in World::both() {
        let requests = [headers(1, true), headers(3, true), headers(5, true), headers(7, true)].concat();
        world.queue_bytes(&[PREFACE, &requests]);
        assert_eq!(assert_ready_ok!(world.read(ROOM)), PREFACE);
        assert_eq!(unmark(&assert_ready_ok!(world.read(ROOM))), (requests, vec![1, 3, 5, 7]));
        assert_pending!(world.read(ROOM));

        // Stream 3 is malformed.
        world.write(&reset(3, 1), ROOM);
        let responses = [7, 1, 5].map(|stream| (stream, world.begin(stream)));
        assert_eq!(world.counters.stats(), stats(|stats| stats.undelivered = 1));
        for (stream, response) in responses {
            world.write(&data(stream, stream as usize, true), ROOM);
            world.flush();
            assert_eq!(response.flush_outcome(), Some(flushed(stream.into())));
        }
    }
}

#[test]
fn end_of_reads_leaves_responses_open() {
    for mut world in World::both() {
        world.speaks_http2();
        world.queue_bytes(&[&headers(1, true), b"part"]);
        world.queue(Read::End);
        assert_ready_ok!(world.read(ROOM));
        let response = world.begin(1);
        assert_eq!(assert_ready_ok!(world.read(3)), b"par");
        assert_eq!(assert_ready_ok!(world.read(3)), b"t");
        assert_eq!(assert_ready_ok!(world.read(3)), b"");
        world.write(&headers(1, true), ROOM);
        world.flush();
        assert_eq!(response.flush_outcome(), Some(flushed(0)), "a client may close its half of the connection");
    }
}

#[test]
fn failed_transport_loses_open_responses() {
    let failures: [fn(&mut World); 5] = [
        |world| {
            world.queue(Read::Failure);
            assert!(matches!(world.read(ROOM), Poll::Ready(Err(_))));
        },
        |world| {
            world.script.lock().unwrap().writes.push_back(Err(io::ErrorKind::BrokenPipe.into()));
            assert!(matches!(world.poll(|io, cx| io.poll_write(cx, b"bytes")), Poll::Ready(Err(_))));
        },
        |world| {
            world.script.lock().unwrap().flushes.push_back(Err(io::ErrorKind::BrokenPipe.into()));
            assert!(matches!(world.poll(|io, cx| io.poll_flush(cx)), Poll::Ready(Err(_))));
        },
        |world| {
            world.script.lock().unwrap().flushes.push_back(Err(io::ErrorKind::BrokenPipe.into()));
            assert!(matches!(world.poll(|io, cx| io.poll_shutdown(cx)), Poll::Ready(Err(_))));
        },
        |world| world.io = Box::new(Scripted::default()),
    ];
    for fail in failures {
        for mut world in World::both() {
            world.speaks_http2();
            let (ended, open) = (world.open(1), world.open(3));
            world.write(&headers(1, true), ROOM);
            fail(&mut world);
            assert_eq!((ended.flush_outcome(), open.flush_outcome()), (Some(Lost), Some(Lost)));
        }
        for mut world in World::both() {
            world.speaks_http1();
            let waiting = world.begin_http1();
            waiting.end();
            fail(&mut world);
            let late = world.begin_http1();
            assert_eq!((waiting.flush_outcome(), late.flush_outcome()), (Some(Lost), Some(Lost)));
        }
    }
}

#[test]
fn only_accepted_bytes_count_in_pieces_and_slices() {
    for mut world in World::both() {
        world.speaks_http2();
        let (one, three) = (world.open(1), world.open(3));
        let (first, second) = (data(1, 5, true), data(3, 6, true));
        assert!(world.io.is_write_vectored());

        world.write(&first, first.len() - 1);
        world.flush();
        assert_eq!(one.flush_outcome(), None);
        world.script.lock().unwrap().writes.push_back(Ok(4));
        let slices = [IoSlice::new(&first[first.len() - 1..]), IoSlice::new(&[]), IoSlice::new(&second)];
        assert_eq!(assert_ready_ok!(world.poll(|io, cx| io.poll_write_vectored(cx, &slices))), 4);
        assert_pending!(world.poll(|io, cx| io.poll_write_vectored(cx, &slices)));
        assert_pending!(world.poll(|io, cx| io.poll_flush(cx)));
        assert_eq!(one.flush_outcome(), None);
        world.flush();
        assert_eq!((one.flush_outcome(), three.flush_outcome()), (Some(flushed(5)), None));

        world.write(&second[3..], ROOM);
        world.flush();
        assert_eq!(three.flush_outcome(), Some(flushed(6)));
        assert_eq!(world.script.lock().unwrap().written, [first, second].concat());
    }
}

#[test]
fn reset_counts_when_it_is_delivered() {
    for mut world in World::both() {
        world.speaks_http2();
        let response = world.open(1);
        world.queue_bytes(&[&reset(1, 8)]);
        assert_eq!(assert_ready_ok!(world.read(12)).len(), 12);
        assert_eq!(response.flush_outcome(), None);
        assert_ready_ok!(world.read(12));
        assert_eq!(response.flush_outcome(), Some(Lost));
    }
}

#[test]
fn read_without_room_reads_nothing() {
    for mut world in World::both() {
        world.speaks_http2();
        world.queue_bytes(&[&headers(1, true)]);
        assert_eq!(assert_ready_ok!(world.read(0)), b"");
        assert_eq!(world.script.lock().unwrap().reads.len(), 1);
    }
}

/// The client reads nothing for longer than the timer runs.
#[::tokio::test(start_paused = true)]
async fn stalled_response_is_given_up_by_the_timer() {
    for http2 in [false, true] {
        for mut world in World::both() {
            let response = if http2 {
                world.speaks_http2();
                world.open(1)
            } else {
                world.speaks_http1();
                world.begin_http1()
            };
            response.end();
            assert_pending!(world.poll(|io, cx| io.poll_write(cx, b"bytes")));
            for outcome in [None, Some(Stalled)] {
                ::tokio::time::advance(std::time::Duration::from_secs(29)).await;
                assert_pending!(world.read(ROOM));
                assert_eq!(response.flush_outcome(), None);
                ::tokio::time::advance(std::time::Duration::from_secs(2)).await;
                assert!(world.task.is_woken());
                assert_pending!(world.read(ROOM));
                assert_eq!(response.flush_outcome(), outcome);
            }
        }
    }
}

/// There is no runtime, so there is no timer.
#[test]
fn stalled_response_without_a_timer_stays_open() {
    for mut world in World::both() {
        world.speaks_http1();
        let response = world.begin_http1();
        response.end();
        assert_pending!(world.poll(|io, cx| io.poll_write(cx, b"bytes")));
        assert_pending!(world.read(ROOM));
        assert_eq!(response.flush_outcome(), None);
    }
}

#[test]
fn into_parts_returns_undelivered_bytes() {
    let (connection, _) = connection();
    let scripted = Scripted::default();
    scripted.0.lock().unwrap().reads.extend([Read::Bytes(PREFACE.to_vec()), Read::Bytes(headers(1, true))]);
    let mut io = TrackedIo::new(scripted, connection.clone());
    let mut task = task::spawn(());
    for room in [24, 4] {
        assert_ready_ok!(task.enter(|cx, _| poll_read(&mut io, cx, room)));
    }
    assert!(io.get_ref().0.lock().unwrap().reads.is_empty());
    let parts = io.into_parts();
    assert_eq!(parts.read_buf, [&[0x5, 0, 0, 0, 1], &headers(1, true)[9..]].concat());
    let late = scripted::begin_stream(&connection, 3);
    assert_eq!(late.flush_outcome(), Some(Lost), "tracking has ended");
}

/// Results that do not depend on the split of the bytes and on the traits.
#[derive(Debug, PartialEq)]
struct Seen {
    received: Vec<u8>,
    outcomes: Vec<Option<FlushOutcome>>,
    stats: TrackerStats,
}

/// Passes bytes of a client and then of a server in pieces. Every stream except the fifth is
/// passed to the service.
fn pass_through(mut world: World, from: &[u8], to: &[u8], sizes: &[usize], flush_last: bool) -> Seen {
    let mut sizes = sizes.iter().copied().cycle();
    let mut rest = from;
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(rest.len().min(sizes.next().unwrap()));
        world.queue_bytes(&[piece]);
        rest = behind;
    }
    world.queue(Read::End);
    let mut delivered = Vec::new();
    loop {
        match assert_ready_ok!(world.read(sizes.next().unwrap())) {
            end if end.is_empty() => break,
            bytes => delivered.extend(bytes),
        }
    }
    let (received, streams) = match delivered.strip_prefix(PREFACE) {
        Some(frames) => {
            let (received, streams) = unmark(frames);
            ([PREFACE, &received].concat(), streams)
        }
        None => (delivered, Vec::new()),
    };
    let delivered = streams.into_iter().enumerate().filter(|(at, _)| *at != 4);
    let responses: Vec<_> = delivered.map(|(_, stream)| world.begin(stream)).collect();
    let mut rest = to;
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(rest.len().min(sizes.next().unwrap()));
        let middle = piece.len() / 2;
        world.script.lock().unwrap().writes.push_back(Ok(piece.len()));
        let slices = [IoSlice::new(&piece[..middle]), IoSlice::new(&piece[middle..])];
        assert_ready_ok!(world.poll(|io, cx| io.poll_write_vectored(cx, &slices)));
        rest = behind;
        // The server sends no resets, so flushes in between do not change the outcomes.
        if !flush_last {
            world.flush();
        }
    }
    world.flush();
    let outcomes = responses.iter().map(TestResponse::flush_outcome).collect();
    Seen { received, outcomes, stats: world.counters.stats() }
}

fn frames(is_client: bool) -> impl Strategy<Value = Vec<u8>> {
    let frame = (0..7_u8, 0..12_u32, 0..60_usize, any::<bool>()).prop_map(move |(kind, number, length, end)| {
        let stream = 2 * number + 1;
        match kind {
            0 | 1 => data(stream, length, end),
            2 if is_client => reset(stream, 8),
            2 | 3 => headers(stream, end),
            4 => frame(6, 0, 0, &[1; 8]),
            5 => [frame(1, u8::from(end), stream, b"a"), frame(9, 0x4, stream, b"b")].concat(),
            _ => frame(4, 0, 0, &[0; 6]),
        }
    });
    vec(frame, 0..40).prop_map(|frames| frames.concat())
}

proptest! {
    #[test]
    fn split_changes_nothing(
        from in frames(true),
        to in frames(false),
        sizes in vec(1..50_usize, 1..8),
        broken in proptest::option::weighted(0.2, any::<Index>()),
        http2 in proptest::bool::weighted(0.9),
    ) {
        let mut from = if http2 { [PREFACE, &from].concat() } else { from };
        if let Some(at) = broken.filter(|_| !from.is_empty()) {
            let at = at.index(from.len());
            from[at] ^= 0x55;
        }
        let [tokio, hyper] = World::both();
        let whole = pass_through(tokio, &from, &to, &[ROOM], false);
        let sent = match from.strip_prefix(PREFACE) {
            Some(frames) => [PREFACE, &scripted::as_unmarked(frames)].concat(),
            None => from.clone(),
        };
        prop_assert_eq!(&whole.received, &sent);
        prop_assert_eq!(&pass_through(hyper, &from, &to, &[ROOM], false), &whole);
        for world in World::both() {
            prop_assert_eq!(&pass_through(world, &from, &to, &sizes, false), &whole);
        }
        for world in World::both() {
            prop_assert_eq!(&pass_through(world, &from, &to, &[1], true), &whole);
        }
    }
}
