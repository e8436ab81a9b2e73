//! Detection of HTTP/1 and HTTP/2 by the first bytes of the client.
//!
//! RFC 9113, section 3.4: an HTTP/2 client begins with 24 fixed bytes, which are not a valid HTTP/1
//! request. hyper-util's `auto` decides by the same bytes (`ReadVersion` in
//! `server/conn/auto/mod.rs`). An upgrade by `Upgrade: h2c` was removed by RFC 9113, and hyper does
//! not support it.

/// The first bytes of an HTTP/2 client.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Compares the first bytes of a connection with the preface.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Preface {
    matched: u8,
    differed: bool,
}

/// Result of the comparison.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Protocol {
    /// The bytes differ from the preface: all of them are HTTP/1.
    Http1,
    /// The preface is complete.
    Http2 {
        /// Number of the bytes just read that belong to the preface. Frames begin after them.
        preface: usize,
    },
    /// The bytes are a prefix of the preface. A connection that ends here is treated as HTTP/1.
    Undecided,
}

impl Preface {
    /// Reads the next bytes. A decision is final.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Protocol {
        let expected = &PREFACE[usize::from(self.matched)..];
        let equal = expected.iter().zip(bytes).take_while(|(expected, byte)| expected == byte).count();
        self.differed |= equal < expected.len().min(bytes.len());
        if self.differed {
            return Protocol::Http1;
        }
        self.matched += equal as u8;
        if usize::from(self.matched) == PREFACE.len() {
            Protocol::Http2 { preface: equal }
        } else {
            Protocol::Undecided
        }
    }
}

#[cfg(test)]
mod tests;
