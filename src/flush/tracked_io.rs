//! The transport of a connection, wrapped.

mod hyper;
mod tokio;

use std::{
    fmt,
    io::{self, IoSlice},
    sync::Arc,
    task::{Poll, ready},
};

use bytes::Bytes;

use super::{
    connection::{Connection, Flush, Protocol},
    heads::Heads,
    reader::Reader,
    slices,
};

/// A transport whose bytes are watched, to learn which responses have been flushed on it.
///
/// It implements tokio's `AsyncRead` and `AsyncWrite` if `T` does, and hyper's `Read` and `Write` if `T` does. The bytes are
/// the same with it and without it.
///
/// It belongs directly below the HTTP implementation, above TLS: it has to see the plain bytes, and a flush of TLS includes
/// the socket's.
///
/// On HTTP/1 reads and writes go straight through. On HTTP/2 it reads at most 16 KiB ahead, a buffer that it keeps as long as
/// the connection lives, and delivers one new request at a time: with more at hand it wakes its task at once.
///
/// Whatever is not flushed when it is dropped, or when the transport fails, is lost.
pub struct TrackedIo<T> {
    io: T,
    reader: Reader,
    tracked: Tracked,
}

/// The transport's hold on its connection: with it go all responses that are still open.
struct Tracked {
    connection: Arc<Connection>,
    heads: Heads,
}

/// What a [`TrackedIo`] was made of; see [`TrackedIo::into_parts`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Parts<T> {
    /// The transport.
    pub io: T,
    /// What was read from the transport and nobody has got yet. To be read before anything else that comes from `io`. Always
    /// empty on HTTP/1.
    pub read_buf: Bytes,
}

impl<T> TrackedIo<T> {
    /// Wraps a transport that nobody has read from.
    pub(crate) fn new(io: T, connection: Arc<Connection>) -> Self {
        Self { io, reader: Reader::default(), tracked: Tracked { connection, heads: Heads::default() } }
    }

    /// The transport: its address, its options. Reading or writing there would be seen by nobody, which is why there is no
    /// `get_mut`.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    #[cfg(feature = "axum")]
    pub(crate) fn connection(&self) -> Arc<Connection> {
        self.tracked.connection.clone()
    }

    /// Ends tracking and gives the transport back, as after an upgrade to another protocol. That is a choice and not a need:
    /// an upgraded HTTP/1 connection goes straight through.
    ///
    /// Responses that are not flushed by now are lost.
    pub fn into_parts(self) -> Parts<T> {
        Parts { io: self.io, read_buf: self.reader.into_unread().into() }
    }
}

impl<T: fmt::Debug> fmt::Debug for TrackedIo<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedIo")
            .field("io", &self.io)
            .field("protocol", &self.tracked.connection.protocol())
            .finish_non_exhaustive()
    }
}

/// What became of a call to the transport, passed on as it is.
impl Tracked {
    fn read<U>(&self, outcome: Poll<io::Result<U>>) -> Poll<io::Result<U>> {
        self.failed(&outcome);
        outcome
    }

    fn written(&mut self, slices: &[IoSlice<'_>], outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.failed(&outcome);
        let accepted = ready!(outcome)?;
        self.connection.accepted(slices, accepted);
        if self.connection.protocol() != Protocol::Http2 {
            slices::first(slices, accepted).for_each(|accepted| self.heads.accepted(accepted));
            // A body in progress whose head was not seen: the scanner has lost its place.
            if self.heads.is_tunnel() && self.connection.has_open_body() {
                self.connection.give_up();
            }
        }
        Poll::Ready(Ok(accepted))
    }

    fn flushed(&mut self, flush: Flush, outcome: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        self.failed(&outcome);
        ready!(outcome)?;
        if !flush.is_awaited() {
            return Poll::Ready(Ok(()));
        }
        if self.connection.protocol() == Protocol::Http2 {
            self.connection.flushed(flush);
        } else if self.heads.has_begun() {
            self.connection.flushed(flush);
            // The head of a response in progress was accepted before this flush, perhaps in one
            // write with the end of a response that has just been flushed.
            if !self.connection.has_open_body() {
                self.heads.reset();
            }
        } else if self.heads.is_tunnel() {
            self.connection.flushed_unwritten(flush);
        }
        // Otherwise the server had nothing to write, which HTTP/1 servers flush as well.
        Poll::Ready(Ok(()))
    }

    /// No flush: a server may shut down over bytes that it still holds, as hyper 1.6 does, and 1.12 with `pipeline_flush`. Where
    /// it holds none, it has flushed before.
    fn shut_down(&self, outcome: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        self.failed(&outcome);
        outcome
    }

    fn failed<U>(&self, outcome: &Poll<io::Result<U>>) {
        if matches!(outcome, Poll::Ready(Err(_))) {
            self.connection.lost();
        }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.connection.lost();
    }
}

#[cfg(test)]
mod tests;
