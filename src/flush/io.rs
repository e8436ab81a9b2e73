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
    acknowledge::{Acknowledgements, FlushedResponse},
    connection::{Connection, Protocol},
    outbound::first_bytes,
    reader::Reader,
    stall::StallTimer,
    state::Completions,
    status_line::StatusLineScanner,
    tcp::{Progress, SocketOf},
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
/// On HTTP/1, reads and writes go straight through. On HTTP/2, it reads into a buffer of 16 KiB,
/// which lives as long as the connection.
///
/// When it is dropped or the transport fails, all responses that were not flushed are lost.
pub struct TrackedIo<T> {
    io: T,
    socket: SocketOf<T>,
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
            socket: SocketOf::unknown(),
            reader: Reader::default(),
            observer: Observer {
                connection,
                status_line: StatusLineScanner::default(),
                accepted: 0,
                stall: StallTimer::default(),
                acknowledgements: None,
            },
        }
    }

    /// Names the TCP socket below the transport, so that a response can [request] that its
    /// acknowledgement by the peer is reported. Linux only.
    ///
    /// `find` returns the socket, or `None` if this transport has none. All bytes of the transport
    /// must go to that socket, and nothing else may write to it. Layers in between, such as TLS,
    /// must have written everything to it when their flush succeeds. `find` is called only while a
    /// response waits for an acknowledgement, and once here. Call this method before the connection
    /// is served.
    ///
    /// ```
    /// # use std::os::fd::AsFd;
    /// # use hyper_util::rt::TokioIo;
    /// # use tokio::net::TcpStream;
    /// # use tower_offload::flush::Tracker;
    /// # fn track<S>(tracker: Tracker, stream: TcpStream, service: S) {
    /// let (io, service) = tracker.track(TokioIo::new(stream), service);
    /// let io = io.with_socket(|io| Some(io.inner().as_fd()));
    /// # }
    /// ```
    ///
    /// [request]: crate::AfterResponse::request_acknowledgement
    #[cfg(target_os = "linux")]
    pub fn with_socket(self, find: fn(&T) -> Option<std::os::fd::BorrowedFd<'_>>) -> Self {
        if find(&self.io).is_some() {
            self.observer.connection.set_socket_known();
        }
        Self { socket: SocketOf::new(find), ..self }
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

    /// To be called after each poll of the transport whose result may let the task sleep, or be the
    /// last one. Checks the responses that wait for an acknowledgement.
    fn poll_acknowledged<U>(&mut self, cx: &mut Context<'_>, result: &Poll<io::Result<U>>) {
        let Self { io, socket, observer, .. } = self;
        if let Some(acknowledgements) = &mut observer.acknowledgements {
            let has_failed = matches!(result, Poll::Ready(Err(_)));
            acknowledgements.poll(cx, has_failed, &observer.connection, || socket.progress(io));
        }
    }

    /// Shuts down the transport with `shut_down`. Then the responses that wait for an
    /// acknowledgement delay the result, because the socket is closed after it.
    fn poll_shutdown_acknowledged(
        &mut self,
        cx: &mut Context<'_>,
        shut_down: impl FnOnce(&mut T, &mut Context<'_>) -> Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        let is_shut_down = self.observer.acknowledgements.as_ref().is_some_and(|waiting| waiting.is_shut_down());
        let mut result = Poll::Ready(Ok(()));
        if !is_shut_down {
            let shutdown = shut_down(&mut self.io, cx);
            result = self.observer.on_shutdown(cx, shutdown);
        }
        self.poll_acknowledged(cx, &result);
        match &self.observer.acknowledgements {
            Some(acknowledgements) if !acknowledgements.is_empty() && matches!(result, Poll::Ready(Ok(()))) => {
                Poll::Pending
            }
            _ => result,
        }
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
    /// `None` before the first response that requests an acknowledgement.
    acknowledgements: Option<Box<Acknowledgements>>,
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
    /// `progress` reads how far the socket is.
    fn on_flush(
        &mut self,
        cx: &mut Context<'_>,
        is_awaited: bool,
        result: Poll<io::Result<()>>,
        progress: impl FnOnce() -> Option<Progress>,
    ) -> Poll<io::Result<()>> {
        self.check(cx, &result);
        ready!(result)?;
        if !is_awaited {
            return Poll::Ready(Ok(()));
        }
        if self.connection.protocol() == Protocol::Http2 {
            let (_, responses) = self.connection.end_flush();
            self.acknowledge(responses, progress);
        } else if self.status_line.has_begun() {
            // The head of a response with an open body was accepted before this flush, perhaps in
            // one write with the end of a response that was flushed now.
            let (has_open_body, responses) = self.connection.end_flush();
            if !has_open_body {
                self.status_line.reset();
            }
            self.acknowledge(responses, progress);
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
        if let (Some(acknowledgements), Poll::Ready(Ok(()))) = (&mut self.acknowledgements, &result) {
            acknowledgements.shut_down();
        }
        result
    }

    /// Lets responses that were flushed just now wait for an acknowledgement.
    fn acknowledge(&mut self, responses: Vec<FlushedResponse>, progress: impl FnOnce() -> Option<Progress>) {
        if responses.is_empty() {
            return;
        }
        // If fewer bytes were written than the transport has accepted, it is another socket, or one
        // that does not count as Linux does.
        let progress = progress().filter(|progress| progress.written >= self.accepted);
        let mut completions = Completions::default();
        self.acknowledgements.get_or_insert_default().add(responses, progress, &mut completions);
        self.connection.complete_flushed(completions);
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
        if let Some(acknowledgements) = &mut self.acknowledgements {
            acknowledgements.give_up(&self.connection);
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for TrackedIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Self { io, reader, observer, .. } = this;
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
        let result = observer.on_read(cx, result);
        this.poll_acknowledged(cx, &result);
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for TrackedIo<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write(cx, bytes);
        let result = this.observer.on_write(cx, &[IoSlice::new(bytes)], result);
        this.poll_acknowledged(cx, &result);
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
        let result = this.observer.on_write(cx, slices, result);
        this.poll_acknowledged(cx, &result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Self { io, socket, observer, .. } = this;
        let is_awaited = observer.connection.begin_flush();
        let result = Pin::new(&mut *io).poll_flush(cx);
        let result = observer.on_flush(cx, is_awaited, result, || socket.progress(io));
        this.poll_acknowledged(cx, &result);
        result
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_shutdown_acknowledged(cx, |io, cx| Pin::new(io).poll_shutdown(cx))
    }
}

impl<T: Read + Unpin> Read for TrackedIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Self { io, reader, observer, .. } = this;
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
        let result = observer.on_read(cx, result);
        this.poll_acknowledged(cx, &result);
        result
    }
}

impl<T: Write + Unpin> Write for TrackedIo<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write(cx, bytes);
        let result = this.observer.on_write(cx, &[IoSlice::new(bytes)], result);
        this.poll_acknowledged(cx, &result);
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
        let result = this.observer.on_write(cx, slices, result);
        this.poll_acknowledged(cx, &result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Self { io, socket, observer, .. } = this;
        let is_awaited = observer.connection.begin_flush();
        let result = Pin::new(&mut *io).poll_flush(cx);
        let result = observer.on_flush(cx, is_awaited, result, || socket.progress(io));
        this.poll_acknowledged(cx, &result);
        result
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_shutdown_acknowledged(cx, |io, cx| Pin::new(io).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests;
