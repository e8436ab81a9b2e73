//! What the client says on an HTTP/2 connection, and where to stop delivering it.
//!
//! A stream's number is never told to the service, so it is learnt by gating the reads: behind the header block that opens a
//! stream delivery stops until h2 has handed that request to the service, which it does in the same poll
//! (`h2/server.rs:425-449`, `hyper/proto/h2/server.rs:259-316`).
//!
//! A block opens a stream if its number is odd and greater than all before (RFC 9113, section 5.1.1). Any other block is the
//! trailers of a request, or an error for h2 to answer, and does not gate.

use super::frames::{Event, Frames, StreamId};

/// Reads what is about to be delivered to h2. The preface is not its concern.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    frames: Frames,
    highest: Option<StreamId>,
}

/// What may be delivered now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Delivery {
    /// So many bytes, from the first. The rest is to be offered again, once the gate is open.
    pub(super) bytes: usize,
    /// The stream that the last of these bytes open; the gate is closed behind it.
    pub(super) opened: Option<StreamId>,
}

impl Inbound {
    /// How many of the bytes may be delivered: all of them, or up to where a stream opens. These count as delivered, and must
    /// not be offered a second time.
    ///
    /// Streams that the client reset in them are told to `reset`, with the error code. They may never have been open.
    pub(super) fn deliver(&mut self, bytes: &[u8], mut reset: impl FnMut(StreamId, u32)) -> Delivery {
        let mut delivered = 0;
        while delivered < bytes.len() {
            let (read, event) = self.frames.read(&bytes[delivered..]);
            delivered += read;
            match event {
                Some(Event::Headers { stream, .. }) if self.opens(stream) => {
                    self.highest = Some(stream);
                    return Delivery { bytes: delivered, opened: Some(stream) };
                }
                Some(Event::Reset { stream, error_code }) => reset(stream, error_code),
                _ => {}
            }
        }
        Delivery { bytes: delivered, opened: None }
    }

    /// Returns `true` once the client's bytes were malformed. From then on all bytes are delivered,
    /// no stream opens and no reset is reported: h2 closes the connection, and requests that it
    /// still passes on have no stream.
    pub(super) fn gave_up(&self) -> bool {
        self.frames.gave_up()
    }

    fn opens(&self, stream: StreamId) -> bool {
        stream.is_client_initiated() && self.highest.is_none_or(|highest| stream > highest)
    }
}

#[cfg(test)]
mod tests;
