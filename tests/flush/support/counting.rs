//! Counts the bytes that the socket accepted, below TLS.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::Ends;

/// One side of a socket.
pub(crate) struct Wire {
    written: AtomicU64,
    read: AtomicU64,
    frames: Mutex<Ends>,
}

impl Wire {
    pub(crate) fn new() -> Self {
        Self { written: AtomicU64::new(0), read: AtomicU64::new(0), frames: Mutex::default() }
    }

    /// Returns the number of bytes that the kernel accepted from this side.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(SeqCst)
    }

    /// Returns the number of bytes that this side read from the kernel.
    pub(crate) fn read(&self) -> u64 {
        self.read.load(SeqCst)
    }

    /// Returns the offset after the last byte of a stream. Only on HTTP/2 without TLS.
    pub(crate) fn end_of(&self, stream: u32) -> Option<u64> {
        self.frames.lock().unwrap().of(stream)
    }

    fn wrote(&self, bufs: &[IoSlice<'_>], mut taken: usize) {
        let total = taken;
        let mut frames = self.frames.lock().unwrap();
        for buf in bufs {
            let part = &buf[..buf.len().min(taken)];
            frames.pass(part);
            taken -= part.len();
        }
        self.written.fetch_add(total as u64, SeqCst);
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("written", &self.written()).field("read", &self.read()).finish()
    }
}

/// A transport that counts into a [`Wire`].
#[derive(Debug)]
pub(crate) struct Counting<T> {
    io: T,
    wire: Arc<Wire>,
}

impl<T> Counting<T> {
    pub(crate) fn new(io: T, wire: Arc<Wire>) -> Self {
        Self { io, wire }
    }
}

/// A transport whose socket is known.
#[cfg(target_os = "linux")]
pub(crate) trait HasSocket {
    fn socket(&self) -> Option<std::os::fd::BorrowedFd<'_>>;
}

#[cfg(target_os = "linux")]
impl HasSocket for Counting<tokio::net::TcpStream> {
    fn socket(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        Some(std::os::fd::AsFd::as_fd(&self.io))
    }
}

#[cfg(target_os = "linux")]
impl<T: HasSocket> HasSocket for tokio_rustls::server::TlsStream<T> {
    fn socket(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.get_ref().0.socket()
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) trait HasSocket {}

#[cfg(not(target_os = "linux"))]
impl<T> HasSocket for T {}

impl<T: AsyncRead + Unpin> AsyncRead for Counting<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.wire.read.fetch_add((buf.filled().len() - before) as u64, SeqCst);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counting<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let taken = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        self.wire.wrote(bufs, taken);
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
