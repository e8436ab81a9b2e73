use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;
use crate::flush::tests::generated::{data, frame, headers, reset};

const ONE: u32 = 1;
const CANCEL: u32 = 8;

/// A waiter with the number of its stream. `true` opens a tunnel.
type TestWaiter = (u32, bool);

impl Waiter for TestWaiter {
    fn ends_with_head(&self) -> bool {
        self.1
    }

    fn has_ended(&self) -> bool {
        true
    }
}

/// Opens streams whose requests have waiters.
fn open(streams: impl IntoIterator<Item = u32>) -> Outbound<TestWaiter> {
    let mut outbound = Outbound::default();
    for stream in streams {
        outbound.open(StreamId::new(stream));
        assert_eq!(outbound.attach(StreamId::new(stream), (stream, false)), Ok(()));
    }
    outbound
}

/// Opens a stream whose response is a tunnel.
fn open_tunnel(outbound: &mut Outbound<TestWaiter>, stream: u32) {
    outbound.open(StreamId::new(stream));
    assert_eq!(outbound.attach(StreamId::new(stream), (stream, true)), Ok(()));
}

/// Accepts the frames, and returns the streams that were reset.
fn accept(outbound: &mut Outbound<TestWaiter>, frames: &[Vec<u8>]) -> Vec<(StreamId, u32)> {
    let mut resets = Vec::new();
    outbound.accept(&frames.concat(), |abort, slot| match abort {
        Abort::Reset { stream, error_code } => {
            assert_eq!(slot, Slot::Waiting((stream.as_u32(), false)));
            resets.push((stream, error_code));
        }
        Abort::Malformed => assert!(matches!(slot, Slot::Waiting(_))),
    });
    resets
}

fn flushed(outbound: &mut Outbound<TestWaiter>) -> Vec<(StreamId, u64)> {
    let mut flushed = Vec::new();
    outbound.flush(|stream, body_bytes, slot| {
        assert!(matches!(slot, Slot::Waiting((of, _)) if of == stream.as_u32()));
        flushed.push((stream, body_bytes));
    });
    flushed
}

fn of(stream: u32, data: u64) -> (StreamId, u64) {
    (StreamId::new(stream), data)
}

#[test]
fn response_is_flushed_by_the_flush_after_its_end() {
    let mut outbound = open([ONE]);
    accept(&mut outbound, &[headers(ONE, false), data(ONE, 700, false)]);
    assert_eq!(flushed(&mut outbound), [], "h2 flushes in the middle of its queue");

    let last = data(ONE, 300, true);
    outbound.accept(&last[..last.len() - 1], |_, _| {});
    assert_eq!(flushed(&mut outbound), [], "its last byte is missing");
    outbound.accept(&last[last.len() - 1..], |_, _| {});
    assert_eq!(flushed(&mut outbound), [of(ONE, 1000)]);
    assert_eq!(flushed(&mut outbound), [], "once");
}

#[test]
fn trailers_and_a_final_head_end_a_response() {
    let mut outbound = open([1, 3, 5]);
    accept(&mut outbound, &[headers(1, false), headers(1, false), data(1, 4, false), headers(1, true)]);
    accept(&mut outbound, &[headers(3, true), headers(5, false)]);
    assert_eq!(flushed(&mut outbound), [of(1, 4), of(3, 0)]);

    accept(&mut outbound, &[frame(1, 0x1, 5, b"trail")]);
    assert_eq!(flushed(&mut outbound), [], "a CONTINUATION frame is missing");
    accept(&mut outbound, &[frame(9, 0x4, 5, b"ers")]);
    assert_eq!(flushed(&mut outbound), [of(5, 0)]);
}

#[test]
fn tunnel_ends_with_its_head() {
    let mut outbound = open([3]);
    open_tunnel(&mut outbound, 1);
    accept(&mut outbound, &[headers(3, false), frame(1, 0, 1, b"he")]);
    assert_eq!((outbound.ended(), flushed(&mut outbound)), (0, vec![]), "a CONTINUATION frame is missing");
    accept(&mut outbound, &[frame(9, 0x4, 1, b"ad"), data(1, 7, false)]);
    assert_eq!(outbound.ended(), 1, "stream 3 is not a tunnel");
    assert!(outbound.follows(StreamId::new(1)));
    assert_eq!(flushed(&mut outbound), [of(1, 0)]);
    assert!(!outbound.follows(StreamId::new(1)));

    assert_eq!(
        accept(&mut outbound, &[data(1, 7, true), reset(1, CANCEL)]),
        [],
        "the end of the tunnel is not the end of the response"
    );
    assert_eq!(flushed(&mut outbound), []);
    let unknown = outbound.attach(StreamId::new(9), (9, true));
    assert_eq!(unknown, Err(((9, true), Unknown::Closed)), "the stream was not opened");
}

