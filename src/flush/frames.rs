//! Parser of the frames in one direction of an HTTP/2 connection.
//!
//! RFC 9113, section 4.1: a frame is a header of nine octets (length, type, flags, reserved bit and
//! stream) and its payload. Header blocks are not decoded. Between the first frame of a block and
//! `END_HEADERS`, only CONTINUATION frames of the same stream may come (section 6.10). `END_STREAM`
//! on HEADERS takes effect when its block ends, because frames of the block follow until then.
//!
//! A frame becomes an event at its last byte, because a frame that is partly accepted is not on the
//! wire yet.
//!
//! Memory is constant for all lengths: the header, and the first eight bytes of the payload.

/// Length of a frame header.
pub(super) const HEADER_LENGTH: usize = 9;

/// Flag of DATA and HEADERS: the last frame or block of this direction of the stream.
const END_STREAM: u8 = 0x1;
/// Flag of HEADERS, PUSH_PROMISE and CONTINUATION: the block ends with this frame.
pub(super) const END_HEADERS: u8 = 0x4;
/// Flag of DATA: the payload begins with the length of the padding at its end.
pub(super) const PADDED: u8 = 0x8;
/// Flag of HEADERS: five bytes of priority precede the block.
pub(super) const PRIORITY: u8 = 0x20;
/// Flag of SETTINGS.
const ACK: u8 = 0x1;

/// Types of frames (RFC 9113, section 6). Other types are skipped.
const DATA: u8 = 0x0;
pub(super) const HEADERS: u8 = 0x1;
pub(super) const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PUSH_PROMISE: u8 = 0x5;
const GOAWAY: u8 = 0x7;
pub(super) const CONTINUATION: u8 = 0x9;

/// Identifier of a stream: 31 bits.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct StreamId(u32);

impl StreamId {
    /// Frames with this identifier apply to the connection.
    pub(super) const CONNECTION: Self = Self(0);

    /// Ignores the reserved bit, as RFC 9113, section 4.1 requires.
    pub(super) fn new(bits: u32) -> Self {
        Self(bits & 0x7fff_ffff)
    }

    pub(super) fn as_u32(self) -> u32 {
        self.0
    }

    /// Returns `true` if a client opens streams with such identifiers (RFC 9113, section 5.1.1).
    pub(super) fn is_client_initiated(self) -> bool {
        self.0 % 2 == 1
    }

    /// Returns `true` if a header block of the client opens this stream: if its identifier is
    /// greater than all before (RFC 9113, section 5.1.1).
    pub(super) fn opens_after(self, highest: Option<Self>) -> bool {
        self.is_client_initiated() && highest < Some(self)
    }
}

/// A complete frame or header block.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Event {
    /// A DATA frame.
    Data {
        stream: StreamId,
        /// Length of the payload without padding, to be compared with the length of a body.
        data: u32,
        end_stream: bool,
    },
    /// A GOAWAY frame.
    GoAway { last_stream: StreamId, error_code: u32 },
    /// A header block: HEADERS with all its CONTINUATION frames. Also interim responses and
    /// trailers.
    Headers { stream: StreamId, end_stream: bool },
    /// The bytes are not valid HTTP/2. The last event, because the next frame boundary is unknown.
    Malformed,
    /// A RST_STREAM frame.
    Reset { stream: StreamId, error_code: u32 },
    /// A SETTINGS frame.
    Settings { ack: bool },
}

/// Parses frames from bytes in any split.
#[derive(Debug, Default)]
pub(super) struct Frames {
    header: FixedBuf<HEADER_LENGTH>,
    /// Unread bytes of the payload, once the header is complete.
    unread: u32,
    payload: FixedBuf<8>,
    block: Option<Block>,
    gave_up: bool,
}

/// A header block without its end.
#[derive(Clone, Copy, Debug)]
struct Block {
    stream: StreamId,
    /// The event at its end. `None` for PUSH_PROMISE.
    event: Option<Event>,
}

/// A connection error of RFC 9113.
struct Violation;

