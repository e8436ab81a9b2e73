//! Parser of the client's frames on an HTTP/2 connection, which appends a field with the identifier
//! of its stream to each request.
//!
//! The frames arrive like on a plain connection, except that the last frame of a header block that
//! opens a stream is longer by the [field](super::mark), which precedes the padding. If that frame
//! has the maximum length already, a CONTINUATION frame with the field follows it (RFC 9113,
//! section 6.10). A block opens a stream if its identifier is odd and greater than all before
//! (section 5.1.1). Any other block is trailers of a request, or an error that the server answers.
//!
//! h2 takes a CONTINUATION frame behind a malformed block for an error of the connection, so only
//! such a long frame is followed by one: a malformed request of 16 366 to 16 384 bytes ends the
//! connection rather than its stream.
//!
//! The field is a whole representation of HPACK without indexing, so it changes neither the dynamic
//! table nor the fields before it (RFC 7541, section 6.2.2). A block that ends within a
//! representation stays an error, because the field begins with bytes that cannot be the rest of
//! one.
//!
//! Headers of frames are held back until they are complete, with the length of the padding. Nothing
//! else is delayed, so the server
//! reads and answers the same frames in the same order, and its limits apply as they do without
//! tracking.
//!
//! The rules of RFC 9113 are not checked, because the server does so: if it finds an error of the
//! connection, nothing after it matters.

use std::ops::Range;

use super::{
    frames::{CONTINUATION, END_HEADERS, HEADER_LENGTH, HEADERS, PADDED, PRIORITY, RST_STREAM, StreamId},
    mark::{FIELD_LENGTH, Mark},
};

/// The maximum length of a payload that every receiver accepts (RFC 9113, section 4.2).
const MAX_PAYLOAD: u32 = 1 << 14;

/// The length of the fields before the block in a HEADERS frame with [`PRIORITY`].
const PRIORITY_LENGTH: u32 = 5;

/// The maximum number of bytes held back: a header, and the length of the padding.
const MAX_HELD: usize = HEADER_LENGTH + 1;

/// Parses and delivers the bytes of a client, without the preface.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    /// The header of the current frame, and the first byte of its payload if that is the length of
    /// the padding.
    header: [u8; MAX_HELD],
    /// The number of bytes of `header` that were read. Zero while `payload` is not.
    filled: usize,
    /// The rest of the payload, up to the end of the frame or to `padding`.
    payload: u32,
    /// The number of bytes that follow the appended field in the payload.
    padding: u32,
    end: FrameEnd,
    /// The stream of a header block that opens it, and whose last frame has not come yet.
    block: Option<StreamId>,
    /// The highest stream that was opened.
    highest: Option<StreamId>,
    /// Bytes that are not part of the input as it is: a header, and an appended field or frame.
    added: [u8; MAX_HELD + FIELD_LENGTH],
    /// The part of `added` that was not delivered.
    undelivered: Range<usize>,
}

/// The effect of the end of the current frame.
#[derive(Clone, Copy, Debug, Default)]
enum FrameEnd {
    #[default]
    Nothing,
    /// It completes the request. The field belongs to this frame, and the padding follows it.
    Request(StreamId),
    /// It completes the request. The field follows in a frame of its own.
    LongRequest(StreamId),
    Reset(StreamId),
}

/// An event in the client's bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Event {
    /// A header block opens this stream.
    Open(StreamId),
    /// A RST_STREAM frame. The stream may never have been open.
    Reset(StreamId),
}

/// The result of [`Inbound::deliver`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Delivery {
    /// The number of bytes read. If it is not all of them, there was no room.
    pub(super) read: usize,
    /// The number of bytes delivered. If it is zero, only a part of a frame header was read.
    pub(super) delivered: usize,
}

impl Inbound {
    /// Reads bytes, and delivers at most `room` bytes to `put`. Each event is reported before the
    /// last byte of its frame or block is delivered, so that it precedes everything that the server
    /// does about it.
    pub(super) fn deliver(
        &mut self,
        mark: &Mark,
        bytes: &[u8],
        room: usize,
        mut put: impl FnMut(&[u8]),
        mut on_event: impl FnMut(Event),
    ) -> Delivery {
        let (mut rest, mut space) = (bytes, room);
        while space > 0 {
            if !self.undelivered.is_empty() {
                let count = self.undelivered.len().min(space);
                put(&self.added[self.undelivered.start..][..count]);
                self.undelivered.start += count;
                space -= count;
            } else if self.payload > 0 {
                let count = rest.len().min(space).min(self.payload as usize);
                if count == 0 {
                    break;
                }
                let (payload, behind) = rest.split_at(count);
                // At most `payload`, which is an `u32`.
                self.payload -= count as u32;
                if self.payload == 0 {
                    self.end_frame(mark, &mut on_event);
                }
                put(payload);
                (rest, space) = (behind, space - count);
            } else {
                let count = rest.len().min(self.header_length() - self.filled);
                let (header, behind) = rest.split_at(count);
                self.header[self.filled..][..count].copy_from_slice(header);
                self.filled += count;
                rest = behind;
                if self.filled < self.header_length() {
                    if rest.is_empty() {
                        break;
                    }
                    continue;
                }
                self.begin_frame();
                if self.payload == 0 {
                    self.end_frame(mark, &mut on_event);
                }
            }
        }
        Delivery { read: bytes.len() - rest.len(), delivered: room - space }
    }

