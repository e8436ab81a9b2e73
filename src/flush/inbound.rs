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
//! `recv_reset`), which is its protection against CVE-2023-44487. Behind the gate every stream is
//! accepted before its reset is delivered, so h2 never counts one. Therefore the gate stays open
//! for the rest of the connection once a client has opened and reset more than [`MAX_RESETS`]
//! streams without a pause. From then on h2 reads the same bytes in the same polls as without the
//! gate, and ends the connection by its own limit.
//!
//! A client that pauses between a request and its reset is not limited by h2 either, because the
//! stream is accepted in between.

use super::frames::{Event, Frames, StreamId};

/// The number of resets in one [`Run`] that end the gating. h2 allows as many by default
/// (`h2/proto/mod.rs`, `DEFAULT_REMOTE_RESET_STREAM_MAX`).
const MAX_RESETS: u32 = 20;

/// The length of a [`Run`]. A tokio socket gives up the thread after 128 reads, and h2 reads about
/// 8 KiB at a time, so a plain connection reads about as much in one poll.
const MAX_RUN_BYTES: usize = 1 << 20;

/// Parses the bytes that are about to be delivered to h2, without the preface.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    frames: Frames,
    highest: Option<StreamId>,
    run: Run,
    /// Set once, by more than [`MAX_RESETS`] resets in a run.
    flooded: bool,
}

/// Bytes that arrived without a pause. A plain connection reads them in one poll, before it accepts
/// any stream that they open.
#[derive(Debug, Default)]
struct Run {
    /// The highest stream before the run.
    before: Option<StreamId>,
    bytes: usize,
    /// RST_STREAM frames for streams that the run opened.
    resets: u32,
}

/// The bytes that may be delivered now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Delivery {
    /// Number of bytes, from the first. The rest must be offered again once the gate is open.
    pub(super) bytes: usize,
    /// The stream that the last of these bytes opens. The gate closes after it.
    pub(super) opened: Option<StreamId>,
}

impl Inbound {
    /// Returns the bytes that may be delivered: all of them, or up to the first that opens a
    /// stream. They count as delivered and must not be offered again.
    ///
    /// Calls `on_reset` with the stream and the error code of each RST_STREAM frame in them. The
    /// stream may never have been open.
    pub(super) fn deliver(&mut self, bytes: &[u8], mut on_reset: impl FnMut(StreamId, u32)) -> Delivery {
        let mut delivered = 0;
        while delivered < bytes.len() {
            let (read, event) = self.frames.read(&bytes[delivered..]);
            delivered += read;
            self.run.bytes = self.run.bytes.saturating_add(read);
            match event {
                Some(Event::Headers { stream, .. }) if self.opens(stream) => {
                    self.highest = Some(stream);
                    if !self.flooded {
                        return Delivery { bytes: delivered, opened: Some(stream) };
                    }
                }
                Some(Event::Reset { stream, error_code }) => {
                    self.count_reset(stream);
                    on_reset(stream, error_code);
                }
                _ => {}
            }
        }
        Delivery { bytes: delivered, opened: None }
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

    fn count_reset(&mut self, stream: StreamId) {
        if self.run.bytes > MAX_RUN_BYTES {
            self.pause();
        }
        if Some(stream) > self.run.before && Some(stream) <= self.highest {
            self.run.resets += 1;
            self.flooded |= self.run.resets > MAX_RESETS;
        }
    }

    fn opens(&self, stream: StreamId) -> bool {
        stream.is_client_initiated() && self.highest.is_none_or(|highest| stream > highest)
    }
}

#[cfg(test)]
mod tests;
