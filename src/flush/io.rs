use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    connection::{Connection, Protocol},
    outbound::first_bytes,
    reader::Reader,
    stall::StallTimer,
    status_line::StatusLineScanner,
};

/// A transport that observes its bytes to find out which responses were flushed on it.
///
/// It implements tokio's `AsyncRead` and `AsyncWrite` if `T` does, and hyper's `Read` and `Write`
/// if `T` does. It does not change the bytes, except that it appends a field with the identifier of
/// the stream to each HTTP/2 request, which [`TrackedService`](super::TrackedService) removes.
///
/// It belongs directly below the HTTP implementation and above TLS: it must see the plain bytes,
/// and a flush of TLS includes the socket's.
///
/// On HTTP/1, reads and writes go straight through. On HTTP/2, it reads into a buffer of 16 KiB that
/// lives as long as the connection.
///
/// When it is dropped or the transport fails, all responses that were not flushed are lost.
pub struct TrackedIo<T> {
    io: T,
    reader: Reader,
    observer: Observer,
}

/// The parts of a [`TrackedIo`]. See [`TrackedIo::into_parts`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Parts<T> {
    /// The transport.
    pub io: T,
    /// Bytes read from the transport and not yet returned to the caller. They come before anything
    /// that is read from `io`. Always empty on HTTP/1.
    pub read_buf: Bytes,
}

impl<T> TrackedIo<T> {
    /// Wraps a transport from which nothing was read.
    pub(crate) fn new(io: T, connection: Arc<Connection>) -> Self {
        Self {
            io,
            reader: Reader::default(),
            observer: Observer {
                connection,
                status_line: StatusLineScanner::default(),
                accepted: 0,
                stall: StallTimer::default(),
            },
        }
    }

    /// Returns a reference to the transport, to read its address and options.
    ///
    /// There is no `get_mut`, because bytes that are read or written directly would not be
    /// observed.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    #[cfg(feature = "axum")]
    pub(crate) fn connection(&self) -> Arc<Connection> {
        self.observer.connection.clone()
    }

    /// Ends tracking and returns the transport, for example after an upgrade to another protocol.
    /// This is optional, because an upgraded HTTP/1 connection goes straight through.
    ///
    /// Responses that were not flushed are lost.
    pub fn into_parts(self) -> Parts<T> {
        Parts { io: self.io, read_buf: self.reader.into_unread().into() }
    }
}

impl<T: fmt::Debug> fmt::Debug for TrackedIo<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedIo")
            .field("io", &self.io)
            .field("protocol", &self.observer.connection.protocol())
            .finish_non_exhaustive()
    }
}

/// Reports the results of the transport's methods to the connection, and passes them on unchanged.
struct Observer {
    connection: Arc<Connection>,
    status_line: StatusLineScanner,
    /// The number of bytes that the transport has accepted.
    accepted: u64,
    stall: StallTimer,
}

