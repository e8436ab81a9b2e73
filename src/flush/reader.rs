//! The read gate: decides which bytes of the client are delivered, and when.
//!
//! HTTP/1 is read directly. HTTP/2 is read into a buffer, and delivered up to the end of each
//! header block that opens a stream, unless the stream is reset in the bytes that follow. Then the
//! gate is closed:
//!
//! 1. The next read returns `Pending`. h2 reads until it must wait, so it has decoded the block by
//!    then and the request is in its queue. h2 and hyper pass it to the service before they read
//!    again ([`inbound`](super::inbound) names the lines).
//! 2. The read after that finds the stream taken. If it was not taken, the request was malformed or
//!    refused, and the stream belongs to no request.
//!
//! To find the reset of a stream, the reader looks ahead: it delivers a header block only together
//! with [`LOOKAHEAD`] bytes behind it in the buffer, or all that have arrived.
//! [`inbound`](super::inbound) says why, and how requests that were reset are kept from the streams
//! of others.
//!
//! If the client floods the connection with resets, or sends malformed bytes, the gate stays open:
//! see [`Inbound::is_gating`].
//!
//! No wake-up is lost: if bytes are buffered the task is woken at once, otherwise the transport has
//! its waker.

use std::{
    io, mem,
    ops::Range,
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::{
    connection::{self, Connection},
    inbound::Inbound,
    lookahead::{LOOKAHEAD, Lookahead},
    preface::{self, Preface},
};

/// The maximum number of bytes read ahead: the default maximum size of a DATA frame, and more than
/// [`LOOKAHEAD`].
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
    /// Has read `buffer` up to the end of `unread`.
    lookahead: Lookahead,
    inbound: Inbound,
    /// [`Inbound::expects_resets`], as the connection knows it.
    expects_resets: bool,
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
        mut poll_read: impl FnMut(&mut Context<'_>, &mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<&[u8]>> {
        if room == 0 {
            return Poll::Ready(Ok(&[]));
        }
        let delivered = ready!(self.poll_deliver(connection, cx, room, &mut poll_read))?;
        Poll::Ready(Ok(&self.buffer[delivered]))
    }

    fn poll_deliver(
        &mut self,
        connection: &Arc<Connection>,
        cx: &mut Context<'_>,
        room: usize,
        poll_read: &mut impl FnMut(&mut Context<'_>, &mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<Range<usize>>> {
        self.share_resets(connection);
        let waits = self.waits(connection);
        if self.unread.is_empty() && self.end.is_none() {
            // With the caller's size, nothing is left in the buffer once the protocol is HTTP/1.
            let undecided = connection.protocol() == connection::Protocol::Undecided;
            let limit = if undecided { room.min(MAX_BUFFER) } else { MAX_BUFFER };
            if self.poll_fill(connection, cx, 0..limit, poll_read).is_pending() {
                self.inbound.pause();
                self.inbound.accept_one();
                return Poll::Pending;
            }
        }
        if self.unread.is_empty() && matches!(self.end, Some(Err(_))) {
            connection.lose();
        }
        if waits {
            return self.wait(cx);
        }
        if self.unread.is_empty() {
            return Poll::Ready(self.end.take().unwrap_or(Ok(())).map(|()| 0..0));
        }
        self.look_ahead(connection, cx, poll_read);
        let Range { start, mut end } = self.unread;
        if self.unread.len() > LOOKAHEAD && self.end.is_none() && self.is_short(connection) {
            end -= LOOKAHEAD;
        }
        let offered = start..end.min(start.saturating_add(room));
        self.unread.start += self.deliver(connection, offered);
        self.share_resets(connection);
        let delivered = start..self.unread.start;
        // No bytes would mean the end of the stream.
        if delivered.is_empty() { self.wait(cx) } else { Poll::Ready(Ok(delivered)) }
    }

    /// Returns `Pending` so that h2 accepts a stream before it reads again.
    fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        cx.waker().wake_by_ref();
        self.inbound.accept_one();
        Poll::Pending
    }

    /// Lets the connection know whether h2 passes on requests that were reset.
    fn share_resets(&mut self, connection: &Connection) {
        let expects_resets = self.inbound.expects_resets();
        if expects_resets != self.expects_resets {
            self.expects_resets = expects_resets;
            connection.expect_resets(expects_resets);
        }
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

    /// Reads ahead of a header block that opens a stream, if too little behind it is buffered.
    fn look_ahead(
        &mut self,
        connection: &Connection,
        cx: &mut Context<'_>,
        poll_read: &mut impl FnMut(&mut Context<'_>, &mut [u8]) -> Poll<io::Result<usize>>,
    ) {
        while self.unread.len() <= LOOKAHEAD && self.end.is_none() && self.is_short(connection) {
            // Moves at most as many bytes as were delivered since the last move.
            if self.unread.start >= self.unread.len() {
                self.buffer.copy_within(self.unread.clone(), 0);
                self.unread = 0..self.unread.len();
            }
            if self.poll_fill(connection, cx, self.unread.end..MAX_BUFFER, poll_read).is_pending() {
                return;
            }
        }
    }

    /// Returns `true` if a header block in the buffer has less behind it than the lookahead needs.
    fn is_short(&self, connection: &Connection) -> bool {
        connection.protocol() == connection::Protocol::Http2
            && self.inbound.is_gating()
            && self.lookahead.is_short(self.unread.len())
    }

    /// Reads from the transport into this part of the buffer, which follows the unread bytes, until
    /// there is more to deliver or an end.
    fn poll_fill(
        &mut self,
        connection: &Connection,
        cx: &mut Context<'_>,
        part: Range<usize>,
        poll_read: &mut impl FnMut(&mut Context<'_>, &mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<()> {
        if self.buffer.len() < part.end {
            let mut longer = mem::take(&mut self.buffer).into_vec();
            longer.resize(part.end, 0);
            self.buffer = longer.into_boxed_slice();
        }
        match ready!(poll_read(cx, &mut self.buffer[part.clone()])) {
            Ok(0) => {
                // The client may only have stopped sending, so responses are still followed. A
                // client that did not send a whole preface is treated as HTTP/1.
                if connection.protocol() == connection::Protocol::Undecided {
                    connection.set_protocol(connection::Protocol::Http1);
                }
                self.end = Some(Ok(()));
            }
            Ok(read) => {
                let filled = part.start..part.start + read;
                if self.unread.is_empty() {
                    self.unread.start = filled.start;
                }
                self.unread.end = filled.end;
                if connection.protocol() == connection::Protocol::Http2 {
                    self.scan(filled);
                }
            }
            Err(error) => self.end = Some(Err(error)),
        }
        Poll::Ready(())
    }

    /// Shows a new part of the buffer to the lookahead.
    fn scan(&mut self, part: Range<usize>) {
        if self.inbound.is_gating() {
            self.lookahead.scan(&self.buffer[part], self.inbound.highest());
        }
    }

    /// Returns the number of offered bytes that may be delivered.
    fn deliver(&mut self, connection: &Connection, offered: Range<usize>) -> usize {
        let bytes = &self.buffer[offered.clone()];
        match connection.protocol() {
            connection::Protocol::Http1 => return bytes.len(),
            connection::Protocol::Http2 => {}
            connection::Protocol::Undecided => match self.preface.read(bytes) {
                preface::Protocol::Http1 => {
                    connection.set_protocol(connection::Protocol::Http1);
                    return bytes.len();
                }
                preface::Protocol::Http2 { preface } => {
                    connection.set_protocol(connection::Protocol::Http2);
                    // The frames behind it are delivered by later reads, which look ahead.
                    self.scan(offered.start + preface..self.unread.end);
                    return preface;
                }
                preface::Protocol::Undecided => return bytes.len(),
            },
        }
        let was_gating = self.inbound.is_gating();
        let delivery = self.inbound.deliver(bytes, &mut self.lookahead, |stream, _| connection.reset_stream(stream));
        if was_gating && !self.inbound.is_gating() {
            connection.stop_mapping();
        }
        if let Some(stream) = delivery.opened {
            connection.open_stream(stream);
            self.gate = Gate::Closed;
        }
        delivery.bytes
    }
}

#[cfg(test)]
mod tests;
