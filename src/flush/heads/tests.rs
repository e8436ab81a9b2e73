use proptest::prelude::*;

use super::Heads;

fn begun(bytes: &[u8]) -> bool {
    let mut heads = Heads::default();
    heads.accepted(bytes);
    heads.has_begun()
}

#[test]
fn a_status_line_begins_a_response() {
    assert!(begun(b"HTTP/1.1 200 OK\r\n"));
    assert!(begun(b"HTTP/1.0 404"));
    assert!(!begun(b"HTTP/1.1 40"), "its status is not known yet");
    assert!(!begun(b""));
}

#[test]
fn an_interim_response_is_passed_over_and_switching_protocols_is_final() {
    assert!(!begun(b"HTTP/1.1 100 Continue\r\n\r\n"));
    assert!(begun(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"));
    assert!(begun(b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK"));
    assert!(begun(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"));
}

#[test]
fn a_tunnel_s_bytes_are_no_response_whatever_they_say_later() {
    let mut heads = Heads::default();
    heads.accepted(b"\x81\x05hello world ");
    heads.accepted(b"HTTP/1.1 200 OK\r\n\r\n");
    assert!(!heads.has_begun() && heads.is_tunnel());
}

#[test]
fn after_a_reset_the_next_response_is_expected() {
    let mut heads = Heads::default();
    heads.accepted(b"HTTP/1.1 200 OK\r\n\r\nbody HTTP/1.1 200 OK");
    assert!(heads.has_begun());
    heads.reset();
    assert!(!heads.has_begun());
    heads.accepted(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert!(heads.has_begun());
}

proptest! {
    #[test]
    fn any_split_says_the_same(
        message in prop_oneof![
            Just(&b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"[..]),
            Just(&b"HTTP/1.1 103 Early Hints\r\nlink: \r\r\n\n\r\n\r\n\r\nHTTP/1.1 200 OK"[..]),
            Just(&b"HTTP/1.1 100 Continue\r\n\r\n"[..]),
            Just(&b"HTTP/2.0 200 OK\r\n\r\n"[..]),
        ],
        sizes in proptest::collection::vec(1_usize..9, 60),
    ) {
        let mut heads = Heads::default();
        let mut rest = message;
        for size in sizes {
            let (piece, behind) = rest.split_at(size.min(rest.len()));
            heads.accepted(piece);
            rest = behind;
        }
        prop_assert!(rest.is_empty());
        prop_assert_eq!(heads.has_begun(), begun(message));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        begun(&bytes);
    }
}
