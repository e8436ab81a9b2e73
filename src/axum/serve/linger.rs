//! Reads the rest of a request before the connection is closed.
//!
//! On HTTP/1, hyper closes the connection behind a response whose request was not read to its end.
//! A kernel that closes a socket with unread bytes resets it, and a client whose socket was reset
//! may lose a response that it has not read yet (RFC 9112, section 9.6). So the transport first
//! shuts down its sending side. Then it reads and discards what the client still sends, within
//! a time limit.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

#[cfg(target_os = "linux")]
use crate::flush::FindSocket;

/// The maximum time between the end of the response and the close of the connection. The client has
/// seen the end of the response after a round trip, and needs time to read what its kernel holds.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum number of bytes that are discarded. A client that sends more than this without
/// reading its response does not read it at all.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// State that a connection, its transport and its service share.
#[derive(Clone, Default)]
pub(super) struct Flags(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// The last request has a body that was not read to its end.
    is_unread: AtomicBool,
    /// Responses on HTTP/1 are the last ones of the connection.
    is_draining: AtomicBool,
}

impl Flags {
    /// Makes the next response on HTTP/1 the last one.
    pub(super) fn drain(&self) {
        self.0.is_draining.store(true, Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.0.is_draining.load(Relaxed)
    }

    fn is_unread(&self) -> bool {
        self.0.is_unread.load(Relaxed)
    }

    /// Observes the body of the next request.
    pub(super) fn observe(&self, request: Request<Incoming>) -> Request<RequestBody> {
        let is_observed = request.version() < Version::HTTP_2 && !request.body().is_end_stream();
        self.0.is_unread.store(is_observed, Relaxed);
        let unread = is_observed.then(|| self.clone());
        request.map(|inner| RequestBody { inner, unread })
    }
}

/// The body of a request, which notes that it was read to its end.
pub(super) struct RequestBody {
    inner: Incoming,
    unread: Option<Flags>,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if frame.is_none() || self.inner.is_end_stream() {
            if let Some(Flags(shared)) = self.unread.take() {
                shared.is_unread.store(false, Relaxed);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The transport of a connection.
pub(super) struct Linger<T> {
    io: T,
    flags: Flags,
    discarding: Option<Discarding>,
    #[cfg(target_os = "linux")]
    find_socket: FindSocket<T>,
}

struct Discarding {
    timeout: Pin<Box<Sleep>>,
    bytes: usize,
}

impl<T> Linger<T> {
    pub(super) fn new(io: T, flags: Flags) -> Self {
        Self {
            io,
            flags,
            discarding: None,
            #[cfg(target_os = "linux")]
            find_socket: |_| None,
        }
    }

    #[cfg(target_os = "linux")]
    pub(super) fn with_socket(self, find_socket: FindSocket<T>) -> Self {
        Self { find_socket, ..self }
    }

    /// Returns the TCP socket, if the transport has one.
    #[cfg(target_os = "linux")]
    pub(super) fn socket(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        (self.find_socket)(&self.io)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Linger<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Linger<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, flags, discarding, .. } = &mut *self;
        let Discarding { timeout, bytes } = match discarding {
            Some(discarding) => discarding,
            None => {
                ready!(Pin::new(&mut *io).poll_shutdown(cx))?;
                if !flags.is_unread() {
                    return Poll::Ready(Ok(()));
                }
                discarding.insert(Discarding { timeout: Box::pin(sleep(TIMEOUT)), bytes: 0 })
            }
        };
        let mut scratch = [MaybeUninit::uninit(); 8 * 1024];
        while *bytes < MAX_BYTES {
            let mut buffer = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut *io).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => *bytes += buffer.filled().len(),
                Poll::Ready(_) => break,
                Poll::Pending => return timeout.as_mut().poll(cx).map(Ok),
            }
        }
        Poll::Ready(Ok(()))
    }
}
