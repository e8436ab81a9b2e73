use std::io::IoSlice;

/// The first `count` bytes of these slices: what of a vectored write was accepted.
pub(super) fn first<'a>(slices: &'a [IoSlice<'_>], count: usize) -> impl Iterator<Item = &'a [u8]> {
    slices.iter().scan(count, |left, slice| {
        let accepted = &slice[..slice.len().min(*left)];
        *left -= accepted.len();
        Some(accepted)
    })
}
