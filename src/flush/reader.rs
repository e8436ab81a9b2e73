//! The read gate: decides which bytes of the client are delivered, and when.
//!
//! HTTP/1 is read directly. HTTP/2 is read into a buffer, and delivered up to the end of each
//! header block that opens a stream. Then the gate is closed:
//!
//! 1. The next read returns `Pending`. h2 reads until it must wait, so it has decoded the block by
//!    then and the request is in its queue. h2 and hyper pass it to the service before they read
//!    again ([`inbound`](super::inbound) names the lines).
//! 2. The read after that finds the stream taken. If it was not taken, the request was malformed or
//!    refused, and the stream belongs to no request.
//!
//! If the client floods the connection with resets, or sends malformed bytes, the gate stays open:
//! see [`Inbound::is_gating`].
//!
//! No wake-up is lost: if bytes are buffered the task is woken at once, otherwise the transport has
//! its waker.

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

/// The maximum number of bytes read ahead: the default maximum size of a DATA frame.
const MAX_BUFFER: usize = 16 * 1024;

/// Reads for a connection until it is known to be HTTP/1.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Empty at first and on HTTP/1. While the protocol is undecided, as long as the buffer of the
    /// caller. On HTTP/2, [`MAX_BUFFER`].
    buffer: Box<[u8]>,
    /// The part of the buffer that was read and not delivered.
    unread: Range<usize>,
    /// The end of the stream or an error, to be delivered after `unread`.
    end: Option<io::Result<()>>,
    preface: Preface,
    inbound: Inbound,
    gate: Gate,
}

/// Whether reads wait for the service.
#[derive(Clone, Copy, Debug, Default)]
enum Gate {
    #[default]
    Open,
    /// A stream was opened, and nothing was read since.
    Closed,
    /// A read returned `Pending` for the service.
    Waited,
}

impl Reader {
    /// Returns `true` if the caller reads from the transport directly: on HTTP/1, with nothing left
    /// in the buffer.
    pub(super) fn is_done(&mut self, connection: &Connection) -> bool {
        let done = connection.protocol() == connection::Protocol::Http1 && self.unread.is_empty() && self.end.is_none();
        if done && !self.buffer.is_empty() {
            self.buffer = Box::default();
        }
        done
    }

    /// Returns the next bytes to deliver, at most `room`, and none at the end. They count as
    /// delivered.
    ///
    /// `poll_read` reads from the transport into a buffer, and returns the number of bytes.
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
            // With the caller's size, nothing is left in the buffer once the protocol is HTTP/1.
            let undecided = connection.protocol() == connection::Protocol::Undecided;
            let limit = if undecided { room.min(MAX_BUFFER) } else { MAX_BUFFER };
            ready!(self.poll_fill(connection, cx, limit, poll_read));
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

    /// Returns the bytes that were read and not delivered.
    pub(super) fn into_unread(self) -> Vec<u8> {
        self.buffer[self.unread].to_vec()
    }

    /// Returns `true` if this read must wait for the service.
    fn waits(&mut self, connection: &Connection) -> bool {
        match self.gate {
            Gate::Closed if connection.has_pending_stream() => {
                self.gate = Gate::Waited;
                return true;
            }
            Gate::Waited => connection.reclaim_stream(),
            Gate::Closed | Gate::Open => {}
        }
        self.gate = Gate::Open;
        false
    }

    /// Reads from the transport until there is something unread, or an end.
    fn poll_fill(
        &mut self,
        connection: &Connection,
        cx: &mut Context<'_>,
        limit: usize,
        poll_read: impl FnOnce(&mut Context<'_>, &mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<()> {
        if self.buffer.len() < limit {
            self.buffer = vec![0; limit].into_boxed_slice();
        }
        let Poll::Ready(result) = poll_read(cx, &mut self.buffer[..limit]) else {
            self.inbound.pause();
            return Poll::Pending;
        };
        match result {
            Ok(0) => {
                // The client may only have stopped sending, so responses are still followed. A
                // client that did not send a whole preface is treated as HTTP/1.
                if connection.protocol() == connection::Protocol::Undecided {
                    connection.set_protocol(connection::Protocol::Http1);
                }
                self.end = Some(Ok(()));
            }
            Ok(read) => self.unread = 0..read,
            Err(error) => {
                connection.lose();
                self.end = Some(Err(error));
            }
        }
        Poll::Ready(())
    }

    /// Returns the number of offered bytes that may be delivered.
    fn deliver(&mut self, connection: &Connection, offered: Range<usize>) -> usize {
        let bytes = &self.buffer[offered];
        let frames = match connection.protocol() {
            connection::Protocol::Http1 => return bytes.len(),
            connection::Protocol::Http2 => 0,
            connection::Protocol::Undecided => match self.preface.read(bytes) {
                preface::Protocol::Http1 => {
                    connection.set_protocol(connection::Protocol::Http1);
                    return bytes.len();
                }
                preface::Protocol::Http2 { preface } => {
                    connection.set_protocol(connection::Protocol::Http2);
                    preface
                }
                preface::Protocol::Undecided => return bytes.len(),
            },
        };
        let was_gating = self.inbound.is_gating();
        let delivery = self.inbound.deliver(&bytes[frames..], |stream, _| connection.reset_stream(stream));
        if was_gating && !self.inbound.is_gating() {
            connection.stop_mapping();
        }
        if let Some(stream) = delivery.opened {
            connection.open_stream(stream);
            self.gate = Gate::Closed;
        }
        frames + delivery.bytes
    }
}

#[cfg(test)]
mod tests;
