use super::*;
use crate::flush::tests::generated::{data, frame, headers, reset};

/// Delivers all bytes, and returns the streams that opened, each with the number of bytes delivered
/// by then.
fn gates(inbound: &mut Inbound, bytes: &[u8]) -> Vec<(usize, u32)> {
    let (mut at, mut gates) = (0, Vec::new());
    while at < bytes.len() {
        let delivery = inbound.deliver(&bytes[at..], &mut Lookahead::default(), |_, _| {});
        at += delivery.bytes;
        gates.extend(delivery.opened.map(|stream| (at, stream)));
    }
    gates.into_iter().map(|(at, stream)| (at, (1..99).find(|id| StreamId::new(*id) == stream).unwrap_or(0))).collect()
}

#[test]
fn delivery_stops_after_each_block_that_opens_a_stream() {
    let bytes = [frame(4, 0, 0, b""), headers(1, true), headers(3, false), data(3, 4, true), headers(5, true)].concat();
    assert_eq!(gates(&mut Inbound::default(), &bytes), [(19, 1), (29, 3), (52, 5)]);
}

#[test]
fn gate_closes_after_the_whole_block() {
    let bytes = [frame(1, 0x1, 1, b"a"), frame(9, 0, 1, b"b"), frame(9, 0x4, 1, b"c"), headers(3, true)].concat();
    assert_eq!(gates(&mut Inbound::default(), &bytes), [(30, 1), (40, 3)]);
}

#[test]
fn trailers_do_not_close_the_gate() {
    let mut inbound = Inbound::default();
    let bytes = [headers(1, false), headers(3, false), data(1, 9, false), headers(1, true), headers(3, true)].concat();
    assert_eq!(gates(&mut inbound, &bytes), [(10, 1), (20, 3)]);
}

#[test]
fn only_odd_and_increasing_identifiers_open_streams() {
    let bytes = [headers(7, true), headers(5, true), headers(8, true), headers(7, true), headers(9, true)].concat();
    assert_eq!(gates(&mut Inbound::default(), &bytes), [(10, 7), (50, 9)]);
}

#[test]
fn resets_are_reported_when_delivered() {
    let bytes = [reset(1, 8), headers(3, true), reset(3, 5)].concat();
    let (mut inbound, mut resets) = (Inbound::default(), Vec::new());

    let first =
        inbound.deliver(&bytes, &mut Lookahead::default(), |stream, error_code| resets.push((stream, error_code)));
    assert_eq!(first, Delivery { bytes: 23, opened: Some(StreamId::new(3)) });
    assert_eq!(resets, [(StreamId::new(1), 8)]);

    let second = inbound
        .deliver(&bytes[23..], &mut Lookahead::default(), |stream, error_code| resets.push((stream, error_code)));
    assert_eq!(second, Delivery { bytes: 13, opened: None });
    assert_eq!(resets[1..], [(StreamId::new(3), 5)]);
}

/// Returns frames that open and reset `count` streams.
fn pairs(count: u32) -> Vec<u8> {
    (0..count).flat_map(|number| [headers(2 * number + 1, true), reset(2 * number + 1, 8)].concat()).collect()
}

#[test]
fn flood_of_resets_ends_the_gating() {
    let mut inbound = Inbound::default();
    assert_eq!(gates(&mut inbound, &pairs(MAX_RESETS)).len(), MAX_RESETS as usize);
    assert!(inbound.is_gating());

    let mut inbound = Inbound::default();
    let bytes = pairs(MAX_RESETS + 30);
    assert_eq!(gates(&mut inbound, &bytes).len(), MAX_RESETS as usize + 1);
    assert!(!inbound.is_gating());
    inbound.pause();
    let mut resets = Vec::new();
    let bytes = [headers(999, true), reset(1, 8)].concat();
    let delivery = inbound.deliver(&bytes, &mut Lookahead::default(), |stream, _| resets.push(stream));
    assert_eq!((delivery, resets), (Delivery { bytes: bytes.len(), opened: None }, vec![StreamId::new(1)]));
}

