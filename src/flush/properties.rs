//! A property of the parsers, checked by a proptest and by `fuzz/`.

use std::{collections::BTreeMap, io::IoSlice};

use super::{
    frames::{Event, Frames, StreamId},
    inbound::{self, Inbound},
    mark::Mark,
    outbound::{Abort, Outbound, Slot, Waiter},
};

impl Waiter for () {
    fn ends_with_head(&self) -> bool {
        false
    }

    fn has_ended(&self) -> bool {
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
    let mark = Mark::new();
    let delivered_whole = delivered(&mark, [bytes], &[]);
    assert_eq!(delivered(&mark, pieces(bytes, sizes), &[]), delivered_whole, "inbound");
    assert_eq!(delivered(&mark, pieces(bytes, sizes), sizes), delivered_whole, "inbound with little room");

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
    bytes: Vec<u8>,
    events: Vec<inbound::Event>,
}

/// Delivers pieces to a reader with as much room as the sizes say, or with enough.
fn delivered<'a>(mark: &Mark, pieces: impl IntoIterator<Item = &'a [u8]>, rooms: &[u8]) -> Delivered {
    let mut inbound = Inbound::default();
    let (mut delivered, mut events) = (Vec::new(), Vec::new());
    let rooms = rooms.iter().map(|room| usize::from(*room).max(1)).chain(rooms.is_empty().then_some(usize::MAX));
    let mut rooms = rooms.collect::<Vec<_>>().into_iter().cycle();
    for mut piece in pieces {
        while !piece.is_empty() || inbound.has_undelivered() {
            let room = rooms.next().unwrap_or(1);
            let before = delivered.len();
            let put = |bytes: &[u8]| delivered.extend_from_slice(bytes);
            let delivery = inbound.deliver(mark, piece, room, put, |event| events.push(event));
            assert_eq!(delivery.delivered, delivered.len() - before);
            assert!(delivery.delivered <= room && (delivery.read == piece.len() || delivery.delivered == room));
            piece = &piece[delivery.read..];
        }
    }
    delivered.extend(inbound.into_undelivered());
    let opened = events.iter().filter_map(|event| match event {
        inbound::Event::Open(stream) => Some(stream),
        inbound::Event::Reset(_) => None,
    });
    assert!(opened.is_sorted_by(|one, next| one < next), "each stream opens once");
    Delivered { bytes: delivered, events }
}

/// Results of [`Outbound`].
#[derive(Debug, PartialEq)]
struct Accepted {
    flushed: BTreeMap<StreamId, u64>,
    resets: Vec<(StreamId, u32)>,
    gave_up: bool,
}

/// Opens the streams, accepts the bytes, and flushes.
fn accepted(streams: &[StreamId], accept: impl FnOnce(&mut Outbound<()>, &mut dyn FnMut(Abort, Slot<()>))) -> Accepted {
    let (mut outbound, mut resets) = (Outbound::default(), Vec::new());
    for stream in streams {
        outbound.open(*stream);
    }
    accept(&mut outbound, &mut |abort, _| {
        if let Abort::Reset { stream, error_code } = abort {
            resets.push((stream, error_code));
        }
    });
    let mut flushed = BTreeMap::new();
    outbound.flush(|stream, body_bytes, _| _ = flushed.insert(stream, body_bytes));
    outbound.flush(|stream, _, _| panic!("{stream:?} is flushed twice"));
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