#[test]
fn tunnel_reset_before_its_flush_is_aborted() {
    let mut outbound = open([]);
    open_tunnel(&mut outbound, ONE);
    accept(&mut outbound, &[headers(ONE, false)]);
    let mut aborted = Vec::new();
    outbound.accept(&reset(ONE, CANCEL), |_, slot| aborted.push(slot));
    assert_eq!(aborted, [Slot::Waiting((ONE, true))]);
    assert_eq!((outbound.ended(), flushed(&mut outbound)), (0, vec![]));
}

#[test]
fn blocked_stream_does_not_delay_others() {
    let mut outbound = open([1, 3]);
    accept(&mut outbound, &[data(1, 9, false), data(3, 5, true)]);
    assert_eq!(flushed(&mut outbound), [of(3, 5)]);
    accept(&mut outbound, &[data(1, 9, true)]);
    assert_eq!(flushed(&mut outbound), [of(1, 18)]);
}

#[test]
fn only_the_accepted_part_of_the_slices_counts() {
    let (one, two) = (data(1, 5, true), data(3, 6, true));
    let slices = [IoSlice::new(&one), IoSlice::new(&[]), IoSlice::new(&two)];
    let mut outbound = open([1, 3]);
    outbound.accept_vectored(&slices, one.len() + 3, |_, _| {});
    assert_eq!(flushed(&mut outbound), [of(1, 5)]);
    outbound.accept_vectored(&[IoSlice::new(&two[3..])], usize::MAX, |_, _| {});
    assert_eq!(flushed(&mut outbound), [of(3, 6)]);
}

#[test]
fn reset_aborts_a_response_that_was_not_flushed() {
    let mut outbound = open([1, 3]);
    assert_eq!(accept(&mut outbound, &[data(1, 5, false), reset(1, CANCEL)]), [(StreamId::new(1), CANCEL)]);
    assert_eq!(accept(&mut outbound, &[data(3, 5, true), reset(3, CANCEL)]), [(StreamId::new(3), CANCEL)]);
    assert_eq!(flushed(&mut outbound), []);
    assert!(outbound.responses.is_empty() && outbound.ended.is_empty());
}

#[test]
fn no_error_after_the_end_only_stops_the_request() {
    let mut outbound = open([1, 3]);
    assert_eq!(accept(&mut outbound, &[data(1, 5, true), reset(1, NO_ERROR)]), []);
    assert_eq!(
        accept(&mut outbound, &[reset(3, NO_ERROR)]),
        [(StreamId::new(3), NO_ERROR)],
        "the response had not ended"
    );
    assert_eq!(flushed(&mut outbound), [of(1, 5)]);
    assert_eq!(accept(&mut outbound, &[reset(1, CANCEL)]), [], "it was flushed");
}

#[test]
fn closed_stream_returns_its_waiter_and_is_not_flushed() {
    let mut outbound = open([1, 3]);
    accept(&mut outbound, &[data(1, 5, true), data(3, 5, true)]);
    assert_eq!(outbound.close(StreamId::new(1)), Some((1, false)));
    assert_eq!(outbound.close(StreamId::new(1)), None);
    assert_eq!(flushed(&mut outbound), [of(3, 5)]);
    assert_eq!(outbound.close(StreamId::new(3)), None, "it was flushed");
}

#[test]
fn malformed_bytes_abort_all_responses() {
    let mut outbound = open([1, 3]);
    accept(&mut outbound, &[data(1, 5, true), data(0, 1, false), data(3, 5, true)]);
    assert!(outbound.gave_up());
    assert_eq!(flushed(&mut outbound), []);
    outbound.open(StreamId::new(5));
    assert!(!outbound.follows(StreamId::new(5)));
    assert_eq!((outbound.responses.capacity(), outbound.ended.capacity()), (0, 0));
}

#[test]
fn stream_without_a_request_is_reported_as_vacant() {
    let mut outbound = Outbound::<TestWaiter>::default();
    [1, 3].into_iter().for_each(|stream| outbound.open(StreamId::new(stream)));
    let mut slots = Vec::new();
    outbound.accept(&[reset(1, CANCEL), headers(3, true)].concat(), |_, slot| slots.push(slot));
    outbound.flush(|_, _, slot| slots.push(slot));
    assert_eq!(slots, [Slot::Vacant, Slot::Vacant]);
}

#[test]
fn response_without_progress_is_given_up_once() {
    let mut outbound = open([1, 3]);
    let stalled = |outbound: &mut Outbound<TestWaiter>| {
        let mut stalled = Vec::new();
        outbound.give_up_stalled(10, |(stream, _)| stalled.push(stream));
        stalled
    };
    accept(&mut outbound, &[data(1, 100, false), data(3, 100, false)]);
    assert_eq!(stalled(&mut outbound), [0_u32; 0], "it waits since then");
    accept(&mut outbound, &[data(1, 10, false), data(3, 9, false)]);
    assert_eq!(stalled(&mut outbound), [3]);
    assert_eq!(stalled(&mut outbound), [1]);
    assert_eq!(stalled(&mut outbound), [0_u32; 0]);

    accept(&mut outbound, &[data(1, 1, true)]);
    let mut slots = Vec::new();
    outbound.flush(|stream, body_bytes, slot| slots.push((stream, body_bytes, slot)));
    assert_eq!(slots, [(StreamId::new(1), 111, Slot::Completed)]);
}

