use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;
use crate::flush::generated::{data, frame, headers, reset};

const ONE: u32 = 1;
const CANCEL: u32 = 8;

fn open(streams: impl IntoIterator<Item = u32>) -> Outbound {
    let mut outbound = Outbound::default();
    streams.into_iter().for_each(|stream| assert!(outbound.open(StreamId::new(stream))));
    outbound
}

/// Accepts the frames, and says which streams were reset.
fn accept(outbound: &mut Outbound, frames: &[Vec<u8>]) -> Vec<(StreamId, u32)> {
    let mut resets = Vec::new();
    outbound.accepted(&frames.concat(), |stream, error_code| resets.push((stream, error_code)));
    resets
}

fn flushed(outbound: &mut Outbound) -> Vec<(StreamId, u64)> {
    outbound.flushed().collect()
}

fn of(stream: u32, data: u64) -> (StreamId, u64) {
    (StreamId::new(stream), data)
}

#[test]
fn a_response_is_flushed_by_the_flush_after_its_end_and_not_before() {
    let mut outbound = open([ONE]);
    accept(&mut outbound, &[headers(ONE, false), data(ONE, 700, false)]);
    assert_eq!(flushed(&mut outbound), [], "h2 flushes in the midst of its queue");

    let last = data(ONE, 300, true);
    outbound.accepted(&last[..last.len() - 1], |_, _| {});
    assert_eq!(flushed(&mut outbound), [], "its last byte is missing");
    outbound.accepted(&last[last.len() - 1..], |_, _| {});
    assert_eq!(flushed(&mut outbound), [of(ONE, 1000)]);
    assert_eq!(flushed(&mut outbound), [], "once");
}

#[test]
fn trailers_and_a_head_alone_end_a_response_and_an_interim_one_does_not() {
    let mut outbound = open([1, 3, 5]);
    accept(&mut outbound, &[headers(1, false), headers(1, false), data(1, 4, false), headers(1, true)]);
    accept(&mut outbound, &[headers(3, true), headers(5, false)]);
    assert_eq!(flushed(&mut outbound), [of(1, 4), of(3, 0)]);

    accept(&mut outbound, &[frame(1, 0x1, 5, b"trail")]);
    assert_eq!(flushed(&mut outbound), [], "a CONTINUATION is to come");
    accept(&mut outbound, &[frame(9, 0x4, 5, b"ers")]);
    assert_eq!(flushed(&mut outbound), [of(5, 0)]);
}

#[test]
fn a_tunnel_ends_with_its_head_and_what_follows_is_not_counted() {
    let mut outbound = open([1, 3]);
    outbound.ends_with_head(StreamId::new(1));
    accept(&mut outbound, &[headers(3, false), frame(1, 0, 1, b"he")]);
    assert_eq!((outbound.ended(), flushed(&mut outbound)), (0, vec![]), "a CONTINUATION is to come");
    accept(&mut outbound, &[frame(9, 0x4, 1, b"ad"), data(1, 7, false)]);
    assert_eq!(outbound.ended(), 1, "stream 3 is no tunnel");
    assert!(outbound.follows(StreamId::new(1)));
    assert_eq!(flushed(&mut outbound), [of(1, 0)]);
    assert!(!outbound.follows(StreamId::new(1)));

    assert_eq!(
        accept(&mut outbound, &[data(1, 7, true), reset(1, CANCEL)]),
        [],
        "the tunnel's end is not the response's"
    );
    assert_eq!(flushed(&mut outbound), []);
    outbound.ends_with_head(StreamId::new(9));
    assert!(!outbound.follows(StreamId::new(9)), "it follows nothing that was not opened");
}

#[test]
fn a_tunnel_that_is_reset_before_its_flush_is_aborted() {
    let mut outbound = open([ONE]);
    outbound.ends_with_head(StreamId::new(ONE));
    accept(&mut outbound, &[headers(ONE, false)]);
    assert_eq!(accept(&mut outbound, &[reset(ONE, CANCEL)]), [(StreamId::new(ONE), CANCEL)]);
    assert_eq!((outbound.ended(), flushed(&mut outbound)), (0, vec![]));
}

#[test]
fn a_blocked_stream_waits_alone() {
    let mut outbound = open([1, 3]);
    accept(&mut outbound, &[data(1, 9, false), data(3, 5, true)]);
    assert_eq!(flushed(&mut outbound), [of(3, 5)]);
    accept(&mut outbound, &[data(1, 9, true)]);
    assert_eq!(flushed(&mut outbound), [of(1, 18)]);
}

