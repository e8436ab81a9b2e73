//! Has a response begun, on an HTTP/1 connection?
//!
//! hyper flushes the transport only when it holds nothing more to write, which is also so when it never had anything: it takes back a
//! head that it cannot encode (`hyper/proto/h1/role.rs`, `rewind`), and drops what it holds when an upgraded connection is
//! handed over. Then a flush says nothing. So it counts only if the head of a response was accepted since the last flush that
//! counted: bytes that begin as a status line does (RFC 9112, section 4). An interim response (RFC 9110, section 15.2) is
//! passed over, and the bytes of a tunnel are no head.
//!
//! The head of a pipelined response may be accepted in the same write as the end of the response
//! before it. The scanner does not see that head, because it does not parse bodies. Therefore the
//! caller resets it after a flush only if no response is in progress; otherwise the response in
//! progress counts as begun.

/// A head begins with one of these, and then its status, of three digits.
const VERSIONS: [&[u8; 9]; 2] = [b"HTTP/1.1 ", b"HTTP/1.0 "];
/// Where the status ends.
const LINE: usize = 12;

/// Looks for the head of a response in the bytes that a transport accepted.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// The beginning of the message, as far as it was accepted.
    line: [u8; LINE],
    filled: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    /// A final response has begun. What follows is its own.
    Begun,
    /// In an interim response: so many bytes of its empty line, `\r\n\r\n`, were just seen.
    Interim(usize),
    #[default]
    Nothing,
    /// What began is no response. What follows is nobody's.
    Tunnel,
}

impl Heads {
    pub(super) fn accepted(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = match self.state {
                State::Begun | State::Tunnel => return,
                State::Interim(seen) => self.skip(seen, rest),
                State::Nothing => self.begin(rest),
            };
        }
    }

    /// Returns `true` if a final response has begun since the last [`reset`](Self::reset).
    pub(super) fn has_begun(&self) -> bool {
        self.state == State::Begun
    }

    /// Returns `true` if bytes were accepted that are no response, and no response had begun before
    /// them.
    pub(super) fn is_tunnel(&self) -> bool {
        self.state == State::Tunnel
    }

    /// Expects the next response. Only to be called between two responses.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    fn begin<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
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

    fn skip<'a>(&mut self, mut seen: usize, bytes: &'a [u8]) -> &'a [u8] {
        const END: &[u8; 4] = b"\r\n\r\n";
        for (at, byte) in bytes.iter().enumerate() {
            seen = match *byte {
                byte if byte == END[seen] => seen + 1,
                b'\r' => 1,
                _ => 0,
            };
            if seen == END.len() {
                self.state = State::Nothing;
                return &bytes[at + 1..];
            }
        }
        self.state = State::Interim(seen);
        &[]
    }
}

#[cfg(test)]
mod tests;
