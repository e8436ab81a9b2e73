use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// A transport that accepts parts of writes, and is pending in between.
pub(crate) struct Choppy<C> {
    io: DuplexStream,
    chop: C,
    accepted: Arc<AtomicUsize>,
}

/// Decides how a [`Choppy`] transport behaves.
pub(crate) trait Chop: Unpin {
    /// Returns `true` if a call is pending, although it could proceed.
    fn pauses(&mut self, is_read: bool) -> bool;
    /// Returns the maximum number of bytes of a write, at least 1.
    fn max_write(&mut self) -> usize;
}

impl<C: Chop> Choppy<C> {
    pub(crate) fn new(io: DuplexStream, chop: C) -> Self {
        Self { io, chop, accepted: Arc::default() }
    }

    /// Returns the number of bytes accepted so far.
    pub(crate) fn accepted(&self) -> Arc<AtomicUsize> {
        self.accepted.clone()
    }

    fn poll_pause(&mut self, cx: &mut Context<'_>, is_read: bool) -> Poll<()> {
        if self.chop.pauses(is_read) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl<C: Chop> AsyncRead for Choppy<C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pause(cx, true));
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<C: Chop> AsyncWrite for Choppy<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_pause(cx, false));
        let size = self.chop.max_write().min(buf.len());
        let accepted = ready!(Pin::new(&mut self.io).poll_write(cx, &buf[..size]))?;
        self.accepted.fetch_add(accepted, SeqCst);
        Poll::Ready(Ok(accepted))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pause(cx, false));
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
