use super::*;
use crate::flush::tests::{
    generated::{data, frame, headers, reset},
    scripted::unmark,
};

/// Delivers all bytes, and returns what the server reads, and the events.
fn deliver(bytes: &[u8]) -> (Vec<u8>, Vec<Event>) {
    let (mut inbound, mark) = (Inbound::default(), Mark::new());
    let (mut delivered, mut events) = (Vec::new(), Vec::new());
    let put = |bytes: &[u8]| delivered.extend_from_slice(bytes);
    let delivery = inbound.deliver(&mark, bytes, usize::MAX, put, |event| events.push(event));
    assert_eq!(delivery, Delivery { read: bytes.len(), delivered: delivered.len() });
    (delivered, events)
}

/// Checks that these streams are marked, and that nothing else was changed.
fn marks(bytes: &[u8], streams: &[u32]) {
    let (delivered, events) = deliver(bytes);
    assert_eq!(unmark(&delivered), (bytes.to_vec(), streams.to_vec()));
    let opened: Vec<_> = streams.iter().map(|stream| Event::Open(StreamId::new(*stream))).collect();
    assert_eq!(events.into_iter().filter(|event| matches!(event, Event::Open(_))).collect::<Vec<_>>(), opened);
}

#[test]
fn each_request_is_marked() {
    let bytes = [frame(4, 0, 0, b""), headers(1, true), headers(3, false), data(3, 4, true), headers(5, true)].concat();
    marks(&bytes, &[1, 3, 5]);
    let (delivered, _) = deliver(&headers(1, true));
    assert_eq!(delivered.len(), 10 + FIELD_LENGTH);
    assert_eq!(delivered[..10], [0, 0, 1 + FIELD_LENGTH as u8, 1, 0x5, 0, 0, 0, 1, 0x88]);
}

#[test]
fn last_frame_of_a_block_is_marked() {
    let bytes = [frame(1, 0x1, 1, b"a"), frame(9, 0, 1, b"b"), frame(9, 0x4, 1, b"c"), headers(3, true)].concat();
    marks(&bytes, &[1, 3]);
}

#[test]
fn trailers_are_not_marked() {
    let bytes = [headers(1, false), headers(3, false), data(1, 9, false), headers(1, true), headers(3, true)].concat();
    marks(&bytes, &[1, 3]);
}

#[test]
fn only_odd_and_increasing_identifiers_open_streams() {
    let bytes = [headers(7, true), headers(5, true), headers(8, true), headers(7, true), headers(9, true)].concat();
    marks(&bytes, &[7, 9]);
}

#[test]
fn mark_precedes_the_padding() {
    let bytes = [
        frame(1, 0xd, 1, &[2, 0x88, 7, 7]),
        frame(1, 0xd, 3, &[0]),
        frame(1, 0xd, 5, &[1, 0]),
        frame(1, 0x2d, 7, &[1, 0, 0, 0, 0, 0, 0x88, 7]),
        frame(1, 0x2d, 9, &[0, 0, 0, 0, 0, 0]),
    ];
    marks(&bytes.concat(), &[1, 3, 5, 7, 9]);
    let (delivered, _) = deliver(&bytes[0]);
    assert_eq!(delivered[..9], [0, 0, 4 + FIELD_LENGTH as u8, 1, 0xd, 0, 0, 0, 1]);
    assert_eq!((&delivered[9..11], &delivered[11 + FIELD_LENGTH..]), (&[2, 0x88][..], &[7, 7][..]));
}

#[test]
fn split_of_padded_frames_changes_nothing() {
    let bytes = [
        frame(1, 0x9, 1, &[3, 0x88, 7, 7, 7]),
        frame(9, 0xc, 1, &[0x88]),
        frame(1, 0x2d, 3, &[2, 0, 0, 0, 0, 0, 0x88, 7, 7]),
        frame(1, 0xd, 5, &[0]),
        frame(1, 0xd, 7, &[9, 0]),
    ]
    .concat();
    let (inbound, mark) = (Inbound::default, Mark::new());
    let all = |splits: &[usize], room: usize| {
        let (mut inbound, mut delivered) = (inbound(), Vec::new());
        let mut start = 0;
        for end in splits.iter().copied().chain([bytes.len()]) {
            while start < end || inbound.has_undelivered() {
                let put = |bytes: &[u8]| delivered.extend_from_slice(bytes);
                start += inbound.deliver(&mark, &bytes[start..end], room, put, |_| ()).read;
            }
        }
        delivered
    };
    let expected = all(&[], usize::MAX);
    assert_eq!(expected.len(), bytes.len() + 3 * FIELD_LENGTH);
    for split in 0..bytes.len() {
        for room in [1, 3, usize::MAX] {
            assert_eq!(all(&[split], room), expected, "{split} {room}");
        }
    }
    assert_eq!(all(&(0..bytes.len()).collect::<Vec<_>>(), 1), expected);
}