impl Frames {
    /// Reads up to the next event, and returns the number of bytes read and the event. Without an
    /// event, all bytes were read.
    ///
    /// After [`Event::Malformed`], all bytes are read and there are no more events.
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

    /// Returns `true` if the bytes were malformed.
    pub(super) fn gave_up(&self) -> bool {
        self.gave_up
    }

    /// Reads the header, or the available part of the payload.
    fn step(&mut self, rest: &mut &[u8]) -> Result<Option<Event>, Violation> {
        if !self.header.is_full() {
            match rest.first_chunk() {
                // Most headers come in one piece, and are copied without a loop.
                Some(header) if self.header.read == 0 => {
                    self.header = FixedBuf { bytes: *header, read: HEADER_LENGTH };
                    *rest = &rest[HEADER_LENGTH..];
                }
                _ => {
                    let read = self.header.read(rest);
                    *rest = &rest[read..];
                    if !self.header.is_full() {
                        return Ok(None);
                    }
                }
            }
            self.unread = self.length();
            self.check_header()?;
        } else {
            let read = rest.len().min(usize::try_from(self.unread).unwrap_or(usize::MAX));
            let (payload, behind) = rest.split_at(read);
            if self.uses_payload() {
                self.payload.read(payload);
            }
            // At most `unread`, which is an u32.
            self.unread -= read as u32;
            *rest = behind;
        }
        if self.unread > 0 {
            return Ok(None);
        }
        let event = self.end_frame();
        self.header.read = 0;
        self.payload = FixedBuf::default();
        event
    }

    /// Returns `true` if the event of the frame depends on the first bytes of its payload.
    fn uses_payload(&self) -> bool {
        matches!(self.kind(), GOAWAY | RST_STREAM) || self.has(PADDED)
    }

    /// Checks that the frame may come now and that its header is valid.
    fn check_header(&self) -> Result<(), Violation> {
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

    /// Returns the event of a complete frame.
    fn end_frame(&mut self) -> Result<Option<Event>, Violation> {
        let (stream, end_stream) = (self.stream(), self.has(END_STREAM));
        Ok(match self.kind() {
            DATA => Some(Event::Data { stream, data: self.data()?, end_stream }),
            GOAWAY => Some(Event::GoAway {
                last_stream: StreamId::new(self.payload.number(0)),
                error_code: self.payload.number(4),
            }),
            HEADERS => self.end_block_frame(Some(Event::Headers { stream, end_stream })),
            PUSH_PROMISE => self.end_block_frame(None),
            CONTINUATION => self.end_block_frame(self.block.and_then(|block| block.event)),
            RST_STREAM => Some(Event::Reset { stream, error_code: self.payload.number(0) }),
            SETTINGS => Some(Event::Settings { ack: self.has(ACK) }),
            _ => None,
        })
    }

    /// Ends a frame of a header block. Returns the event if it is the last one.
    fn end_block_frame(&mut self, event: Option<Event>) -> Option<Event> {
        if self.has(END_HEADERS) {
            self.block = None;
            return event;
        }
        self.block = Some(Block { stream: self.stream(), event });
        None
    }

    /// Returns the length of the data in a DATA frame (RFC 9113, section 6.1).
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

/// The first `N` bytes of a header or payload that may arrive in pieces.
#[derive(Clone, Copy, Debug)]
struct FixedBuf<const N: usize> {
    bytes: [u8; N],
    read: usize,
}

impl<const N: usize> Default for FixedBuf<N> {
    fn default() -> Self {
        Self { bytes: [0; N], read: 0 }
    }
}

impl<const N: usize> FixedBuf<N> {
    /// Copies the missing bytes, and returns their number.
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

    /// Returns the four bytes from `at` in network order.
    fn number(&self, at: usize) -> u32 {
        let [first, second, third, fourth] = [0, 1, 2, 3].map(|offset| self.bytes[at + offset]);
        u32::from_be_bytes([first, second, third, fourth])
    }
}

#[cfg(test)]
mod tests;
