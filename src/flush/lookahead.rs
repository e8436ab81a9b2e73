//! Parser that runs ahead of the delivery on an HTTP/2 connection, and finds the requests that the
//! client has already reset.
//!
//! It reads the buffered bytes once, when they arrive. [`Inbound`](super::inbound::Inbound) reads
//! the same bytes when they are delivered, and asks about each stream that they open.

use std::collections::HashSet;

use super::frames::{Event, Frames, StreamId};

/// The number of bytes behind a request in which its reset is searched, if they have arrived.
pub(super) const LOOKAHEAD: usize = 8 * 1024;

/// Parses the buffered bytes, without the preface.
#[derive(Debug, Default)]
pub(super) struct Lookahead {
    frames: Frames,
    /// Streams with a RST_STREAM frame in the buffer whose header block was not delivered when that
    /// frame arrived. Bounded by the buffer, because a stream is removed when its frame is
    /// delivered.
    resets: HashSet<StreamId>,
    highest: Option<StreamId>,
    /// The number of bytes behind the last header block that opens a stream.
    behind: usize,
}

impl Lookahead {
    /// Parses bytes that were added to the buffer. `delivered` is the highest stream whose header
    /// block was delivered.
    pub(super) fn scan(&mut self, bytes: &[u8], delivered: Option<StreamId>) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (read, event) = self.frames.read(rest);
            rest = &rest[read..];
            self.behind = self.behind.saturating_add(read);
            match event {
                Some(Event::Headers { stream, .. }) if stream.opens_after(self.highest) => {
                    self.highest = Some(stream);
                    self.behind = 0;
                }
                Some(Event::Reset { stream, .. }) if Some(stream) > delivered && Some(stream) <= self.highest => {
                    self.resets.insert(stream);
                }
                _ => {}
            }
        }
    }

    /// Returns `true` if a stream that was not delivered yet is reset in the buffered bytes.
    pub(super) fn is_reset(&self, stream: StreamId) -> bool {
        self.resets.contains(&stream)
    }

    /// Removes a reset, because its frame is delivered. Returns `true` if it was found ahead of the
    /// stream.
    pub(super) fn remove(&mut self, stream: StreamId) -> bool {
        self.resets.remove(&stream)
    }

    /// Returns `true` if one of the last `unread` bytes opens a stream, and fewer than
    /// [`LOOKAHEAD`] bytes follow it.
    pub(super) fn is_short(&self, unread: usize) -> bool {
        self.highest.is_some() && self.behind < unread.min(LOOKAHEAD)
    }
}

#[cfg(test)]
mod tests;
