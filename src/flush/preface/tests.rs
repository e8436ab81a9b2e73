use proptest::prelude::*;

use super::*;

/// Reads the pieces, and returns the last result and the number of preface bytes.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Protocol, usize) {
    let (mut reader, mut last, mut taken) = (Preface::default(), Protocol::Undecided, 0);
    for piece in pieces {
        last = reader.read(piece);
        taken += match last {
            Protocol::Http1 => 0,
            Protocol::Http2 { preface } => preface,
            Protocol::Undecided => piece.len(),
        };
    }
    (last, taken)
}

#[test]
fn preface_is_http2_in_one_piece_and_byte_by_byte() {
    assert_eq!(read([&PREFACE[..]]), (Protocol::Http2 { preface: 24 }, 24));
    assert_eq!(read(PREFACE.chunks(1)), (Protocol::Http2 { preface: 1 }, 24));
}

#[test]
fn bytes_after_the_preface_are_not_part_of_it() {
    let bytes = [&PREFACE[..], b"\0\0\0\x04\0\0\0\0\0"].concat();
    assert_eq!(Preface::default().read(&bytes), Protocol::Http2 { preface: 24 });

    let mut reader = Preface::default();
    reader.read(&bytes[..24]);
    assert_eq!(reader.read(PREFACE), Protocol::Http2 { preface: 0 }, "a second one is not a preface");
}

#[test]
fn request_is_http1_at_its_first_different_byte() {
    assert_eq!(Preface::default().read(b"GET"), Protocol::Http1);
    assert_eq!(Preface::default().read(b"P"), Protocol::Undecided, "a PUT, or the preface");
    assert_eq!(Preface::default().read(b"PUT / HTTP/1.1"), Protocol::Http1);
    assert_eq!(read([&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"[..], b"x"]).0, Protocol::Http1);
}

#[test]
fn http1_is_final() {
    let mut reader = Preface::default();
    reader.read(b"GET");
    assert_eq!(reader.read(PREFACE), Protocol::Http1);
}

#[test]
fn empty_read_decides_nothing() {
    assert_eq!(Preface::default().read(b""), Protocol::Undecided);
    assert!(size_of::<Preface>() <= 2);
}

proptest! {
    #[test]
    fn split_changes_nothing(same in 0..=24_usize, rest in prop::collection::vec(any::<u8>(), 0..40), size in 1..30_usize) {
        let bytes = [&PREFACE[..same], &rest].concat();
        let whole = read([&bytes[..]]);
        let split = read(bytes.chunks(size));
        prop_assert_eq!(std::mem::discriminant(&whole.0), std::mem::discriminant(&split.0));
        if whole.0 != Protocol::Http1 {
            prop_assert_eq!(whole.1, split.1);
        }
        prop_assert_eq!(matches!(whole.0, Protocol::Http2 { .. }), bytes.starts_with(PREFACE));
    }
}
