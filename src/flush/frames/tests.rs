use super::*;
use crate::flush::{
    properties::events,
    tests::generated::{data, frame, headers, reset},
};

/// Returns the events of these frames.
fn events_of(frames: &[Vec<u8>]) -> Vec<Event> {
    events([&frames.concat()[..]]).into_iter().map(|(_, event)| event).collect()
}

fn data_event(stream: u32, data: u32, end_stream: bool) -> Event {
    Event::Data { stream: StreamId(stream), data, end_stream }
}

fn headers_event(stream: u32, end_stream: bool) -> Event {
    Event::Headers { stream: StreamId(stream), end_stream }
}

#[test]
fn data_length_excludes_padding() {
    assert_eq!(events_of(&[data(1, 5, false), data(1, 0, true)]), [data_event(1, 5, false), data_event(1, 0, true)]);
    let padded = frame(0, PADDED | END_STREAM, 3, b"\x04hello\0\0\0\0");
    let only_padding = frame(0, PADDED, 3, b"\x02\0\0");
    assert_eq!(events_of(&[padded, only_padding]), [data_event(3, 5, true), data_event(3, 0, false)]);
}

#[test]
fn frame_is_an_event_at_its_last_byte() {
    let bytes = data(1, 5, true);
    let mut frames = Frames::default();
    assert_eq!(frames.read(&bytes[..13]), (13, None));
    assert_eq!(frames.read(&bytes[13..]), (1, Some(data_event(1, 5, true))));
}

#[test]
fn block_ends_with_the_flag_of_its_first_frame() {
    let block = [frame(1, END_STREAM, 1, b"a"), frame(9, 0, 1, b""), frame(9, END_HEADERS, 1, b"c")];
    assert_eq!(events_of(&block), [headers_event(1, true)]);
    assert_eq!(events_of(&block[..2]), []);
    let not_the_end = [frame(1, 0, 1, b"a"), frame(9, END_HEADERS | END_STREAM, 1, b"c")];
    assert_eq!(events_of(&not_the_end), [headers_event(1, false)]);
}

#[test]
fn push_promise_is_a_block_without_an_event() {
    let promise = [frame(5, 0, 1, b"\0\0\0\x02"), frame(9, END_HEADERS, 1, b"a"), headers(1, false)];
    assert_eq!(events_of(&promise), [headers_event(1, false)]);
    assert_eq!(events_of(&[frame(5, 0, 1, b"\0\0\0\x02"), headers(1, false)]), [Event::Malformed]);
}

#[test]
fn other_frames_within_a_block_are_malformed() {
    let begun = frame(1, 0, 1, b"a");
    let intruders = [
        frame(9, END_HEADERS, 3, b"of another stream"),
        data(1, 1, false),
        headers(1, true),
        reset(1, 0),
        frame(6, 0, 0, &[0; 8]),
        frame(0xbb, 0, 1, b"unknown"),
    ];
    for intruder in intruders {
        assert_eq!(events_of(&[begun.clone(), intruder]), [Event::Malformed]);
    }
    assert_eq!(events_of(&[frame(9, END_HEADERS, 1, b"a")]), [Event::Malformed], "there is no block");
    let of_an_ended_block = [headers(1, false), frame(9, END_HEADERS, 1, b"a")];
    assert_eq!(events_of(&of_an_ended_block), [headers_event(1, false), Event::Malformed]);
}

#[test]
fn invalid_frames_are_malformed() {
    let wrong = [
        data(0, 1, false),
        headers(0, false),
        reset(0, 0),
        frame(5, END_HEADERS, 0, b"\0\0\0\x02"),
        frame(0, PADDED, 1, b""),
        frame(0, PADDED, 1, b"\x03\0\0"),
        frame(3, 0, 1, b"\0\0\0"),
        frame(3, 0, 1, b"\0\0\0\0\0"),
        frame(4, 0, 1, b""),
        frame(4, 0, 0, b"\0"),
        frame(4, ACK, 0, &[0; 6]),
        frame(7, 0, 0, &[0; 7]),
        frame(7, 0, 1, &[0; 8]),
    ];
    for wrong in wrong {
        assert_eq!(events_of(&[wrong.clone(), data(1, 1, true)]), [Event::Malformed], "{wrong:?}");
    }
}

#[test]
fn malformed_is_the_last_event() {
    let mut frames = Frames::default();
    let (read, event) = frames.read(&data(0, 1, true));
    assert_eq!((read, event, frames.gave_up()), (9, Some(Event::Malformed), true));
    assert_eq!(frames.read(&data(1, 1, true)), (10, None));
}

#[test]
fn resets_and_connection_frames_are_events() {
    let go_away = frame(7, 0, 0, b"\x80\0\0\x05\0\0\0\x0bdebug");
    assert_eq!(
        events_of(&[reset(5, 8), go_away, frame(4, 0, 0, &[0; 12]), frame(4, ACK, 0, b"")]),
        [
            Event::Reset { stream: StreamId(5), error_code: 8 },
            Event::GoAway { last_stream: StreamId(5), error_code: 11 },
            Event::Settings { ack: false },
            Event::Settings { ack: true },
        ]
    );
}

#[test]
fn reserved_bit_is_ignored() {
    assert_eq!(events_of(&[data(1 << 31 | 7, 1, false)]), [data_event(7, 1, false)]);
    let block = [frame(1, 0, 1 << 31 | 7, b"a"), frame(9, END_HEADERS, 7, b"b")];
    assert_eq!(events_of(&block), [headers_event(7, false)]);
}

#[test]
fn longest_frame_takes_constant_memory() {
    let mut frames = Frames::default();
    let bytes = vec![0; 0xff_ffff];
    assert_eq!(frames.read(&[0xff, 0xff, 0xff, 0, 1, 0, 0, 0, 1]), (9, None));
    assert_eq!(frames.read(&bytes), (0xff_ffff, Some(data_event(1, 0xff_ffff, true))));
    // A type without drop glue allocates nothing.
    assert!(!std::mem::needs_drop::<Frames>());
    assert!(size_of::<Frames>() <= 96, "{}", size_of::<Frames>());
}
