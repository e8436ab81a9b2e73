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
    connection::{Connection, Flush},
    reader::Reader,
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
struct Tracked(Arc<Connection>);

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
        Self { io, reader: Reader::default(), tracked: Tracked(connection) }
    }

    /// The transport: its address, its options. Reading or writing there would be seen by nobody, which is why there is no
    /// `get_mut`.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    #[cfg(feature = "axum")]
    pub(crate) fn connection(&self) -> Arc<Connection> {
        self.tracked.0.clone()
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
            .field("protocol", &self.tracked.0.protocol())
            .finish_non_exhaustive()
    }
}

/// What became of a call to the transport, passed on as it is.
impl Tracked {
    fn read<U>(&self, outcome: Poll<io::Result<U>>) -> Poll<io::Result<U>> {
        self.failed(&outcome);
        outcome
    }

    fn written(&self, slices: &[IoSlice<'_>], outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.failed(&outcome);
        let accepted = ready!(outcome)?;
        self.0.accepted(slices, accepted);
        Poll::Ready(Ok(accepted))
    }

    fn flushed(&self, flush: Flush, outcome: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        self.failed(&outcome);
        ready!(outcome)?;
        self.0.flushed(flush);
        Poll::Ready(Ok(()))
    }

    fn failed<U>(&self, outcome: &Poll<io::Result<U>>) {
        if matches!(outcome, Poll::Ready(Err(_))) {
            self.0.lost();
        }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.0.lost();
    }
}

#[cfg(test)]
mod tests;
