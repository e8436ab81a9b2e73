//! HTTP/1 or HTTP/2, told by the first bytes that arrive.
//!
//! RFC 9113, section 3.4: a client that speaks HTTP/2 begins with 24 fixed bytes, chosen so that no HTTP/1 request looks like
//! them. hyper-util's `auto` decides by the same bytes (`server/conn/auto/mod.rs`, `ReadVersion`), so both come to the same
//! answer. An upgrade by `Upgrade: h2c` is not supported by hyper, and by RFC 9113 no longer exists.

/// What an HTTP/2 client sends first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads the first bytes of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Preface {
    matched: u8,
    differed: bool,
}

/// What the bytes so far say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Protocol {
    /// Not the preface: all bytes since the first are HTTP/1.
    Http1,
    /// The preface is complete.
    Http2 {
        /// How many of the bytes just read belonged to it; frames begin behind them.
        preface: usize,
    },
    /// All bytes so far could be the beginning of the preface. A connection that ends here was HTTP/1, if anything.
    Undecided,
}

impl Preface {
    /// Reads the next bytes. Once it has decided it stays with that, and no byte is the preface's any more.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Protocol {
        let awaited = &PREFACE[usize::from(self.matched)..];
        let equal = awaited.iter().zip(bytes).take_while(|(awaited, byte)| awaited == byte).count();
        self.differed |= equal < awaited.len().min(bytes.len());
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