#[test]
fn header_without_its_padding_is_delivered_at_the_end() {
    let (mut inbound, header) = (Inbound::default(), &frame(1, 0xd, 1, &[1, 0x88, 0])[..9]);
    let delivery = inbound.deliver(&Mark::new(), header, usize::MAX, |_| panic!("it is held back"), |_| ());
    assert_eq!(delivery, Delivery { read: 9, delivered: 0 });
    assert_eq!(inbound.into_undelivered(), header);
}

/// With the mark they would be long enough.
#[test]
fn frame_too_short_for_its_padding_or_priority_passes_unchanged() {
    for bytes in [
        frame(1, 0xd, 1, &[]),
        frame(1, 0xd, 1, &[2, 0x88]),
        frame(1, 0x25, 1, &[0; 4]),
        frame(1, 0x2d, 1, &[1, 0, 0, 0, 0, 0]),
    ] {
        assert_eq!(deliver(&bytes), (bytes, vec![]));
    }
}

#[test]
fn mark_that_does_not_fit_follows_in_its_own_frame() {
    for last in [
        frame(1, 0x5, 1, &[0x88; 16_384 - FIELD_LENGTH + 1]),
        frame(1, 0xd, 1, &[1; 16_384 - FIELD_LENGTH + 1]),
        frame(1, 0x5, 1, &[0x88; 20_000]),
    ] {
        let (delivered, _) = deliver(&last);
        assert_eq!(delivered[..4], last[..4]);
        assert_eq!(delivered[4], last[4] & !END_HEADERS);
        assert_eq!(delivered[5..last.len()], last[5..]);
        assert_eq!(delivered[last.len()..][..9], [0, 0, FIELD_LENGTH as u8, 9, 0x4, 0, 0, 0, 1]);
        assert_eq!(delivered.len(), last.len() + 9 + FIELD_LENGTH);
    }
    let fits = frame(1, 0x5, 1, &[0x88; 16_384 - FIELD_LENGTH]);
    assert_eq!(deliver(&fits).0.len(), 9 + 16_384);
}

#[test]
fn events_precede_the_end_of_their_frames() {
    let bytes = [headers(1, true), reset(1, 8), reset(9, 5)].concat();
    let (mut inbound, mark) = (Inbound::default(), Mark::new());
    let (mut read, mut delivered, mut seen) = (0, 0, Vec::new());
    while read < bytes.len() || inbound.has_undelivered() {
        let mut events = Vec::new();
        let delivery = inbound.deliver(&mark, &bytes[read..], 1, |_| (), |event| events.push(event));
        (read, delivered) = (read + delivery.read, delivered + delivery.delivered);
        seen.extend(events.into_iter().map(|event| (delivered, event)));
    }
    let end = 10 + FIELD_LENGTH;
    let stream = StreamId::new;
    assert_eq!(
        seen,
        [(10, Event::Open(stream(1))), (end + 13, Event::Reset(stream(1))), (end + 26, Event::Reset(stream(9)))]
    );
}

/// The server answers them.
#[test]
fn broken_frames_pass_unchanged() {
    for bytes in [
        data(0, 1, true),
        frame(9, 0x4, 1, b"alone"),
        [frame(1, 0x1, 1, b"a"), data(1, 3, true), frame(9, 0x4, 1, b"b")].concat(),
        [frame(1, 0x1, 1, b"a"), frame(9, 0x4, 3, b"b")].concat(),
        frame(4, 0, 0, &[0; 5]),
        headers(2, true),
    ] {
        assert_eq!(deliver(&bytes), (bytes, vec![]));
    }
}

#[test]
fn part_of_a_header_is_delivered_at_the_end() {
    let (mut inbound, mark) = (Inbound::default(), Mark::new());
    let delivery = inbound.deliver(&mark, b"12345", usize::MAX, |_| panic!("it is held back"), |_| ());
    assert_eq!(delivery, Delivery { read: 5, delivered: 0 });
    inbound.finish();
    let mut delivered = Vec::new();
    inbound.deliver(&mark, b"", usize::MAX, |bytes| delivered.extend_from_slice(bytes), |_| ());
    assert_eq!(delivered, b"12345");
}

#[test]
fn inbound_allocates_nothing() {
    assert!(!std::mem::needs_drop::<Inbound>());
}