#[test]
fn memory_is_bounded_by_the_open_streams() {
    let mut outbound = Outbound::<TestWaiter>::default();
    for stream in (1..200_000).step_by(2) {
        // Of four streams, one is flushed, one is reset by the server, one by the client, and one
        // was never opened.
        if stream % 8 != 7 {
            outbound.open(StreamId::new(stream));
            outbound.attach(StreamId::new(stream), (stream, false)).unwrap();
        }
        match stream % 8 {
            3 => _ = accept(&mut outbound, &[headers(stream, false), data(stream, 1, true), reset(stream, CANCEL)]),
            5 => _ = outbound.close(StreamId::new(stream)),
            _ => _ = accept(&mut outbound, &[headers(stream, false), data(stream, 1, true)]),
        }
        outbound.flush(|_, _, _| ());
    }
    assert!(outbound.responses.is_empty() && outbound.ended.is_empty());
    assert!(outbound.responses.capacity() < 16 && outbound.ended.capacity() < 16);
}

#[test]
fn streams_over_the_limit_are_not_followed() {
    let mut outbound = open((0..MAX_STREAMS as u32).map(|stream| 2 * stream + 1));
    let over = StreamId::new(99_999);
    outbound.open(over);
    assert_eq!(outbound.attach(over, (99_999, false)), Err(((99_999, false), Unknown::NotFollowed)));
    assert!(outbound.close(StreamId::new(1)).is_some());
    outbound.open(over);
    assert_eq!(outbound.attach(over, (99_999, false)), Ok(()));
}

/// The last frame of a response.
#[derive(Clone, Copy, Debug)]
enum End {
    Data,
    EmptyData,
    Headers,
    Never,
    Reset,
    Trailers,
}

fn any_response() -> impl Strategy<Value = (usize, Vec<usize>, End)> {
    let ends = vec![End::Data, End::EmptyData, End::Headers, End::Never, End::Reset, End::Trailers];
    (0..3_usize, vec(0..400_usize, 0..6), prop::sample::select(ends))
}

/// Returns the frames of a response, and the length of its body if it ends.
fn written(stream: u32, interim: usize, chunks: &[usize], end: End) -> (VecDeque<Vec<u8>>, Option<u64>) {
    let mut frames: VecDeque<_> = (0..interim).map(|_| headers(stream, false)).collect();
    if let End::Headers = end {
        frames.push_back(headers(stream, true));
        return (frames, Some(0));
    }
    frames.push_back(headers(stream, false));
    frames.extend(chunks.iter().map(|length| data(stream, *length, false)));
    let total = chunks.iter().map(|length| *length as u64).sum();
    let (last, bytes) = match end {
        End::Data => (data(stream, 7, true), Some(total + 7)),
        End::EmptyData => (data(stream, 0, true), Some(total)),
        End::Headers | End::Trailers => (headers(stream, true), Some(total)),
        End::Never => return (frames, None),
        End::Reset => (reset(stream, CANCEL), None),
    };
    frames.push_back(last);
    (frames, bytes)
}

proptest! {
    /// Interleaved responses, accepted in random pieces with a flush after each: a response is
    /// flushed by the first flush after its last byte, with the length of its body.
    #[test]
    fn interleaved_responses_are_flushed_at_their_ends(
        responses in vec(any_response(), 1..8),
        picks in vec(any::<Index>(), 100),
        size in 1..600_usize,
    ) {
        let (mut queues, mut bytes, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for (at, (interim, chunks, end)) in responses.iter().enumerate() {
            let stream = 2 * at as u32 + 1;
            let (frames, total) = written(stream, *interim, chunks, *end);
            queues.push((stream, frames, total));
        }
        let mut outbound = open(queues.iter().map(|(stream, ..)| *stream));
        let mut picks = picks.iter().cycle();
        while let (false, Some(pick)) = (queues.is_empty(), picks.next()) {
            let at = pick.index(queues.len());
            let (stream, frames, total) = &mut queues[at];
            bytes.extend(frames.pop_front().unwrap_or_default());
            if frames.is_empty() {
                ends.extend(total.map(|total| (bytes.len(), of(*stream, total))));
                queues.remove(at);
            }
        }

        let mut read = 0;
        for piece in bytes.chunks(size) {
            let before = read;
            read += piece.len();
            outbound.accept(piece, |_, _| {});
            let due: Vec<_> = ends.iter().filter(|(at, _)| (before + 1..=read).contains(at)).map(|(_, it)| *it).collect();
            prop_assert_eq!(flushed(&mut outbound), due);
        }
    }
}
