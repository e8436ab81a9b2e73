//! The read gate: what of a client's bytes is delivered, and when.
//!
//! HTTP/1 passes by and is none of its business. HTTP/2 is read into a buffer of its own, and delivered up to the end of each
//! header block that opens a stream. Then the gate is closed:
//!
//! 1. The next read is told to wait. h2 reads until it has to, so by now it has decoded the block, and the request is in its
//!    queue; it, and hyper, hand it to the service before they read again ([`inbound`](super::inbound) names the lines).
//! 2. The read after that finds the stream taken; or it was never handed over, being malformed or refused, and is nobody's.
//!
//! If the client floods the connection with resets, or sends malformed bytes, the gate stays open:
//! see [`Inbound::is_gating`].
//!
//! Nothing is lost by the wait: with bytes at hand the task is woken at once, otherwise the transport has its waker.

use std::{
    io,
    ops::Range,
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::{
    connection::{self, Connection},
    inbound::Inbound,
    preface::{self, Preface},
};

/// At most so much is read ahead: a DATA frame of the usual greatest size.
const BUFFER: usize = 16 * 1024;

/// Reads for a connection until that is known to be HTTP/1.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// As long as a read of the caller's until the protocol is decided; then nothing on HTTP/1, [`BUFFER`] on HTTP/2.
    buffer: Box<[u8]>,
    /// What of the buffer was read and not delivered.
    unread: Range<usize>,
    /// How reading ended, if it did behind what is unread.
    end: Option<io::Result<()>>,
    preface: Preface,
    inbound: Inbound,
    gate: Gate,
}

/// Whether the service is awaited.
#[derive(Clone, Copy, Debug, Default)]
enum Gate {
    /// A stream was opened, and nothing was read since.
    Closed,
    #[default]
    Open,
    /// A read was told to wait.
    Waited,
}

impl Reader {
    /// Whether the caller is to read from the transport itself: HTTP/1, with nothing left in the buffer.
    pub(super) fn is_done(&mut self, connection: &Connection) -> bool {
        let done = connection.protocol() == connection::Protocol::Http1 && self.unread.is_empty() && self.end.is_none();
        if done && !self.buffer.is_empty() {
            self.buffer = Box::default();
        }
        done
    }

    /// The next bytes to deliver, at most `room`; none at the end. They count as delivered.
    ///
    /// `poll_read` reads from the transport into a buffer, and says how much that was.
    pub(super) fn poll_read(
        &mut self,
        connection: &Arc<Connection>,
        cx: &mut Context<'_>,
        room: usize,
        poll_read: impl FnOnce(&mut Context<'_>, &mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<&[u8]>> {
        if room == 0 {
            return Poll::Ready(Ok(&[]));
        }
        let waits = self.waits(connection);
        if self.unread.is_empty() && self.end.is_none() {
            // What is decided to be HTTP/1 leaves nothing in the buffer this way.
            let undecided = connection.protocol() == connection::Protocol::Undecided;
            let most = if undecided { room.min(BUFFER) } else { BUFFER };
            ready!(self.poll_fill(connection, cx, most, poll_read));
        }
        if waits {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.unread.is_empty() {
            return Poll::Ready(self.end.take().unwrap_or(Ok(())).map(|()| &[][..]));
        }
        let start = self.unread.start;
        let offered = start..self.unread.end.min(start.saturating_add(room));
        self.unread.start += self.deliver(connection, offered);
        Poll::Ready(Ok(&self.buffer[start..self.unread.start]))
    }

    /// What was read and will not be delivered.
    pub(super) fn into_unread(self) -> Vec<u8> {
        self.buffer[self.unread].to_vec()
    }

    /// Whether this read is the one to wait for the service.
    fn waits(&mut self, connection: &Connection) -> bool {
        match self.gate {
            Gate::Closed if connection.is_untaken() => {
                self.gate = Gate::Waited;
                return true;
            }
            Gate::Waited => connection.take_back(),
            Gate::Closed | Gate::Open => {}
        }
        self.gate = Gate::Open;
        false
    }

    /// Ready once there is something unread, or an end.
    fn poll_fill(
        &mut self,
        connection: &Connection,
        cx: &mut Context<'_>,
        most: usize,
        poll_read: impl FnOnce(&mut Context<'_>, &mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<()> {
        if self.buffer.len() < most {
            self.buffer = vec![0; most].into_boxed_slice();
        }
        let Poll::Ready(outcome) = poll_read(cx, &mut self.buffer[..most]) else {
            self.inbound.paused();
            return Poll::Pending;
        };
        match outcome {
            Ok(0) => {
                // Responses go on behind a client that only stopped sending. One that never sent a whole preface was HTTP/1.
                if connection.protocol() == connection::Protocol::Undecided {
                    connection.decided(connection::Protocol::Http1);
                }
                self.end = Some(Ok(()));
            }
            Ok(read) => self.unread = 0..read,
            Err(error) => {
                connection.lost();
                self.end = Some(Err(error));
            }
        }
        Poll::Ready(())
    }

    /// How much of what is offered may be delivered.
    fn deliver(&mut self, connection: &Connection, offered: Range<usize>) -> usize {
        let bytes = &self.buffer[offered];
        let frames = match connection.protocol() {
            connection::Protocol::Http1 => return bytes.len(),
            connection::Protocol::Http2 => 0,
            connection::Protocol::Undecided => match self.preface.read(bytes) {
                preface::Protocol::Http1 => {
                    connection.decided(connection::Protocol::Http1);
                    return bytes.len();
                }
                preface::Protocol::Http2 { preface } => {
                    connection.decided(connection::Protocol::Http2);
                    preface
                }
                preface::Protocol::Undecided => return bytes.len(),
            },
        };
        let was_gating = self.inbound.is_gating();
        let delivery = self.inbound.deliver(&bytes[frames..], |stream, _| connection.reset(stream));
        if was_gating && !self.inbound.is_gating() {
            connection.stop_mapping();
        }
        if let Some(stream) = delivery.opened {
            connection.opened(stream);
            self.gate = Gate::Closed;
        }
        frames + delivery.bytes
    }
}

#[cfg(test)]
mod tests;
