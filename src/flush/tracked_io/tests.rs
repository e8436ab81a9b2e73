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
use crate::flush::{
    Stats,
    connection::{Protocol, Verdict},
    frames::StreamId,
    generated::{data, frame, headers, reset},
    scripted::{FLUSHED, Heard, Read, Script, Scripted, connection, flushed, poll_read, stats},
    stats::Counters,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const ROOM: usize = 1 << 20;

trait Io: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// A tracked transport, all that is around it, and a task to poll it from.
struct World {
    io: Box<dyn Io>,
    connection: Arc<Connection>,
    counters: Arc<Counters>,
    script: Arc<Mutex<Script>>,
    task: task::Spawn<()>,
}

impl World {
    /// One with tokio's traits and one with hyper's. Both are polled by tokio's, which hyper-util adapts.
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

    fn polls<U>(&mut self, poll: impl FnOnce(Pin<&mut dyn Io>, &mut Context<'_>) -> U) -> U {
        let io = &mut self.io;
        self.task.enter(|cx, _| poll(Pin::new(&mut **io), cx))
    }

    fn read(&mut self, room: usize) -> Poll<io::Result<Vec<u8>>> {
        let io = &mut self.io;
        self.task.enter(|cx, _| poll_read(io, cx, room))
    }

    fn arrives(&self, read: Read) {
        self.script.lock().unwrap().reads.push_back(read);
    }

    fn brings(&self, bytes: &[&[u8]]) {
        self.arrives(Read::Bytes(bytes.concat()));
    }

    /// Writes, and the transport takes so much.
    fn write(&mut self, bytes: &[u8], accepted: usize) {
        self.script.lock().unwrap().writes.push_back(Ok(accepted));
        assert_eq!(assert_ready_ok!(self.polls(|io, cx| io.poll_write(cx, bytes))), accepted.min(bytes.len()));
    }

    fn flush(&mut self) {
        self.script.lock().unwrap().flushes.push_back(Ok(()));
        assert_ready_ok!(self.polls(|io, cx| io.poll_flush(cx)));
    }

    /// A response to the stream that opened last.
    fn begin(&self) -> Arc<Heard> {
        let response = Arc::new(Heard::default());
        let stream = self.connection.take_stream();
        assert!(stream.is_some());
        assert!(self.connection.begin(Version::HTTP_2, stream, &response));
        response
    }

    fn open(&mut self, stream: u32) -> Arc<Heard> {
        self.brings(&[&headers(stream, true)]);
        assert_ready_ok!(self.read(ROOM));
        self.begin()
    }

    fn speaks_http2(&mut self) {
        self.brings(&[PREFACE]);
        assert_ready_ok!(self.read(24));
    }

    fn speaks_http1(&mut self) {
        self.brings(&[b"GET"]);
        assert_ready_ok!(self.read(ROOM));
    }
}

#[test]
fn http1_is_read_into_the_caller_s_buffer() {
    for mut world in World::both() {
        world.speaks_http1();
        assert_eq!(world.connection.protocol(), Protocol::Http1);
        world.brings(&[&[b'x'; 100_000]]);
        assert_eq!(assert_ready_ok!(world.read(123_456)).len(), 100_000);
        assert_eq!(world.script.lock().unwrap().rooms[1..], [123_456]);
    }
}

#[test]
fn on_http1_a_response_is_flushed_with_the_flush_and_not_while_it_is_pending() {
    for mut world in World::both() {
        world.speaks_http1();
        let response = Arc::new(Heard::default());
        world.write(HEAD, HEAD.len());
        world.connection.await_flush(response.clone());
        assert_pending!(world.polls(|io, cx| io.poll_flush(cx)));
        assert_pending!(world.polls(|io, cx| io.poll_flush(cx)));
        assert_eq!(response.verdicts(), []);
        world.flush();
        assert_eq!(response.verdicts(), [FLUSHED]);
    }
}

/// hyper takes a head back that it cannot encode, and flushes all the same.
#[test]
fn on_http1_a_flush_says_nothing_of_a_response_that_has_not_begun() {
    for before in [&b""[..], b"HTTP/1.1 100 Continue\r\n\r\n"] {
        for mut world in World::both() {
            world.speaks_http1();
            let responses: [Arc<Heard>; 2] = Default::default();
            world.write(HEAD, HEAD.len());
            world.connection.await_flush(responses[0].clone());
            world.flush();
            if !before.is_empty() {
                world.write(before, before.len());
            }
            world.connection.await_flush(responses[1].clone());
            world.flush();
            assert_eq!((responses[0].verdicts(), responses[1].verdicts()), (vec![FLUSHED], vec![]));
            drop(world);
            assert_eq!(responses[1].verdicts(), [Verdict::Lost]);
        }
    }
}

/// hyper may hand an upgraded connection over with the head still in its own buffer.
#[test]
fn the_flush_of_a_tunnel_is_not_the_flush_of_its_head() {
    for mut world in World::both() {
        world.speaks_http1();
        let response = Arc::new(Heard::default());
        world.connection.await_flush(response.clone());
        world.write(b"bytes of the application", 24);
        assert_eq!(response.verdicts(), []);
        world.flush();
        assert_eq!(response.verdicts(), [Verdict::Lost], "at once");
    }
}

/// The head of the second response leaves in one write with the first, and the flush covers both.
#[test]
fn pipelined_response_is_flushed_after_a_shared_write() {
    for mut world in World::both() {
        world.speaks_http1();
        let [first, second, third]: [Arc<Heard>; 3] = Default::default();
        let ends = |world: &World, response: &Arc<Heard>| {
            world.connection.body_dropped();
            world.connection.await_flush(response.clone());
        };
        world.connection.head_ready();
        ends(&world, &first);
        world.connection.head_ready();
        world.write(&[HEAD, HEAD].concat(), 2 * HEAD.len());
        world.flush();
        assert_eq!((first.verdicts(), second.verdicts()), (vec![FLUSHED], vec![]));
        for _ in 0..2 {
            world.write(b"5\r\nchunk\r\n", 10);
            world.flush();
        }
        ends(&world, &second);
        assert_eq!(second.verdicts(), []);
        world.write(b"0\r\n\r\n", 5);
        world.flush();
        assert_eq!(second.verdicts(), [FLUSHED]);

        world.connection.head_ready();
        ends(&world, &third);
        world.flush();
        assert_eq!(third.verdicts(), [], "its head was not accepted");
        world.write(HEAD, HEAD.len());
        world.flush();
        assert_eq!(third.verdicts(), [FLUSHED]);
        assert_eq!(world.counters.stats(), stats(|stats| stats.flushed = 3));
    }
}

#[test]
fn body_without_a_head_gives_up_at_once() {
    for mut world in World::both() {
        world.speaks_http1();
        let [waiting, late]: [Arc<Heard>; 2] = Default::default();
        world.connection.await_flush(waiting.clone());
        world.connection.head_ready();
        world.write(b"bytes of a body", 15);
        assert_eq!(waiting.verdicts(), [Verdict::Unsure]);
        world.connection.body_dropped();
        world.connection.await_flush(late.clone());
        assert_eq!(late.verdicts(), [Verdict::Unsure]);
        assert_eq!(world.counters.stats(), stats(|stats| stats.gave_up = 2));
    }
}

/// A service that is called late, from a task of its own, must not find the stream of whoever is handed over by then.
#[test]
fn a_stream_is_taken_only_by_the_thread_that_reads() {
    for mut world in World::both() {
        world.speaks_http2();
        world.brings(&[&headers(1, true)]);
        assert_ready_ok!(world.read(ROOM));
        let connection = world.connection.clone();
        let elsewhere = std::thread::spawn(move || connection.take_stream());
        assert_eq!(elsewhere.join().unwrap(), None);
        assert_eq!(world.connection.take_stream(), Some(StreamId::new(1)));
    }
}

/// Else the stream after it would be taken for it.
#[test]
fn the_gate_is_closed_also_for_a_stream_that_cannot_be_followed() {
    for mut world in World::both() {
        world.speaks_http2();
        world.brings(&[&headers(1, true), &headers(3, true)]);
        assert_eq!(assert_ready_ok!(world.read(ROOM)), headers(1, true));
        world.connection.opened_unfollowed();
        assert_pending!(world.read(ROOM));
        assert_eq!(world.connection.take_stream(), None);
        assert_eq!(assert_ready_ok!(world.read(ROOM)), headers(3, true));
        assert_eq!(world.connection.take_stream(), Some(StreamId::new(3)));
    }
}

#[test]
fn a_shutdown_flushes_nothing() {
    for mut world in World::both() {
        world.speaks_http1();
        let response = Arc::new(Heard::default());
        world.write(HEAD, HEAD.len());
        world.connection.await_flush(response.clone());
        assert_pending!(world.polls(|io, cx| io.poll_shutdown(cx)));
        assert_eq!(response.verdicts(), []);
        world.script.lock().unwrap().flushes.push_back(Ok(()));
        assert_ready_ok!(world.polls(|io, cx| io.poll_shutdown(cx)));
        assert_eq!(response.verdicts(), [], "whoever shuts down may hold bytes that it never wrote");
    }
}

#[test]
fn a_client_that_leaves_within_the_preface_spoke_http1() {
    for mut world in World::both() {
        world.brings(&[b"PRI * "]);
        world.arrives(Read::End);
        assert_eq!(assert_ready_ok!(world.read(ROOM)), b"PRI * ");
        assert_eq!(world.connection.protocol(), Protocol::Undecided);
        assert_eq!(assert_ready_ok!(world.read(ROOM)), b"");
        assert_eq!(world.connection.protocol(), Protocol::Http1);
    }
}

#[test]
fn of_four_requests_in_one_segment_each_is_taken_by_its_own_stream() {
    for mut world in World::both() {
        world.brings(&[PREFACE, &headers(1, true), &headers(3, true), &headers(5, true), &headers(7, true)]);
        let mut taken = Vec::new();
        for stream in [1, 3, 5, 7] {
            let preface = if stream == 1 { PREFACE.len() } else { 0 };
            assert_eq!(assert_ready_ok!(world.read(ROOM)).len(), preface + 10);
            assert_pending!(world.read(ROOM));
            if stream < 7 {
                assert!(world.task.is_woken(), "there is more at hand");
            }
            // h2 does not pass on a malformed one.
            if stream != 3 {
                taken.push((stream, world.begin()));
            }
        }
        assert_pending!(world.read(ROOM));
        assert_eq!(world.counters.stats(), stats(|stats| stats.undelivered = 1));

        for (stream, response) in taken {
            world.write(&data(stream, stream as usize, true), ROOM);
            world.flush();
            assert_eq!(response.verdicts(), [flushed(stream.into())]);
        }
    }
}

#[test]
fn a_stream_that_is_taken_at_once_does_not_wait() {
    for mut world in World::both() {
        world.speaks_http2();
        world.brings(&[&headers(1, true), &headers(3, true)]);
        for _ in 0..2 {
            assert_eq!(assert_ready_ok!(world.read(ROOM)).len(), 10);
            world.begin();
        }
        assert!(!world.task.is_woken());
    }
}

#[test]
fn at_the_gate_with_nothing_at_hand_the_transport_has_the_waker() {
    for mut world in World::both() {
        world.speaks_http2();
        world.brings(&[&headers(1, true)]);
        assert_ready_ok!(world.read(ROOM));
        assert_pending!(world.read(ROOM));
        assert!(!world.task.is_woken());
        world.begin();
        world.brings(&[b"later"]);
        world.script.lock().unwrap().reader.take().unwrap().wake();
        assert!(world.task.is_woken());
        assert_eq!(assert_ready_ok!(world.read(ROOM)), b"later");
    }
}

#[test]
fn an_end_behind_the_gate_is_delivered_behind_it_and_loses_nothing() {
    for mut world in World::both() {
        world.speaks_http2();
        world.brings(&[&headers(1, true)]);
        world.arrives(Read::End);
        assert_ready_ok!(world.read(ROOM));
        assert_pending!(world.read(ROOM));
        assert!(world.task.is_woken());
        let response = world.begin();
        assert_eq!(assert_ready_ok!(world.read(ROOM)), b"");
        world.write(&headers(1, true), ROOM);
        world.flush();
        assert_eq!(response.verdicts(), [flushed(0)], "a client may close its half");
    }
}

#[test]
fn a_failure_behind_the_gate_is_delivered_behind_it() {
    for mut world in World::both() {
        world.speaks_http2();
        world.brings(&[&headers(1, true)]);
        world.arrives(Read::Failure);
        assert_ready_ok!(world.read(ROOM));
        assert_pending!(world.read(ROOM));
        assert!(world.task.is_woken());
        let response = world.begin();
        assert_eq!(response.verdicts(), [Verdict::Lost]);
        let Poll::Ready(Err(error)) = world.read(ROOM) else { panic!() };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn whatever_fails_loses_what_is_open() {
    let failures: [fn(&mut World); 5] = [
        |world| {
            world.arrives(Read::Failure);
            assert!(matches!(world.read(ROOM), Poll::Ready(Err(_))));
        },
        |world| {
            world.script.lock().unwrap().writes.push_back(Err(io::ErrorKind::BrokenPipe.into()));
            assert!(matches!(world.polls(|io, cx| io.poll_write(cx, b"bytes")), Poll::Ready(Err(_))));
        },
        |world| {
            world.script.lock().unwrap().flushes.push_back(Err(io::ErrorKind::BrokenPipe.into()));
            assert!(matches!(world.polls(|io, cx| io.poll_flush(cx)), Poll::Ready(Err(_))));
        },
        |world| {
            world.script.lock().unwrap().flushes.push_back(Err(io::ErrorKind::BrokenPipe.into()));
            assert!(matches!(world.polls(|io, cx| io.poll_shutdown(cx)), Poll::Ready(Err(_))));
        },
        |world| world.io = Box::new(Scripted::default()),
    ];
    for fails in failures {
        for mut world in World::both() {
            world.speaks_http2();
            let (ended, open) = (world.open(1), world.open(3));
            world.write(&headers(1, true), ROOM);
            fails(&mut world);
            assert_eq!((ended.verdicts(), open.verdicts()), (vec![Verdict::Lost], vec![Verdict::Lost]));
        }
        for mut world in World::both() {
            world.speaks_http1();
            let [waiting, late]: [Arc<Heard>; 2] = Default::default();
            world.connection.await_flush(waiting.clone());
            fails(&mut world);
            world.connection.await_flush(late.clone());
            assert_eq!((waiting.verdicts(), late.verdicts()), (vec![Verdict::Lost], vec![Verdict::Lost]));
        }
    }
}

#[test]
fn only_what_was_accepted_counts_in_one_piece_and_in_slices() {
    for mut world in World::both() {
        world.speaks_http2();
        let (one, three) = (world.open(1), world.open(3));
        let (first, second) = (data(1, 5, true), data(3, 6, true));
        assert!(world.io.is_write_vectored());

        world.write(&first, first.len() - 1);
        world.flush();
        assert_eq!(one.verdicts(), []);
        world.script.lock().unwrap().writes.push_back(Ok(4));
        let slices = [IoSlice::new(&first[first.len() - 1..]), IoSlice::new(&[]), IoSlice::new(&second)];
        assert_eq!(assert_ready_ok!(world.polls(|io, cx| io.poll_write_vectored(cx, &slices))), 4);
        assert_pending!(world.polls(|io, cx| io.poll_write_vectored(cx, &slices)));
        assert_pending!(world.polls(|io, cx| io.poll_flush(cx)));
        assert_eq!(one.verdicts(), []);
        world.flush();
        assert_eq!((one.verdicts(), three.verdicts()), (vec![flushed(5)], vec![]));

        world.write(&second[3..], ROOM);
        world.flush();
        assert_eq!(three.verdicts(), [flushed(6)]);
        assert_eq!(world.script.lock().unwrap().written, [first, second].concat());
    }
}

#[test]
fn a_reset_counts_once_it_is_delivered() {
    for mut world in World::both() {
        world.speaks_http2();
        world.brings(&[&headers(1, true), &reset(1, 8)]);
        assert_ready_ok!(world.read(ROOM));
        let response = world.begin();
        assert_eq!(assert_ready_ok!(world.read(12)).len(), 12);
        assert_eq!(response.verdicts(), []);
        assert_ready_ok!(world.read(12));
        assert_eq!(response.verdicts(), [Verdict::Lost]);
    }
}

#[test]
fn malformed_inbound_bytes_are_delivered_and_stop_the_mapping() {
    for mut world in World::both() {
        world.speaks_http2();
        let response = world.open(1);
        world.brings(&[&data(0, 1, false), &headers(3, true)]);
        assert_eq!(assert_ready_ok!(world.read(ROOM)).len(), 20, "the gate stays open");
        assert_eq!(world.connection.take_stream(), None);
        world.brings(&[b"more"]);
        assert_eq!(assert_ready_ok!(world.read(ROOM)), b"more");
        assert_eq!(response.verdicts(), []);
        drop(world);
        assert_eq!(response.verdicts(), [Verdict::Lost]);
    }
}

#[test]
fn a_caller_without_room_gets_nothing_and_passes_no_gate() {
    for mut world in World::both() {
        world.speaks_http2();
        world.brings(&[&headers(1, true)]);
        assert_ready_ok!(world.read(ROOM));
        for _ in 0..3 {
            assert_eq!(assert_ready_ok!(world.read(0)), b"");
        }
        world.begin();
    }
}

#[test]
fn what_was_read_and_not_delivered_is_given_back() {
    let (connection, _) = connection();
    let scripted = Scripted::default();
    scripted.0.lock().unwrap().reads.extend([Read::Bytes(PREFACE.to_vec()), Read::Bytes(headers(1, true))]);
    let mut io = TrackedIo::new(scripted, connection.clone());
    let mut task = task::spawn(());
    for room in [24, 4] {
        assert_ready_ok!(task.enter(|cx, _| poll_read(&mut io, cx, room)));
    }
    assert!(io.get_ref().0.lock().unwrap().reads.is_empty());
    let late = Arc::new(Heard::default());
    let parts = io.into_parts();
    assert_eq!(parts.read_buf, headers(1, true)[4..]);
    connection.await_flush(late.clone());
    assert_eq!(late.verdicts(), [Verdict::Lost]);
}

/// What is to be the same however the bytes are cut, and by whose traits.
#[derive(Debug, PartialEq)]
struct Seen {
    delivered: Vec<u8>,
    verdicts: Vec<Vec<Verdict>>,
    stats: Stats,
}

/// A client's bytes and then a server's go through, in pieces. Every stream but the fifth is taken.
fn go_through(mut world: World, from: &[u8], to: &[u8], sizes: &[usize], flush_last: bool) -> Seen {
    let mut sizes = sizes.iter().copied().cycle();
    let mut rest = from;
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(rest.len().min(sizes.next().unwrap()));
        world.brings(&[piece]);
        rest = behind;
    }
    world.arrives(Read::End);
    let (mut delivered, mut responses) = (Vec::new(), Vec::new());
    let mut opened = 0;
    loop {
        match world.read(sizes.next().unwrap()) {
            Poll::Pending => assert!(world.task.is_woken(), "nothing is forgotten"),
            Poll::Ready(bytes) if bytes.as_ref().unwrap().is_empty() => break,
            Poll::Ready(bytes) => delivered.extend(bytes.unwrap()),
        }
        if world.connection.protocol() == Protocol::Http2 && world.connection.is_untaken() {
            opened += 1;
            if opened == 5 {
                assert_pending!(world.read(1));
                world.connection.take_back();
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
        assert_ready_ok!(world.polls(|io, cx| io.poll_write_vectored(cx, &slices)));
        rest = behind;
        // The server sends no resets, so flushes in between tell no more and no less than the last.
        if !flush_last {
            world.flush();
        }
    }
    world.flush();
    let verdicts = responses.iter().map(|response| response.verdicts()).collect();
    Seen { delivered, verdicts, stats: world.counters.stats() }
}

fn frames(of_client: bool) -> impl Strategy<Value = Vec<u8>> {
    let frame = (0..7_u8, 0..12_u32, 0..60_usize, any::<bool>()).prop_map(move |(kind, number, length, end)| {
        let stream = 2 * number + 1;
        match kind {
            0 | 1 => data(stream, length, end),
            2 if of_client => reset(stream, 8),
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
    fn a_split_changes_nothing(
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
        let whole = go_through(tokio, &from, &to, &[ROOM], false);
        prop_assert_eq!(&whole.delivered, &from);
        prop_assert!(whole.verdicts.iter().all(|verdicts| verdicts.len() <= 1));
        prop_assert_eq!(&go_through(hyper, &from, &to, &[ROOM], false), &whole);
        for world in World::both() {
            prop_assert_eq!(&go_through(world, &from, &to, &sizes, false), &whole);
        }
        for world in World::both() {
            prop_assert_eq!(&go_through(world, &from, &to, &[1], true), &whole);
        }
    }
}
