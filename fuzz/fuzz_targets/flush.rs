//! Random bytes in random pieces for the parsers of a connection: `cargo +nightly fuzz run flush`.
//!
//! The modules are private and depend only on `std` and `http`, so they are compiled into the
//! target.
#![no_main]

#[allow(dead_code, reason = "used by the crate and its unit tests")]
#[path = "../../src/flush"]
mod flush {
    mod frames;
    mod inbound;
    mod mark;
    mod outbound;
    mod preface;
    pub(crate) mod properties;
}

// The first byte is the number of piece sizes that follow it. The rest are the bytes of the
// connection.
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((count, rest)) = input.split_first() else { return };
    let (sizes, bytes) = rest.split_at(rest.len().min(usize::from(*count % 8)));
    flush::properties::split_changes_nothing(bytes, sizes);
});
