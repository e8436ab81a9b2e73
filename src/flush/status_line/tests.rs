use proptest::prelude::*;

use super::StatusLineScanner;

fn begun(bytes: &[u8]) -> bool {
    let mut scanner = StatusLineScanner::default();
    scanner.accept(bytes);
    scanner.has_begun()
}

#[test]
fn status_line_begins_a_response() {
    assert!(begun(b"HTTP/1.1 200 OK\r\n"));
    assert!(begun(b"HTTP/1.0 404"));
    assert!(!begun(b"HTTP/1.1 40"), "its status is incomplete");
    assert!(!begun(b""));
}

#[test]
fn interim_responses_are_skipped_except_switching_protocols() {
    assert!(!begun(b"HTTP/1.1 100 Continue\r\n\r\n"));
    assert!(begun(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"));
    assert!(begun(b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK"));
    assert!(begun(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"));
}

#[test]
fn tunnel_bytes_are_not_a_response() {
    let mut scanner = StatusLineScanner::default();
    scanner.accept(b"\x81\x05hello world ");
    scanner.accept(b"HTTP/1.1 200 OK\r\n\r\n");
    assert!(!scanner.has_begun() && scanner.is_tunnel());
}

#[test]
fn reset_expects_the_next_response() {
    let mut scanner = StatusLineScanner::default();
    scanner.accept(b"HTTP/1.1 200 OK\r\n\r\nbody HTTP/1.1 200 OK");
    assert!(scanner.has_begun());
    scanner.reset();
    assert!(!scanner.has_begun());
    scanner.accept(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert!(scanner.has_begun());
}

proptest! {
    #[test]
    fn split_changes_nothing(
        message in prop_oneof![
            Just(&b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"[..]),
            Just(&b"HTTP/1.1 103 Early Hints\r\nlink: \r\r\n\n\r\n\r\n\r\nHTTP/1.1 200 OK"[..]),
            Just(&b"HTTP/1.1 100 Continue\r\n\r\n"[..]),
            Just(&b"HTTP/2.0 200 OK\r\n\r\n"[..]),
        ],
        sizes in proptest::collection::vec(1_usize..9, 60),
    ) {
        let mut scanner = StatusLineScanner::default();
        let mut rest = message;
        for size in sizes {
            let (piece, behind) = rest.split_at(size.min(rest.len()));
            scanner.accept(piece);
            rest = behind;
        }
        prop_assert!(rest.is_empty());
        prop_assert_eq!(scanner.has_begun(), begun(message));
    }

    #[test]
    fn random_bytes_do_not_panic(bytes: Vec<u8>) {
        begun(&bytes);
    }
}
