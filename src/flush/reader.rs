//! Reads for a connection until it is known to be HTTP/1.
//!
//! HTTP/1 is read directly. HTTP/2 is read into a buffer, and delivered with the field that
//! [`inbound`](super::inbound) appends to each request. Whatever has arrived is delivered at once,
//! apart from a part of a frame header.

use std::{
    io, mem,
    ops::Range,
    task::{Context, Poll, ready},
};

use super::{
    connection::{self, Connection},
    inbound::{Delivery, Inbound},
    preface::{self, Preface},
};

/// The length of the buffer: the default maximum size of a DATA frame.
const MAX_BUFFER: usize = 16 * 1024;

#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Empty at first and on HTTP/1. While the protocol is undecided, as long as the buffer of the
    /// caller. On HTTP/2, [`MAX_BUFFER`].
    buffer: Box<[u8]>,
    /// The part of the buffer that was not delivered.
    unread: Range<usize>,
    /// The end of the stream was read, and not delivered.
    ended: bool,
    preface: Preface,
    inbound: Inbound,
}

impl Reader {
    /// Returns `true` if the caller reads from the transport directly: on HTTP/1, with nothing left
    /// in the buffer.
    pub(super) fn is_done(&mut self, connection: &Connection) -> bool {
        let done = connection.protocol() == connection::Protocol::Http1 && self.unread.is_empty() && !self.ended;
        if done && !self.buffer.is_empty() {
            self.buffer = Box::default();
        }
        done
    }

    /// Delivers bytes to `put`, at least one and at most `room`, and none at the end.
    ///
    /// `poll_read` reads from the transport into a buffer, and returns the number of bytes.
    pub(super) fn poll_read(
        &mut self,
        connection: &Connection,
        cx: &mut Context<'_>,
        room: usize,
        mut put: impl FnMut(&[u8]),
        mut poll_read: impl FnMut(&mut Context<'_>, &mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        if room == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let delivered = self.deliver(connection, room, &mut put);
            if delivered > 0 || mem::take(&mut self.ended) {
                return Poll::Ready(Ok(()));
            }
            // With the caller's size, nothing is left in the buffer once the protocol is HTTP/1.
            let undecided = connection.protocol() == connection::Protocol::Undecided;
            let limit = if undecided { room.min(MAX_BUFFER) } else { MAX_BUFFER };
            if self.buffer.len() < limit {
                self.buffer = vec![0; limit].into_boxed_slice();
            }
            match ready!(poll_read(cx, &mut self.buffer[..limit])) {
                Ok(0) => {
                    // The client may only have stopped sending, so responses are still followed. A
                    // client that did not send a whole preface is treated as HTTP/1.
                    if undecided {
                        connection.set_protocol(connection::Protocol::Http1);
                    }
                    self.inbound.finish();
                    self.ended = true;
                }
                Ok(read) => self.unread = 0..read,
                Err(error) => {
                    connection.lose();
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    /// Returns the bytes that were read and not delivered.
    pub(super) fn into_unread(self) -> Vec<u8> {
        [self.inbound.into_undelivered(), self.buffer[self.unread].to_vec()].concat()
    }

    /// Delivers buffered bytes, and returns their number.
    fn deliver(&mut self, connection: &Connection, room: usize, put: &mut impl FnMut(&[u8])) -> usize {
        let mut bytes = &self.buffer[self.unread.clone()];
        if connection.protocol() == connection::Protocol::Http2 {
            if bytes.is_empty() && !self.inbound.has_undelivered() {
                return 0;
            }
            let Delivery { read, delivered } = connection.read(&mut self.inbound, bytes, room, put);
            self.unread.start += read;
            return delivered;
        }
        if connection.protocol() == connection::Protocol::Undecided {
            match self.preface.read(bytes) {
                preface::Protocol::Http1 => connection.set_protocol(connection::Protocol::Http1),
                preface::Protocol::Http2 { preface } => {
                    connection.set_protocol(connection::Protocol::Http2);
                    bytes = &bytes[..preface];
                }
                preface::Protocol::Undecided => {}
            }
        }
        // There is room, because no more than that was read.
        put(bytes);
        self.unread.start += bytes.len();
        bytes.len()
    }
}

#[cfg(test)]
mod tests;