impl Observer {
    fn on_read<U>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<U>>) -> Poll<io::Result<U>> {
        self.check(cx, &result);
        result
    }

    fn on_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.check(cx, &result);
        let accepted = ready!(result)?;
        self.accepted = self.accepted.saturating_add(accepted as u64);
        self.connection.accept(slices, accepted);
        if self.connection.protocol() != Protocol::Http2 {
            first_bytes(slices, accepted).for_each(|accepted| self.status_line.accept(accepted));
            // A body is open, but its head was not seen: the scanner has lost its position.
            if self.status_line.is_tunnel() && self.connection.has_open_body() {
                self.connection.give_up();
            }
        }
        Poll::Ready(Ok(accepted))
    }

    /// `is_awaited` is the result of [`Connection::begin_flush`] before this poll of the flush.
    fn on_flush(
        &mut self,
        cx: &mut Context<'_>,
        is_awaited: bool,
        result: Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        self.check(cx, &result);
        ready!(result)?;
        if !is_awaited {
            return Poll::Ready(Ok(()));
        }
        if self.connection.protocol() == Protocol::Http2 {
            self.connection.end_flush();
        } else if self.status_line.has_begun() {
            // The head of a response with an open body was accepted before this flush, perhaps in
            // one write with the end of a response that was flushed now.
            let has_open_body = self.connection.end_flush();
            if !has_open_body {
                self.status_line.reset();
            }
        } else if self.status_line.is_tunnel() {
            self.connection.lose_flushing();
        }
        // Otherwise the server had nothing to write. HTTP/1 servers flush then as well.
        Poll::Ready(Ok(()))
    }

    /// A shutdown is not a flush: the server may still hold bytes, as hyper 1.6 does, and 1.12 with
    /// `pipeline_flush`. A server that holds none has flushed before.
    fn on_shutdown(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        self.check(cx, &result);
        result
    }

    fn check<U>(&mut self, cx: &mut Context<'_>, result: &Poll<io::Result<U>>) {
        match result {
            Poll::Pending => self.stall.poll(&self.connection, self.accepted, cx),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(_)) => self.connection.lose(),
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.connection.lose();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for TrackedIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { io, reader, observer } = self.get_mut();
        let result = if reader.is_done(&observer.connection) {
            Pin::new(io).poll_read(cx, buffer)
        } else {
            let room = buffer.remaining();
            let put = |bytes: &[u8]| buffer.put_slice(bytes);
            reader.poll_read(&observer.connection, cx, room, put, |cx, into| {
                let mut into = ReadBuf::new(into);
                ready!(Pin::new(&mut *io).poll_read(cx, &mut into))?;
                Poll::Ready(Ok(into.filled().len()))
            })
        };
        observer.on_read(cx, result)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for TrackedIo<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { io, observer, .. } = self.get_mut();
        let result = Pin::new(io).poll_write(cx, bytes);
        observer.on_write(cx, &[IoSlice::new(bytes)], result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { io, observer, .. } = self.get_mut();
        let result = Pin::new(io).poll_write_vectored(cx, slices);
        observer.on_write(cx, slices, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, observer, .. } = self.get_mut();
        let is_awaited = observer.connection.begin_flush();
        let result = Pin::new(io).poll_flush(cx);
        observer.on_flush(cx, is_awaited, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, observer, .. } = self.get_mut();
        let result = Pin::new(io).poll_shutdown(cx);
        observer.on_shutdown(cx, result)
    }
}

impl<T: Read + Unpin> Read for TrackedIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let Self { io, reader, observer } = self.get_mut();
        let result = if reader.is_done(&observer.connection) {
            Pin::new(io).poll_read(cx, buffer)
        } else {
            let room = buffer.remaining();
            let put = |bytes: &[u8]| buffer.put_slice(bytes);
            reader.poll_read(&observer.connection, cx, room, put, |cx, into| {
                let mut into = hyper::rt::ReadBuf::new(into);
                ready!(Pin::new(&mut *io).poll_read(cx, into.unfilled()))?;
                Poll::Ready(Ok(into.filled().len()))
            })
        };
        observer.on_read(cx, result)
    }
}

impl<T: Write + Unpin> Write for TrackedIo<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { io, observer, .. } = self.get_mut();
        let result = Pin::new(io).poll_write(cx, bytes);
        observer.on_write(cx, &[IoSlice::new(bytes)], result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { io, observer, .. } = self.get_mut();
        let result = Pin::new(io).poll_write_vectored(cx, slices);
        observer.on_write(cx, slices, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, observer, .. } = self.get_mut();
        let is_awaited = observer.connection.begin_flush();
        let result = Pin::new(io).poll_flush(cx);
        observer.on_flush(cx, is_awaited, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, observer, .. } = self.get_mut();
        let result = Pin::new(io).poll_shutdown(cx);
        observer.on_shutdown(cx, result)
    }
}

#[cfg(test)]
mod tests;
