//! Parser of the client's bytes on an HTTP/2 connection, and the points where their delivery stops.
//!
//! hyper does not pass the identifier of a stream to the service. It is found by gating the reads:
//! after the header block that opens a stream, delivery stops until h2 has passed the request to
//! the service, which it does in the same poll (`h2/server.rs:425-449`,
//! `hyper/proto/h2/server.rs:259-316`).
//!
//! A block opens a stream if its identifier is odd and greater than all before (RFC 9113, section
//! 5.1.1). Any other block is trailers of a request, or an error that h2 answers, and does not
//! close the gate.
//!
//! # Rapid reset
//!
//! h2 limits the streams that a client resets before they are accepted (`h2/proto/streams/recv.rs`,
//! `recv_reset`), which is its protection against CVE-2023-44487. A stream that closes the gate is
//! accepted before its reset is delivered, so h2 would never count one. Two rules restore the
//! limit:
//!
//! 1. A stream whose reset is already buffered does not close the gate. h2 reads the request and
//!    the reset in one poll and counts the stream, like on a plain connection, up to the limit that
//!    the server has set.
//! 2. The gate stays open for the rest of the connection once more than [`MAX_RESETS`] resets were
//!    hidden from h2 without a pause. A reset is hidden if its stream had closed the gate, because
//!    the reset was too far behind, or if h2 had to accept its stream so that the gate could close
//!    for another request. From then on h2 reads the same bytes in the same polls as without the
//!    gate, and ends the connection at its limit. The gate does not close again, otherwise a client
//!    that pauses after each burst would never reach that limit.
//!
//! So a flood that hides its resets runs about [`MAX_RESETS`] more handlers than on a plain
//! connection, plus the requests in between. A server with a lower limit applies that limit to the
//! resets of rule 1 only.
//!
//! A client that pauses between a request and its reset is not limited by h2 either, because the
//! stream is accepted in between.
//!
//! # Accepting the streams that were reset
//!
//! h2 passes streams that were reset to the service as well, in the order of their header blocks,
//! and skips malformed ones. Such a request must not take the stream of a later one.
//! Therefore a header block that closes the gate is completed only when h2 has no other stream to
//! accept: [`Inbound`] counts the streams that it delivered with the gate open, and holds back the
//! last byte of the block, without which h2 cannot decode it, until the reads have returned
//! `Pending` as often. After each such read, h2 accepts one stream before it reads again, and it
//! accepts streams in order. The count may be too high, because malformed streams are never
//! accepted; then the reads only wait longer.

use super::{
    frames::{Event, Frames, StreamId},
    lookahead::Lookahead,
};

/// The number of hidden resets in one [`Run`] that the gating survives. h2 allows as many by
/// default (`h2/proto/mod.rs`, `DEFAULT_REMOTE_RESET_STREAM_MAX`).
const MAX_RESETS: u32 = 20;

/// The length of a [`Run`]. A tokio socket gives up the thread after 128 reads, and h2 reads about
/// 8 KiB at a time, so a plain connection reads about as much in one poll.
const MAX_RUN_BYTES: usize = 1 << 20;

/// Parses the bytes that are about to be delivered to h2, without the preface.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    frames: Frames,
    /// The highest stream whose header block was delivered.
    highest: Option<StreamId>,
    /// The stream of a header block that was read and whose last byte is held back.
    held: Option<StreamId>,
    /// The maximum number of streams that h2 has not accepted yet and that did not close the gate.
    /// A stream closes the gate only while this is zero.
    unaccepted: u32,
    /// The resets of these streams, as h2 counts them.
    unaccepted_resets: u32,
    run: Run,
    /// Set once, by more than [`MAX_RESETS`] hidden resets in a run.
    flooded: bool,
}

/// Bytes that arrived without a pause. A plain connection reads them in one poll, before it accepts
/// any stream that they open.
#[derive(Debug, Default)]
struct Run {
    /// The highest stream before the run.
    before: Option<StreamId>,
    bytes: usize,
    /// RST_STREAM frames for streams that the run opened, and that h2 no longer counts.
    hidden_resets: u32,
}

/// The bytes that may be delivered now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Delivery {
    /// Number of bytes, from the first. The rest must be offered again: once the gate is open if
    /// the bytes open a stream, otherwise after a read that returned `Pending`.
    pub(super) bytes: usize,
    /// The stream that the last of these bytes opens. The gate closes after it.
    pub(super) opened: Option<StreamId>,
}