    /// Returns `true` if bytes can be delivered without reading any.
    pub(super) fn has_undelivered(&self) -> bool {
        !self.undelivered.is_empty()
    }

    /// The input has ended. Releases the header that is held back.
    pub(super) fn finish(&mut self) {
        let header = self.header;
        self.add(&[&header[..self.filled]]);
        self.filled = 0;
    }

    /// Returns the bytes that were read and not delivered.
    pub(super) fn into_undelivered(mut self) -> Vec<u8> {
        self.finish();
        self.added[self.undelivered].to_vec()
    }

    /// Returns the length of `header` once it is complete, as far as that is known.
    fn header_length(&self) -> usize {
        let [high, middle, low, kind, flags, ..] = self.header;
        let is_padded = kind == HEADERS && flags & PADDED != 0 && [high, middle, low] != [0; 3];
        HEADER_LENGTH + usize::from(self.filled >= HEADER_LENGTH && is_padded)
    }

    /// The header is complete.
    fn begin_frame(&mut self) {
        let [high, middle, low, kind, flags, stream @ .., padding] = self.header;
        let stream = StreamId::new(u32::from_be_bytes(stream));
        let length = u32::from_be_bytes([0, high, middle, low]);
        let held = std::mem::take(&mut self.filled);
        self.payload = length - (held - HEADER_LENGTH) as u32;
        let padding = if held > HEADER_LENGTH { u32::from(padding) } else { 0 };
        let opened = match kind {
            HEADERS => Some(stream).filter(|stream| stream.opens_after(self.highest)),
            CONTINUATION => self.block.filter(|open| *open == stream),
            _ => None,
        };
        self.block = opened.filter(|_| flags & END_HEADERS == 0);
        self.end = match opened {
            Some(_) if self.block.is_some() => FrameEnd::Nothing,
            Some(_) if kind == HEADERS && !self.has_block(padding) => FrameEnd::Nothing,
            Some(stream) => {
                let longer = length + FIELD_LENGTH as u32;
                if longer > MAX_PAYLOAD {
                    self.header[4] &= !END_HEADERS;
                    FrameEnd::LongRequest(stream)
                } else {
                    self.header[..3].copy_from_slice(&longer.to_be_bytes()[1..]);
                    self.padding = padding;
                    self.payload -= padding;
                    FrameEnd::Request(stream)
                }
            }
            None if kind == RST_STREAM => FrameEnd::Reset(stream),
            None => FrameEnd::Nothing,
        };
        let header = self.header;
        self.add(&[&header[..held]]);
    }

    /// Returns `true` if the current HEADERS frame is long enough for its padding and priority. If
    /// it is not, a field would change the error of the server.
    fn has_block(&self, padding: u32) -> bool {
        let [_, _, _, _, flags, ..] = self.header;
        let is_empty = flags & PADDED != 0 && self.header[..3] == [0; 3];
        let before = if flags & PRIORITY != 0 { PRIORITY_LENGTH } else { 0 };
        !is_empty && self.payload >= before + padding
    }

    /// The payload was read, up to the padding.
    fn end_frame(&mut self, mark: &Mark, on_event: &mut impl FnMut(Event)) {
        self.payload = std::mem::take(&mut self.padding);
        match std::mem::take(&mut self.end) {
            FrameEnd::Nothing => {}
            FrameEnd::Reset(stream) => on_event(Event::Reset(stream)),
            FrameEnd::Request(stream) => {
                self.open(stream, on_event);
                self.add(&[&mark.field(stream)]);
            }
            FrameEnd::LongRequest(stream) => {
                self.open(stream, on_event);
                let mut header = [0, 0, FIELD_LENGTH as u8, CONTINUATION, END_HEADERS, 0, 0, 0, 0];
                header[5..].copy_from_slice(&stream.as_u32().to_be_bytes());
                self.add(&[&header, &mark.field(stream)]);
            }
        }
    }

    fn open(&mut self, stream: StreamId, on_event: &mut impl FnMut(Event)) {
        self.highest = Some(stream);
        on_event(Event::Open(stream));
    }

    /// Adds bytes to deliver before the next byte of the input. At most the header of a frame
    /// without a block and a field, or a frame with a field, are added between two bytes.
    fn add(&mut self, parts: &[&[u8]]) {
        if self.undelivered.is_empty() {
            self.undelivered = 0..0;
        }
        for part in parts {
            self.added[self.undelivered.end..][..part.len()].copy_from_slice(part);
            self.undelivered.end += part.len();
        }
    }
}

#[cfg(test)]
mod tests;