/// A parser and the lookahead that it asks.
#[derive(Default)]
struct Buffered {
    inbound: Inbound,
    lookahead: Lookahead,
    bytes: Vec<u8>,
}

impl Buffered {
    fn add(&mut self, bytes: &[u8]) {
        self.lookahead.scan(bytes, self.inbound.highest());
        self.bytes.extend(bytes);
    }

    /// Returns the number of bytes delivered, and whether they open a stream.
    fn deliver(&mut self) -> (usize, bool) {
        let delivery = self.inbound.deliver(&self.bytes, &mut self.lookahead, |_, _| {});
        self.bytes.drain(..delivery.bytes);
        (delivery.bytes, delivery.opened.is_some())
    }
}

#[test]
fn streams_reset_in_the_buffer_do_not_close_the_gate() {
    let mut buffered = Buffered::default();
    let bytes = pairs(4 * MAX_RESETS);
    buffered.add(&bytes);
    assert_eq!(buffered.deliver(), (bytes.len(), false));
    assert!(buffered.inbound.is_gating(), "h2 counts these resets");
}

#[test]
fn block_is_completed_once_h2_has_accepted_all_others() {
    let mut buffered = Buffered::default();
    let bytes = [pairs(3), headers(7, true), data(0, 0, false)].concat();
    buffered.add(&bytes);
    assert_eq!(buffered.deliver(), (3 * 23 + 9, false), "the last byte of the block is held back");
    for _ in 0..3 {
        assert_eq!(buffered.deliver(), (0, false));
        buffered.inbound.accept_one();
    }
    assert_eq!(buffered.deliver(), (1, true));
}

#[test]
fn reset_that_arrives_while_its_block_is_held_is_found() {
    let mut buffered = Buffered::default();
    buffered.add(&[pairs(1), headers(3, true)].concat());
    assert_eq!(buffered.deliver(), (23 + 9, false));
    buffered.add(&reset(3, 8));
    assert_eq!(buffered.deliver(), (1 + 13, false));
}

#[test]
fn resets_before_ordinary_requests_end_the_gating() {
    let mut buffered = Buffered::default();
    let mut opened = 0;
    for number in 0..2 * MAX_RESETS {
        buffered
            .add(&[headers(4 * number + 1, true), reset(4 * number + 1, 8), headers(4 * number + 3, true)].concat());
        while !buffered.bytes.is_empty() {
            match buffered.deliver() {
                (0, _) => buffered.inbound.accept_one(),
                (_, is_open) => opened += u32::from(is_open),
            }
        }
    }
    assert_eq!((opened, buffered.inbound.is_gating()), (MAX_RESETS, false));
}

#[test]
fn resets_after_a_pause_do_not_end_the_gating() {
    let mut inbound = Inbound::default();
    for number in 0..4 * MAX_RESETS {
        gates(&mut inbound, &headers(2 * number + 1, false));
    }
    inbound.pause();
    for number in 0..4 * MAX_RESETS {
        gates(&mut inbound, &reset(2 * number + 1, 8));
    }
    assert!(inbound.is_gating(), "the streams were accepted in the pause");
}

#[test]
fn long_run_counts_as_several() {
    let mut inbound = Inbound::default();
    let pad = frame(0xff, 0, 0, &[0; MAX_RUN_BYTES]);
    for (number, pair) in pairs(4 * MAX_RESETS).chunks(10 + 13).enumerate() {
        gates(&mut inbound, pair);
        if number % MAX_RESETS as usize == 0 {
            gates(&mut inbound, &pad);
        }
    }
    assert!(inbound.is_gating());
}

#[test]
fn malformed_bytes_are_delivered_and_open_nothing() {
    let mut inbound = Inbound::default();
    assert_eq!(gates(&mut inbound, &[headers(1, true), data(0, 1, true), headers(3, true)].concat()), [(10, 1)]);
    assert!(!inbound.is_gating());
}

#[test]
fn inbound_allocates_nothing() {
    assert!(!std::mem::needs_drop::<Inbound>());
}