/// The effect of a header block that opens a stream on the gate.
enum Passage {
    /// It passes, and the gate stays open.
    Free,
    /// It passes, and the gate closes.
    Closing,
    /// Its last byte waits until h2 has accepted other streams.
    Held,
}

impl Inbound {
    /// Returns the bytes that may be delivered: all of them, or up to the first that opens a
    /// stream, or up to a byte that is held back. They count as delivered and must not be offered
    /// again.
    ///
    /// Calls `on_reset` with the stream and the error code of each RST_STREAM frame in them. The
    /// stream may never have been open.
    pub(super) fn deliver(
        &mut self,
        bytes: &[u8],
        lookahead: &mut Lookahead,
        mut on_reset: impl FnMut(StreamId, u32),
    ) -> Delivery {
        let mut delivered = 0;
        if let Some(stream) = self.held {
            match self.pass(stream, lookahead) {
                Passage::Held => return Delivery { bytes: 0, opened: None },
                Passage::Closing => return Delivery { bytes: 1, opened: Some(stream) },
                // The parser has read the byte already.
                Passage::Free => delivered = 1,
            }
        }
        while delivered < bytes.len() {
            let (read, event) = self.frames.read(&bytes[delivered..]);
            delivered += read;
            self.run.bytes = self.run.bytes.saturating_add(read);
            match event {
                Some(Event::Headers { stream, .. }) if stream.opens_after(self.highest) => {
                    match self.pass(stream, lookahead) {
                        Passage::Held => return Delivery { bytes: delivered - 1, opened: None },
                        Passage::Closing => return Delivery { bytes: delivered, opened: Some(stream) },
                        Passage::Free => {}
                    }
                }
                Some(Event::Reset { stream, error_code }) => {
                    if Some(stream) <= self.highest {
                        if lookahead.remove(stream) {
                            self.unaccepted_resets = self.unaccepted_resets.saturating_add(1);
                        } else if Some(stream) > self.run.before {
                            self.hide_resets(1);
                        }
                    }
                    on_reset(stream, error_code);
                }
                _ => {}
            }
        }
        Delivery { bytes: delivered, opened: None }
    }

    /// A read returns `Pending`. h2 accepts a stream, if there is one, before it reads again.
    pub(super) fn accept_one(&mut self) {
        self.unaccepted = self.unaccepted.saturating_sub(1);
        let resets = self.unaccepted_resets;
        self.unaccepted_resets = resets.min(self.unaccepted);
        if self.held.is_some() {
            // A plain connection would have read the next request before h2 accepts this stream.
            self.hide_resets(resets - self.unaccepted_resets);
        }
    }

    /// Starts a new [`Run`]: the transport has no more bytes at the moment.
    pub(super) fn pause(&mut self) {
        self.run = Run { before: self.highest, ..Run::default() };
    }

    /// Returns `true` as long as each new stream closes the gate. After malformed bytes or a flood
    /// of resets it returns `false` forever: all bytes are delivered at once, and requests have no
    /// stream.
    ///
    /// Resets are still reported after a flood, but not after malformed bytes.
    pub(super) fn is_gating(&self) -> bool {
        !self.flooded && !self.frames.gave_up()
    }

    /// Returns `true` if h2 may have streams to accept that the client has reset. It has no others
    /// then.
    pub(super) fn expects_resets(&self) -> bool {
        self.unaccepted > 0 && self.is_gating()
    }

    /// Returns the highest stream whose header block was delivered.
    pub(super) fn highest(&self) -> Option<StreamId> {
        self.highest
    }

    /// The header block of `stream` was read.
    fn pass(&mut self, stream: StreamId, lookahead: &Lookahead) -> Passage {
        self.flooded |= self.run.hidden_resets > MAX_RESETS;
        let is_free = self.flooded || lookahead.is_reset(stream);
        if !is_free && self.unaccepted > 0 {
            self.held = Some(stream);
            return Passage::Held;
        }
        self.held = None;
        self.highest = Some(stream);
        if is_free {
            self.unaccepted = self.unaccepted.saturating_add(1);
            Passage::Free
        } else {
            Passage::Closing
        }
    }

    fn hide_resets(&mut self, count: u32) {
        if self.run.bytes > MAX_RUN_BYTES {
            self.pause();
        }
        self.run.hidden_resets = self.run.hidden_resets.saturating_add(count);
    }
}

#[cfg(test)]
mod tests;
