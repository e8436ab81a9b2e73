//! Any bytes, in any split, to all that reads a connection's bytes: `cargo +nightly fuzz run flush`.
//!
//! The modules are private and need nothing but std, so they are compiled into the target.
#![no_main]

#[allow(dead_code, reason = "what only the crate or its unit tests use")]
#[path = "../../src/flush"]
mod flush {
    mod frames;
    mod inbound;
    mod outbound;
    mod preface;
    pub(crate) mod properties;
    mod slices;
}

// The first byte says how many of the next are sizes of pieces; the rest is the connection.
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((count, rest)) = input.split_first() else { return };
    let (sizes, bytes) = rest.split_at(rest.len().min(usize::from(*count % 8)));
    flush::properties::a_split_changes_nothing(bytes, sizes);
});
