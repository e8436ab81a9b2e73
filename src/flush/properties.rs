//! A property of the parsers, checked by a proptest and by `fuzz/`.

use std::{collections::BTreeMap, io::IoSlice};

use super::{
    frames::{Event, Frames, StreamId},
    inbound::Inbound,
    lookahead::Lookahead,
    outbound::{Abort, Outbound, Waiter},
};

impl Waiter for () {
    fn ends_with_head(&self) -> bool {
        false
    }
}

/// Checks that bytes in pieces yield the same events at the same positions as in one piece, without
/// a panic.
///
/// The sizes of the pieces are repeated as needed.
pub(crate) fn split_changes_nothing(bytes: &[u8], sizes: &[u8]) {
    let whole = events([bytes]);
    assert_eq!(events(pieces(bytes, sizes)), whole, "frames");
    if let Some(malformed) = whole.iter().position(|(_, event)| *event == Event::Malformed) {
        assert_eq!(malformed, whole.len() - 1, "it is the last event");
    }
    assert_eq!(delivered(pieces(bytes, sizes)), delivered([bytes]), "inbound");

    let streams: Vec<_> = whole.iter().filter_map(|(_, event)| stream(*event)).collect();
    let in_one = accepted(&streams, |outbound, reset| outbound.accept(bytes, reset));
    let in_pieces = accepted(&streams, |outbound, mut reset| {
        pieces(bytes, sizes).for_each(|piece| outbound.accept(piece, &mut reset));
    });
    let by_halves = accepted(&streams, |outbound, mut reset| {
        let slices: Vec<_> = pieces(bytes, sizes).map(IoSlice::new).collect();
        let half = bytes.len() / 2;
        outbound.accept_vectored(&slices, half, &mut reset);
        outbound.accept(&bytes[half..], reset);
    });
    assert_eq!((&in_pieces, &by_halves), (&in_one, &in_one), "outbound");
}

/// Returns the events, each with the number of bytes read by then.
pub(super) fn events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<(usize, Event)> {
    let (mut frames, mut at, mut events) = (Frames::default(), 0, Vec::new());
    for mut piece in pieces {
        while !piece.is_empty() {
            let (read, event) = frames.read(piece);
            assert!(read > 0, "each call reads something");
            assert!(event.is_some() || read == piece.len(), "reading stops only at events");
            at += read;
            piece = &piece[read..];
            events.extend(event.map(|event| (at, event)));
        }
    }
    events
}

/// Results of [`Inbound`].
#[derive(Debug, PartialEq)]
struct Delivered {
    /// Each with the number of bytes delivered by then.
    opened: Vec<(usize, StreamId)>,
    resets: Vec<(StreamId, u32)>,
    is_gating: bool,
}

fn delivered<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Delivered {
    let (mut inbound, mut at, mut opened, mut resets) = (Inbound::default(), 0, Vec::new(), Vec::new());
    for mut piece in pieces {
        while !piece.is_empty() {
            let delivery = inbound
                .deliver(piece, &mut Lookahead::default(), |stream, error_code| resets.push((stream, error_code)));
            assert!(delivery.opened.is_some() || delivery.bytes == piece.len(), "only a new stream closes the gate");
            at += delivery.bytes;
            piece = &piece[delivery.bytes..];
            opened.extend(delivery.opened.map(|stream| (at, stream)));
        }
    }
    assert!(opened.is_sorted_by(|(_, one), (_, next)| one < next), "each stream opens once");
    Delivered { opened, resets, is_gating: inbound.is_gating() }
}

/// Results of [`Outbound`].
#[derive(Debug, PartialEq)]
struct Accepted {
    flushed: BTreeMap<StreamId, u64>,
    resets: Vec<(StreamId, u32)>,
    gave_up: bool,
}

/// Opens the streams, accepts the bytes, and flushes.
fn accepted(
    streams: &[StreamId],
    accept: impl FnOnce(&mut Outbound<()>, &mut dyn FnMut(Abort, Option<()>)),
) -> Accepted {
    let (mut outbound, mut resets) = (Outbound::default(), Vec::new());
    for stream in streams {
        outbound.open(*stream);
    }
    accept(&mut outbound, &mut |abort, _| {
        if let Abort::Reset { stream, error_code } = abort {
            resets.push((stream, error_code));
        }
    });
    let flushed = outbound.flushed().map(|(stream, body_bytes, _)| (stream, body_bytes)).collect();
    assert_eq!(outbound.flushed().next(), None, "a response is flushed once");
    Accepted { flushed, resets, gave_up: outbound.gave_up() }
}

fn stream(event: Event) -> Option<StreamId> {
    match event {
        Event::Data { stream, .. } | Event::Headers { stream, .. } | Event::Reset { stream, .. } => Some(stream),
        Event::GoAway { .. } | Event::Malformed | Event::Settings { .. } => None,
    }
}

fn pieces<'a>(bytes: &'a [u8], sizes: &[u8]) -> impl Iterator<Item = &'a [u8]> {
    let sizes = if sizes.is_empty() { &[1] } else { sizes };
    let mut rest = bytes;
    let mut sizes = sizes.iter().cycle().map(|size| usize::from(*size).max(1));
    std::iter::from_fn(move || {
        let (piece, behind) = rest.split_at(sizes.next()?.min(rest.len()));
        rest = behind;
        (!piece.is_empty()).then_some(piece)
    })
}
