//! The nesting of encoded data.
//!
//! Decoding is recursive, and a stack that overflows ends the program. The data may come from work
//! that was fed by strangers, so its depth is checked first, without recursion.

/// Maximum number of nested arrays and maps. `serde_json` has the same limit.
pub(super) const MAX_DEPTH: usize = 128;

/// Returns `true` if the data is not nested more deeply than [`MAX_DEPTH`]. Data that is not valid
/// ends the check, and is left to the decoder.
///
/// The numbers are those of the [specification](https://github.com/msgpack/msgpack/blob/master/spec.md).
pub(super) fn is_shallow(data: &[u8]) -> bool {
    // How many values are left in each array or map that has begun.
    let mut open: Vec<u64> = Vec::new();
    let mut rest = data;
    while let Some((marker, tail)) = rest.split_first() {
        rest = tail;
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        let (bytes, values) = match marker {
            0x80..=0x8f => (Some(0), u64::from(marker & 0x0f) * 2),
            0x90..=0x9f => (Some(0), u64::from(marker & 0x0f)),
            0xa0..=0xbf => (Some(u64::from(marker & 0x1f)), 0),
            0xc4 | 0xd9 => (length(&mut rest, 1), 0),
            0xc5 | 0xda => (length(&mut rest, 2), 0),
            0xc6 | 0xdb => (length(&mut rest, 4), 0),
            0xc7 => (length(&mut rest, 1).map(|length| length + 1), 0),
            0xc8 => (length(&mut rest, 2).map(|length| length + 1), 0),
            0xc9 => (length(&mut rest, 4).map(|length| length + 1), 0),
            0xcc | 0xd0 => (Some(1), 0),
            0xcd | 0xd1 | 0xd4 => (Some(2), 0),
            0xd5 => (Some(3), 0),
            0xca | 0xce | 0xd2 => (Some(4), 0),
            0xd6 => (Some(5), 0),
            0xcb | 0xcf | 0xd3 => (Some(8), 0),
            0xd7 => (Some(9), 0),
            0xd8 => (Some(17), 0),
            0xdc => (Some(0), length(&mut rest, 2).unwrap_or_default()),
            0xdd => (Some(0), length(&mut rest, 4).unwrap_or_default()),
            0xde => (Some(0), length(&mut rest, 2).unwrap_or_default() * 2),
            0xdf => (Some(0), length(&mut rest, 4).unwrap_or_default() * 2),
            _ => (Some(0), 0),
        };
        let Some(after) = bytes.and_then(|bytes| rest.get(usize::try_from(bytes).ok()?..)) else { return true };
        rest = after;
        if values > 0 {
            if open.len() == MAX_DEPTH {
                return false;
            }
            open.push(values);
        }
        while open.last() == Some(&0) {
            open.pop();
        }
    }
    true
}

/// Reads a length of this many bytes, big-endian.
fn length(rest: &mut &[u8], bytes: usize) -> Option<u64> {
    let (length, tail) = rest.split_at_checked(bytes)?;
    *rest = tail;
    Some(length.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{MAX_DEPTH, is_shallow};

    fn nested(depth: usize, value: &[u8]) -> Vec<u8> {
        [&[0x91].repeat(depth), value].concat()
    }

    #[test]
    fn depth_is_that_of_arrays_and_maps() {
        let text = rmp_serde::to_vec("a text that is longer than 32 bytes, \u{91}\u{91}\u{91}").unwrap();
        let map = rmp_serde::to_vec(&std::collections::BTreeMap::from([(1_u64 << 40, vec![1.5, -7.0]), (2, vec![])]));
        for value in [text, map.unwrap(), vec![0xc0]] {
            assert!(is_shallow(&nested(MAX_DEPTH - 2, &value)));
            assert!(!is_shallow(&nested(MAX_DEPTH + 1, &value)));
        }
        // Side by side is not nested.
        assert!(is_shallow(&[&[0xdc, 0x10, 0x00][..], &[0x91, 0x91, 0x01].repeat(0x1000)].concat()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_checked(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            is_shallow(&bytes);
        }

        #[test]
        fn values_are_shallow(value: Vec<(Option<u64>, String, f64, Vec<i16>, std::collections::BTreeMap<char, (i8, bool)>)>) {
            let bytes = rmp_serde::to_vec_named(&value).unwrap();
            prop_assert!(is_shallow(&bytes));
            // As deep as it may be: the value itself has four levels.
            prop_assert!(is_shallow(&nested(MAX_DEPTH - 4, &bytes)));
        }
    }
}
