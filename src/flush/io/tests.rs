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
            scripted::{self, FLUSHED, Read, Script, Scripted, connection, flushed, poll_read, stats},
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

    /// Begins the response to the stream that opened last.
    fn begin(&self) -> TestResponse {
        assert!(self.connection.has_pending_stream());
        scripted::begin(&self.connection, Version::HTTP_2)
    }

    fn begin_http1(&self) -> TestResponse {
        scripted::begin(&self.connection, Version::HTTP_11)
    }

    fn open(&mut self, stream: u32) -> TestResponse {
        self.queue_bytes(&[&headers(stream, true)]);
        assert_ready_ok!(self.read(ROOM));
        self.begin()
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

/// A service that is called later in a task of its own must not take the stream of another request.
#[test]
fn stream_is_taken_only_by_the_thread_that_reads() {
    for mut world in World::both() {
        world.speaks_http2();
        world.queue_bytes(&[&headers(1, true)]);
        assert_ready_ok!(world.read(ROOM));
        let connection = world.connection.clone();
        let elsewhere = std::thread::spawn(move || scripted::begin(&connection, Version::HTTP_2));
        assert_eq!(elsewhere.join().unwrap().flush_outcome(), Some(Unmapped));
        assert_eq!(world.begin().flush_outcome(), None);
    }
}

/// Otherwise its request would take the next stream.
#[test]
fn gate_closes_for_a_stream_that_cannot_be_followed() {
    for mut world in World::both() {
        world.speaks_http2();
        world.queue_bytes(&[&headers(1, true), &headers(3, true)]);
        assert_eq!(assert_ready_ok!(world.read(ROOM)), headers(1, true));
        world.connection.unfollow_pending_stream();
        assert_pending!(world.read(ROOM));
        assert_eq!(world.begin().flush_outcome(), Some(Unmapped));
        assert_eq!(assert_ready_ok!(world.read(ROOM)), headers(3, true));
        assert_eq!(world.begin().flush_outcome(), None);
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
fn requests_in_one_segment_take_their_own_streams() {
    for mut world in World::both() {
        world.queue_bytes(&[PREFACE, &headers(1, true), &headers(3, true), &headers(5, true), &headers(7, true)]);
        let mut taken = Vec::new();
        assert_eq!(assert_ready_ok!(world.read(ROOM)), PREFACE);
        for stream in [1, 3, 5, 7] {
            assert_eq!(assert_ready_ok!(world.read(ROOM)).len(), 10);
            assert_pending!(world.read(ROOM));
            if stream < 7 {
                assert!(world.task.is_woken(), "more bytes are buffered");
            }
            // Stream 3 is not taken, like a malformed request.
            if stream != 3 {
                taken.push((stream, world.begin()));
            }
        }
        assert_pending!(world.read(ROOM));
        assert_eq!(world.counters.stats(), stats(|stats| stats.undelivered = 1));

        for (stream, response) in taken {
            world.write(&data(stream, stream as usize, true), ROOM);
            world.flush();
            assert_eq!(response.flush_outcome(), Some(flushed(stream.into())));
        }
    }
}

#[test]
fn stream_taken_at_once_does_not_delay_the_next() {
    for mut world in World::both() {
        world.speaks_http2();
        world.queue_bytes(&[&headers(1, true), &headers(3, true)]);
        for _ in 0..2 {
            assert_eq!(assert_ready_ok!(world.read(ROOM)).len(), 10);
            world.begin();
        }
        assert!(!world.task.is_woken());
    }
}

#[test]
fn closed_gate_without_buffered_bytes_waits_for_the_transport() {
    for mut world in World::both() {
        world.speaks_http2();
        world.queue_bytes(&[&headers(1, true)]);
        assert_ready_ok!(world.read(ROOM));
        assert_pending!(world.read(ROOM));
        assert!(!world.task.is_woken());
        world.begin();
        world.queue_bytes(&[b"later"]);
        world.script.lock().unwrap().reader.take().unwrap().wake();
        assert!(world.task.is_woken());
        assert_eq!(assert_ready_ok!(world.read(ROOM)), b"later");
    }
}

#[test]
fn end_of_reads_is_delivered_after_the_gate() {
    for mut world in World::both() {
        world.speaks_http2();
        world.queue_bytes(&[&headers(1, true)]);
        world.queue(Read::End);
        assert_ready_ok!(world.read(ROOM));
        assert_pending!(world.read(ROOM));
        assert!(world.task.is_woken());
        let response = world.begin();
        assert_eq!(assert_ready_ok!(world.read(ROOM)), b"");
        world.write(&headers(1, true), ROOM);
        world.flush();
        assert_eq!(response.flush_outcome(), Some(flushed(0)), "a client may close its half of the connection");
    }
}

#[test]
fn read_error_is_delivered_after_the_gate() {
    for mut world in World::both() {
        world.speaks_http2();
        world.queue_bytes(&[&headers(1, true)]);
        world.queue(Read::Failure);
        assert_ready_ok!(world.read(ROOM));
        assert_pending!(world.read(ROOM));
        assert!(world.task.is_woken());
        let response = world.begin();
        assert_eq!(response.flush_outcome(), Some(Lost));
        let Poll::Ready(Err(error)) = world.read(ROOM) else { panic!() };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
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
fn reset_request_does_not_take_the_stream_of_a_later_one() {
    // Each is reset or not, and h2 passes it to the service or finds it malformed.
    for case in 0..4_u32.pow(4) {
        let kinds = (0..4).map(|at| case / 4_u32.pow(at) % 4);
        let requests: Vec<_> = (1..).step_by(2).zip(kinds).map(|(id, kind)| (id, kind & 1 > 0, kind & 2 > 0)).collect();
        for resets_last in [false, true] {
            for mut world in World::both() {
                world.speaks_http2();
                check_mapping(&mut world, &requests, resets_last);
            }
        }
    }
}

/// Reads like h2: until a read is pending, and then passes one request to the service.
fn check_mapping(world: &mut World, requests: &[(u32, bool, bool)], resets_last: bool) {
    let resets = || requests.iter().filter(|(_, is_reset, _)| *is_reset).flat_map(|(id, ..)| reset(*id, 8));
    let opens = requests.iter().flat_map(|(id, is_reset, _)| {
        let follows = if *is_reset && !resets_last { reset(*id, 8) } else { Vec::new() };
        [headers(*id, true), follows].concat()
    });
    let bytes: Vec<u8> = if resets_last { opens.chain(resets()).collect() } else { opens.collect() };
    world.queue_bytes(&[&bytes]);

    let (mut unread, mut queue, mut accepted) = (Vec::new(), std::collections::VecDeque::new(), Vec::new());
    let mut found = 0;
    loop {
        while let Poll::Ready(bytes) = world.read(ROOM) {
            unread.extend(bytes.unwrap());
        }
        while let Some((kind, length)) = unread.get(3).map(|kind| (*kind, 9 + usize::from(unread[2]))) {
            if unread.len() < length {
                break;
            }
            unread.drain(..length);
            if kind == 1 {
                let (id, is_reset, is_malformed) = requests[found];
                found += 1;
                if !is_malformed {
                    queue.push_back((id, is_reset));
                }
            }
        }
        match queue.pop_front() {
            Some((id, is_reset)) => accepted.push((id, is_reset, scripted::begin(&world.connection, Version::HTTP_2))),
            None if world.task.is_woken() => {}
            None => break,
        }
    }
    assert_eq!(found, requests.len(), "everything was delivered");
    for (id, is_reset, response) in accepted {
        world.write(&data(id, id as usize, true), ROOM);
        world.flush();
        let expected = if is_reset { Lost } else { flushed(id.into()) };
        assert_eq!(response.flush_outcome(), Some(expected), "stream {id} of {requests:?}");
    }
}

#[test]
fn malformed_inbound_bytes_are_delivered_and_stop_the_mapping() {
    for mut world in World::both() {
        world.speaks_http2();
        let response = world.open(1);
        world.queue_bytes(&[&data(0, 1, false), &headers(3, true)]);
        assert_eq!(assert_ready_ok!(world.read(ROOM)).len(), 20, "the gate stays open");
        assert!(!world.connection.has_pending_stream());
        world.queue_bytes(&[b"more"]);
        assert_eq!(assert_ready_ok!(world.read(ROOM)), b"more");
        assert_eq!(response.flush_outcome(), None);
        drop(world);
        assert_eq!(response.flush_outcome(), Some(Lost));
    }
}

#[test]
fn read_without_room_does_not_open_the_gate() {
    for mut world in World::both() {
        world.speaks_http2();
        world.queue_bytes(&[&headers(1, true)]);
        assert_ready_ok!(world.read(ROOM));
        for _ in 0..3 {
            assert_eq!(assert_ready_ok!(world.read(0)), b"");
        }
        world.begin();
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
    assert_eq!(parts.read_buf, headers(1, true)[4..]);
    let late = scripted::begin_stream(&connection, 3);
    assert_eq!(late.flush_outcome(), Some(Unmapped), "tracking has ended");
}

/// Results that do not depend on the split of the bytes and on the traits.
#[derive(Debug, PartialEq)]
struct Seen {
    delivered: Vec<u8>,
    outcomes: Vec<Option<FlushOutcome>>,
    stats: TrackerStats,
}

/// Passes bytes of a client and then of a server in pieces. Every stream except the fifth is taken.
fn pass_through(mut world: World, from: &[u8], to: &[u8], sizes: &[usize], flush_last: bool) -> Seen {
    let mut sizes = sizes.iter().copied().cycle();
    let mut rest = from;
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(rest.len().min(sizes.next().unwrap()));
        world.queue_bytes(&[piece]);
        rest = behind;
    }
    world.queue(Read::End);
    let (mut delivered, mut responses) = (Vec::new(), Vec::new());
    let mut opened = 0;
    loop {
        match world.read(sizes.next().unwrap()) {
            Poll::Pending => assert!(world.task.is_woken(), "the task is woken"),
            Poll::Ready(bytes) if bytes.as_ref().unwrap().is_empty() => break,
            Poll::Ready(bytes) => delivered.extend(bytes.unwrap()),
        }
        if world.connection.protocol() == Protocol::Http2 && world.connection.has_pending_stream() {
            opened += 1;
            if opened == 5 {
                assert_pending!(world.read(1));
                world.connection.reclaim_stream();
            } else {
                responses.push(world.begin());
            }
        }
    }
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
    Seen { delivered, outcomes, stats: world.counters.stats() }
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
        prop_assert_eq!(&whole.delivered, &from);
        prop_assert_eq!(&pass_through(hyper, &from, &to, &[ROOM], false), &whole);
        for world in World::both() {
            prop_assert_eq!(&pass_through(world, &from, &to, &sizes, false), &whole);
        }
        for world in World::both() {
            prop_assert_eq!(&pass_through(world, &from, &to, &[1], true), &whole);
        }
    }
}
