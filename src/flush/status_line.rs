//! Detection of the head of a response on an HTTP/1 connection.
//!
//! hyper flushes the transport when it holds nothing to write. That is also the case if it took
//! back a head that it could not encode (`rewind` in `hyper/proto/h1/role.rs`), or dropped its
//! buffer when it handed over an upgraded connection. Such a flush proves nothing. So a flush
//! counts only if a status line was accepted before it (RFC 9112, section 4). Interim responses
//! (RFC 9110, section 15.2) are skipped, and the bytes of a tunnel are not a head.
//!
//! The head of a pipelined response may be accepted in the same write as the end of the response
//! before it. The scanner does not see that head, because it does not parse bodies. So the caller
//! resets the scanner after a flush only if no response is open. Otherwise the open response counts
//! as begun.

/// The start of a status line. A status of three digits follows.
const VERSIONS: [&[u8; 9]; 2] = [b"HTTP/1.1 ", b"HTTP/1.0 "];
/// Length of the version and the status.
const LINE: usize = 12;

/// Looks for the status line of a response in the bytes that the transport accepted.
#[derive(Debug, Default)]
pub(super) struct StatusLineScanner {
    /// The first bytes of the message.
    line: [u8; LINE],
    filled: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    /// At the start of a message.
    #[default]
    Start,
    /// In an interim response. The number of bytes of its last `\r\n\r\n` that were just seen.
    Interim(usize),
    /// A final response has begun. Later bytes belong to it.
    Begun,
    /// The message is not a response. Later bytes belong to a tunnel.
    Tunnel,
}

impl StatusLineScanner {
    pub(super) fn accept(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = match self.state {
                State::Start => self.read_line(rest),
                State::Interim(seen) => self.skip_interim(seen, rest),
                State::Begun | State::Tunnel => return,
            };
        }
    }

    /// Returns `true` if a final response has begun since the last [`reset`](Self::reset).
    pub(super) fn has_begun(&self) -> bool {
        self.state == State::Begun
    }

    /// Returns `true` if bytes were accepted that are not a response, and no response had begun
    /// before them.
    pub(super) fn is_tunnel(&self) -> bool {
        self.state == State::Tunnel
    }

    /// Expects the next response. To be called only between two responses.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    fn read_line<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (read, rest) = bytes.split_at(bytes.len().min(LINE - self.filled));
        self.line[self.filled..][..read.len()].copy_from_slice(read);
        self.filled += read.len();
        if self.filled == LINE {
            let (version, status) = self.line.split_at(LINE - 3);
            self.state = match status {
                _ if !VERSIONS.iter().any(|known| known[..] == *version) => State::Tunnel,
                b"101" => State::Begun,
                [b'1', ..] => State::Interim(0),
                _ => State::Begun,
            };
            self.filled = 0;
        }
        rest
    }

    fn skip_interim<'a>(&mut self, mut seen: usize, bytes: &'a [u8]) -> &'a [u8] {
        const END: &[u8; 4] = b"\r\n\r\n";
        for (at, byte) in bytes.iter().enumerate() {
            seen = match *byte {
                byte if byte == END[seen] => seen + 1,
                b'\r' => 1,
                _ => 0,
            };
            if seen == END.len() {
                self.state = State::Start;
                return &bytes[at + 1..];
            }
        }
        self.state = State::Interim(seen);
        &[]
    }
}

#[cfg(test)]
mod tests;