#[test]
fn only_what_was_accepted_of_the_slices_counts() {
    let (one, two) = (data(1, 5, true), data(3, 6, true));
    let slices = [IoSlice::new(&one), IoSlice::new(&[]), IoSlice::new(&two)];
    let mut outbound = open([1, 3]);
    outbound.accepted_vectored(&slices, one.len() + 3, |_, _| {});
    assert_eq!(flushed(&mut outbound), [of(1, 5)]);
    outbound.accepted_vectored(&[IoSlice::new(&two[3..])], usize::MAX, |_, _| {});
    assert_eq!(flushed(&mut outbound), [of(3, 6)]);
}

#[test]
fn a_reset_aborts_what_was_not_flushed() {
    let mut outbound = open([1, 3]);
    assert_eq!(accept(&mut outbound, &[data(1, 5, false), reset(1, CANCEL)]), [(StreamId::new(1), CANCEL)]);
    assert_eq!(accept(&mut outbound, &[data(3, 5, true), reset(3, CANCEL)]), [(StreamId::new(3), CANCEL)]);
    assert_eq!(flushed(&mut outbound), []);
    assert!(outbound.responses.is_empty() && outbound.ended.is_empty());
}

#[test]
fn no_error_behind_the_end_only_stops_the_request() {
    let mut outbound = open([1, 3]);
    assert_eq!(accept(&mut outbound, &[data(1, 5, true), reset(1, NO_ERROR)]), []);
    assert_eq!(accept(&mut outbound, &[reset(3, NO_ERROR)]), [(StreamId::new(3), NO_ERROR)], "there was no end");
    assert_eq!(flushed(&mut outbound), [of(1, 5)]);
    assert_eq!(accept(&mut outbound, &[reset(1, CANCEL)]), [], "it is decided");
}

#[test]
fn who_closes_a_stream_decides_it() {
    let mut outbound = open([1, 3]);
    accept(&mut outbound, &[data(1, 5, true), data(3, 5, true)]);
    assert!(outbound.close(StreamId::new(1)));
    assert!(!outbound.close(StreamId::new(1)));
    assert_eq!(flushed(&mut outbound), [of(3, 5)]);
    assert!(!outbound.close(StreamId::new(3)), "it has been flushed");
}

#[test]
fn malformed_bytes_end_all_knowledge() {
    let mut outbound = open([1, 3]);
    accept(&mut outbound, &[data(1, 5, true), data(0, 1, false), data(3, 5, true)]);
    assert!(outbound.gave_up());
    assert_eq!(flushed(&mut outbound), []);
    assert!(!outbound.open(StreamId::new(5)));
    assert_eq!((outbound.responses.capacity(), outbound.ended.capacity()), (0, 0));
}

#[test]
fn what_is_not_taken_comes_with_the_next_flush() {
    let mut outbound = open([1, 3]);
    accept(&mut outbound, &[data(1, 5, true), data(3, 6, true)]);
    assert_eq!(outbound.flushed().next(), Some(of(1, 5)));
    assert_eq!(flushed(&mut outbound), [of(3, 6)]);
}

#[test]
fn memory_is_bounded_by_the_streams_that_are_open() {
    let mut outbound = Outbound::default();
    for stream in (1..200_000).step_by(2) {
        // Of four streams one is answered, one reset by us, one by the client, and one was never opened.
        if stream % 8 != 7 {
            assert!(outbound.open(StreamId::new(stream)));
        }
        match stream % 8 {
            3 => _ = accept(&mut outbound, &[headers(stream, false), data(stream, 1, true), reset(stream, CANCEL)]),
            5 => _ = outbound.close(StreamId::new(stream)),
            _ => _ = accept(&mut outbound, &[headers(stream, false), data(stream, 1, true)]),
        }
        outbound.flushed().for_each(drop);
    }
    assert!(outbound.responses.is_empty() && outbound.ended.is_empty());
    assert!(outbound.responses.capacity() < 16 && outbound.ended.capacity() < 16);
}

#[test]
fn a_stream_too_many_is_not_followed() {
    let mut outbound = open((0..MOST_STREAMS as u32).map(|stream| 2 * stream + 1));
    assert!(!outbound.open(StreamId::new(99_999)));
    assert!(outbound.close(StreamId::new(1)));
    assert!(outbound.open(StreamId::new(99_999)));
}

/// How a response ends.
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

/// A response's frames, and its bytes if it ends.
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
    /// Responses interleaved at will, accepted in any pieces, with a flush between any two: each is flushed by the first flush
    /// after its last byte, with its bytes.
    #[test]
    fn interleaved_responses_are_flushed_each_at_its_end(
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
            outbound.accepted(piece, |_, _| {});
            let due: Vec<_> = ends.iter().filter(|(at, _)| (before + 1..=read).contains(at)).map(|(_, it)| *it).collect();
            prop_assert_eq!(flushed(&mut outbound), due);
        }
    }
}
