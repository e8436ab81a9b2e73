use super::*;
use crate::flush::tests::generated::{data, headers, reset};

fn stream(id: u32) -> StreamId {
    StreamId::new(id)
}

#[test]
fn reset_is_found_ahead_of_its_stream() {
    let mut lookahead = Lookahead::default();
    for piece in [headers(1, true), headers(3, true), reset(1, 8)].concat().chunks(5) {
        lookahead.scan(piece, None);
    }
    assert!(lookahead.is_reset(stream(1)) && !lookahead.is_reset(stream(3)));
    assert!(lookahead.remove(stream(1)));
    assert!(!lookahead.remove(stream(1)));
}

#[test]
fn reset_of_a_delivered_stream_is_not_ahead() {
    let mut lookahead = Lookahead::default();
    lookahead.scan(&[headers(1, true), headers(3, true)].concat(), None);
    lookahead.scan(&[reset(1, 8), reset(3, 8)].concat(), Some(stream(1)));
    assert!(!lookahead.is_reset(stream(1)) && lookahead.is_reset(stream(3)));
}

#[test]
fn lookahead_is_short_until_enough_follows_the_last_request() {
    let mut lookahead = Lookahead::default();
    assert!(!lookahead.is_short(9), "there is no request");
    lookahead.scan(&headers(1, false), None);
    assert!(lookahead.is_short(10));
    lookahead.scan(&data(1, LOOKAHEAD - 10, false), None);
    assert!(lookahead.is_short(LOOKAHEAD + 9) && !lookahead.is_short(LOOKAHEAD - 1), "the request may be delivered");
    lookahead.scan(&data(1, 0, true), None);
    assert!(!lookahead.is_short(LOOKAHEAD + 18));
}
