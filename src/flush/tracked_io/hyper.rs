//! For hyper's traits.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use ::hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};

use super::TrackedIo;

impl<T: Read + Unpin> Read for TrackedIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let Self { io, reader, tracked } = self.get_mut();
        if reader.is_done(&tracked.connection) {
            return tracked.read(Pin::new(io).poll_read(cx, buffer));
        }
        let bytes = ready!(reader.poll_read(&tracked.connection, cx, buffer.remaining(), |cx, into| {
            let mut into = ReadBuf::new(into);
            ready!(Pin::new(io).poll_read(cx, into.unfilled()))?;
            Poll::Ready(Ok(into.filled().len()))
        }))?;
        buffer.put_slice(bytes);
        Poll::Ready(Ok(()))
    }
}

impl<T: Write + Unpin> Write for TrackedIo<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { io, tracked, .. } = self.get_mut();
        tracked.written(&[IoSlice::new(bytes)], Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { io, tracked, .. } = self.get_mut();
        tracked.written(slices, Pin::new(io).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, tracked, .. } = self.get_mut();
        let flush = tracked.connection.before_flush();
        tracked.flushed(flush, Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, tracked, .. } = self.get_mut();
        tracked.shut_down(Pin::new(io).poll_shutdown(cx))
    }
}
