//! The frames in one direction of an HTTP/2 connection, from its bytes.
//!
//! RFC 9113, section 4.1: a frame is a header of nine octets (length, type, flags, reserved bit and stream) and its payload.
//! Header blocks need no decoding: only that between their first frame and `END_HEADERS` nothing but their own CONTINUATION
//! may come (section 6.10). `END_STREAM` on HEADERS takes effect when its block ends, for until then frames of it follow.
//!
//! A frame is an event at its last byte and never before: a frame that is half accepted is not on the wire.
//!
//! Memory is constant whatever the lengths say: the header, and of the payload the first eight bytes.

/// Flag of DATA and HEADERS: the last frame (or block) of this direction of the stream.
const END_STREAM: u8 = 0x1;
/// Flag of HEADERS, PUSH_PROMISE and CONTINUATION: the block ends with this frame.
const END_HEADERS: u8 = 0x4;
/// Flag of DATA: the payload begins with the length of the padding it ends with.
const PADDED: u8 = 0x8;
/// Flag of SETTINGS.
const ACK: u8 = 0x1;

/// Types of frames, RFC 9113, section 6. The others are skipped.
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PUSH_PROMISE: u8 = 0x5;
const GOAWAY: u8 = 0x7;
const CONTINUATION: u8 = 0x9;

/// A stream's number: 31 bits.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct StreamId(u32);

impl StreamId {
    /// The connection itself, which is no stream.
    pub(super) const CONNECTION: Self = Self(0);

    /// The reserved bit is masked, as a receiver must (RFC 9113, section 4.1).
    pub(super) fn new(bits: u32) -> Self {
        Self(bits & 0x7fff_ffff)
    }

    pub(super) fn get(self) -> u32 {
        self.0
    }

    /// Whether a client numbers its streams so (RFC 9113, section 5.1.1).
    pub(super) fn is_client_initiated(self) -> bool {
        self.0 % 2 == 1
    }
}

/// What a frame, or a whole header block, said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Event {
    /// A DATA frame.
    Data {
        stream: StreamId,
        /// Bytes of the body in it, without padding and its length octet. Only these can be compared with what a body
        /// produced, and no more than that comparison is wanted: what padding costs is the flow control's business, not ours.
        data: u32,
        end_stream: bool,
    },
    /// A GOAWAY frame.
    GoAway { last_stream: StreamId, error_code: u32 },
    /// A header block, complete: HEADERS with all its CONTINUATION. Also interim responses and trailers.
    Headers { stream: StreamId, end_stream: bool },
    /// The bytes are not HTTP/2 as far as this parser knows it. It is the last event: where frames begin is not sure any more.
    Malformed,
    /// A RST_STREAM frame.
    Reset { stream: StreamId, error_code: u32 },
    /// A SETTINGS frame.
    Settings { ack: bool },
}

/// Reads frames.
#[derive(Debug, Default)]
pub(super) struct Frames {
    header: Beginning<9>,
    /// Of the current frame's payload, once its header is complete.
    unread: u32,
    payload: Beginning<8>,
    block: Option<Block>,
    gave_up: bool,
}

/// A header block that has begun and not ended.
#[derive(Clone, Copy, Debug)]
struct Block {
    stream: StreamId,
    /// What is told when it ends; nothing of a promise, for nobody here can use one.
    event: Option<Event>,
}

/// What RFC 9113 calls a connection error, as far as it is noticed here.
struct Violation;

impl Frames {
    /// Reads up to the end of the next frame (or block) that is an event: how many bytes that were, and the event. Without an
    /// event all bytes were read.
    ///
    /// After [`Event::Malformed`] everything is read and nothing said.
    pub(super) fn read(&mut self, bytes: &[u8]) -> (usize, Option<Event>) {
        let mut rest = bytes;
        while !rest.is_empty() && !self.gave_up {
            let outcome = self.step(&mut rest);
            let event = outcome.unwrap_or_else(|Violation| {
                self.gave_up = true;
                Some(Event::Malformed)
            });
            if event.is_some() {
                return (bytes.len() - rest.len(), event);
            }
        }
        (bytes.len(), None)
    }

    /// Whether the bytes were malformed, and nothing is told any more.
    pub(super) fn gave_up(&self) -> bool {
        self.gave_up
    }

