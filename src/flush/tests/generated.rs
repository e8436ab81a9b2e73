//! Frames for tests, written by hand and generated (RFC 9113, section 6).

use proptest::{collection::vec, option, prelude::*};

use crate::flush::{
    frames::{Event, StreamId},
    properties::{events, split_changes_nothing},
};

/// Encodes a frame.
pub(in crate::flush) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub(in crate::flush) fn data(stream: u32, length: usize, end_stream: bool) -> Vec<u8> {
    frame(0, end_stream.into(), stream, &vec![b'd'; length])
}

/// A header block in one frame.
pub(in crate::flush) fn headers(stream: u32, end_stream: bool) -> Vec<u8> {
    frame(1, 0x4 | u8::from(end_stream), stream, &[0x88])
}

pub(in crate::flush) fn reset(stream: u32, error_code: u32) -> Vec<u8> {
    frame(3, 0, stream, &error_code.to_be_bytes())
}

/// Valid bytes and their event.
#[derive(Clone, Debug)]
struct Valid {
    bytes: Vec<u8>,
    event: Option<Event>,
}

/// The field of a stream identifier, with the reserved bit.
fn any_stream() -> impl Strategy<Value = u32> {
    (1..12_u32, any::<bool>()).prop_map(|(stream, reserved)| stream | u32::from(reserved) << 31)
}

/// Flags that the type does not define. They must be ignored.
fn undefined(flags: u8, defined: u8) -> u8 {
    flags & !defined
}

fn valid_data() -> impl Strategy<Value = Valid> {
    (any_stream(), 0..600_usize, option::of(any::<u8>()), any::<bool>(), any::<u8>()).prop_map(
        |(stream, length, padding, end_stream, other)| {
            let flags = undefined(other, 0x9) | u8::from(end_stream) | if padding.is_some() { 0x8 } else { 0 };
            let mut payload = Vec::from_iter(padding);
            payload.resize(payload.len() + length + usize::from(padding.unwrap_or(0)), 1);
            Valid {
                bytes: frame(0, flags, stream, &payload),
                event: Some(Event::Data { stream: StreamId::new(stream), data: length as u32, end_stream }),
            }
        },
    )
}

/// HEADERS or PUSH_PROMISE with CONTINUATION frames. Interim responses and trailers look the same
/// to the parser.
fn valid_block(kind: u8) -> impl Strategy<Value = Valid> {
    (any_stream(), vec(vec(any::<u8>(), 0..40), 1..5), any::<bool>(), any::<u8>()).prop_map(
        move |(stream, fragments, end_stream, other)| {
            let mut bytes = Vec::new();
            for (at, fragment) in fragments.iter().enumerate() {
                let end_headers = if at == fragments.len() - 1 { 0x4 } else { 0 };
                let (kind, flags) = match at {
                    0 => (kind, undefined(other, 0x5) | u8::from(end_stream)),
                    // END_STREAM has no meaning here.
                    _ => (9, undefined(other, 0x4)),
                };
                bytes.extend(frame(kind, flags | end_headers, stream, fragment));
            }
            let event = (kind == 1).then_some(Event::Headers { stream: StreamId::new(stream), end_stream });
            Valid { bytes, event }
        },
    )
}

fn valid_reset() -> impl Strategy<Value = Valid> {
    (any_stream(), any::<u32>(), any::<u8>()).prop_map(|(stream, error_code, flags)| Valid {
        bytes: frame(3, flags, stream, &error_code.to_be_bytes()),
        event: Some(Event::Reset { stream: StreamId::new(stream), error_code }),
    })
}

fn valid_settings() -> impl Strategy<Value = Valid> {
    option::of(0..5_usize).prop_map(|settings| Valid {
        bytes: frame(4, settings.is_none().into(), 0, &vec![3; 6 * settings.unwrap_or(0)]),
        event: Some(Event::Settings { ack: settings.is_none() }),
    })
}

fn valid_go_away() -> impl Strategy<Value = Valid> {
    (any_stream(), any::<u32>(), 0..30_usize).prop_map(|(last_stream, error_code, debug)| {
        let payload = [&last_stream.to_be_bytes()[..], &error_code.to_be_bytes(), &vec![b'x'; debug]].concat();
        let event = Event::GoAway { last_stream: StreamId::new(last_stream), error_code };
        Valid { bytes: frame(7, 0, 0, &payload), event: Some(event) }
    })
}

/// PRIORITY, PING, WINDOW_UPDATE, and unknown types.
fn valid_other() -> impl Strategy<Value = Valid> {
    let kind = prop_oneof![Just(2_u8), Just(6), Just(8), 10..=255_u8];
    (kind, any::<u8>(), 0..12_u32, vec(any::<u8>(), 0..100))
        .prop_map(|(kind, flags, stream, payload)| Valid { bytes: frame(kind, flags, stream, &payload), event: None })
}

fn valid() -> impl Strategy<Value = Valid> {
    prop_oneof![
        4 => valid_data(),
        3 => valid_block(1),
        1 => valid_block(5),
        1 => valid_reset(),
        1 => valid_settings(),
        1 => valid_go_away(),
        2 => valid_other(),
    ]
}

proptest! {
    #[test]
    fn valid_frames_yield_their_events_in_any_split(frames in vec(valid(), 0..30), sizes in vec(any::<u8>(), 0..8)) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for valid in frames {
            bytes.extend(valid.bytes);
            expected.extend(valid.event.map(|event| (bytes.len(), event)));
        }
        prop_assert_eq!(events([&bytes[..]]), expected);
        split_changes_nothing(&bytes, &sizes);
    }

    #[test]
    fn random_bytes_do_not_panic_or_depend_on_the_split(bytes in vec(any::<u8>(), 0..300), sizes in vec(any::<u8>(), 0..8)) {
        split_changes_nothing(&bytes, &sizes);
    }

    /// Random bytes soon look like one long frame, so this test generates frames.
    #[test]
    fn random_frames_do_not_panic_or_depend_on_the_split(
        frames in vec((0..11_u8, any::<u8>(), 0..5_u32, vec(0..20_u8, 0..12)), 0..30),
        truncated in 0..20_usize,
        sizes in vec(any::<u8>(), 0..8),
    ) {
        let mut bytes = Vec::new();
        for (kind, flags, stream, payload) in frames {
            bytes.extend(frame(kind, flags, stream, &payload));
        }
        bytes.truncate(bytes.len().saturating_sub(truncated));
        split_changes_nothing(&bytes, &sizes);
    }
}