    /// Reads a header, or of a payload what there is.
    fn step(&mut self, rest: &mut &[u8]) -> Result<Option<Event>, Violation> {
        if !self.header.is_full() {
            let read = self.header.read(rest);
            *rest = &rest[read..];
            if !self.header.is_full() {
                return Ok(None);
            }
            self.unread = self.length();
            self.begun()?;
        } else {
            let read = rest.len().min(usize::try_from(self.unread).unwrap_or(usize::MAX));
            let (payload, behind) = rest.split_at(read);
            self.payload.read(payload);
            // At most `unread`, which is an u32.
            self.unread -= read as u32;
            *rest = behind;
        }
        if self.unread > 0 {
            return Ok(None);
        }
        let event = self.ended();
        self.header = Beginning::default();
        self.payload = Beginning::default();
        event
    }

    /// A header is complete: is it one that may come now, and one that can be understood?
    fn begun(&self) -> Result<(), Violation> {
        let (length, stream) = (self.length(), self.stream());
        let in_order = match self.block {
            None => self.kind() != CONTINUATION,
            Some(block) => self.kind() == CONTINUATION && stream == block.stream,
        };
        let on_a_stream = stream != StreamId::CONNECTION;
        let understood = match self.kind() {
            DATA => on_a_stream && (length > 0 || !self.has(PADDED)),
            GOAWAY => !on_a_stream && length >= 8,
            HEADERS | PUSH_PROMISE => on_a_stream,
            RST_STREAM => on_a_stream && length == 4,
            SETTINGS => !on_a_stream && length % 6 == 0 && (length == 0 || !self.has(ACK)),
            _ => true,
        };
        if in_order && understood { Ok(()) } else { Err(Violation) }
    }

    /// A frame is complete: what does it say?
    fn ended(&mut self) -> Result<Option<Event>, Violation> {
        let (stream, end_stream) = (self.stream(), self.has(END_STREAM));
        Ok(match self.kind() {
            DATA => Some(Event::Data { stream, data: self.data()?, end_stream }),
            GOAWAY => Some(Event::GoAway {
                last_stream: StreamId::new(self.payload.number(0)),
                error_code: self.payload.number(4),
            }),
            HEADERS => self.block_of(Some(Event::Headers { stream, end_stream })),
            PUSH_PROMISE => self.block_of(None),
            CONTINUATION => self.block_of(self.block.and_then(|block| block.event)),
            RST_STREAM => Some(Event::Reset { stream, error_code: self.payload.number(0) }),
            SETTINGS => Some(Event::Settings { ack: self.has(ACK) }),
            _ => None,
        })
    }

    /// A frame of a block is complete: the block has ended, or goes on.
    fn block_of(&mut self, event: Option<Event>) -> Option<Event> {
        if self.has(END_HEADERS) {
            self.block = None;
            return event;
        }
        self.block = Some(Block { stream: self.stream(), event });
        None
    }

    /// The bytes of a DATA frame that are data (RFC 9113, section 6.1).
    fn data(&self) -> Result<u32, Violation> {
        if !self.has(PADDED) {
            return Ok(self.length());
        }
        let padding = 1 + u32::from(self.payload.bytes[0]);
        self.length().checked_sub(padding).ok_or(Violation)
    }

    fn length(&self) -> u32 {
        self.header.number(0) >> 8
    }

    fn kind(&self) -> u8 {
        self.header.bytes[3]
    }

    fn has(&self, flag: u8) -> bool {
        self.header.bytes[4] & flag != 0
    }

    fn stream(&self) -> StreamId {
        StreamId::new(self.header.number(5))
    }
}

/// The first `N` bytes of something that may arrive in pieces.
#[derive(Clone, Copy, Debug)]
struct Beginning<const N: usize> {
    bytes: [u8; N],
    read: usize,
}

impl<const N: usize> Default for Beginning<N> {
    fn default() -> Self {
        Self { bytes: [0; N], read: 0 }
    }
}

impl<const N: usize> Beginning<N> {
    /// Keeps what is missing, and says how many bytes that were.
    fn read(&mut self, bytes: &[u8]) -> usize {
        let missing = &mut self.bytes[self.read..];
        let read = missing.len().min(bytes.len());
        missing[..read].copy_from_slice(&bytes[..read]);
        self.read += read;
        read
    }

    fn is_full(&self) -> bool {
        self.read == N
    }

    /// The four bytes from `at`, in network order.
    fn number(&self, at: usize) -> u32 {
        self.bytes[at..at + 4].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
    }
}

#[cfg(test)]
mod tests;
