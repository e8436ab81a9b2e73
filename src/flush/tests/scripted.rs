//! A scripted transport, and responses for tests.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker, ready},
};

use http::Version;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    after_response::{FlushOutcome, TestResponse},
    flush::{
        connection::Connection,
        frames::StreamId,
        tracker::{Counters, TrackerStats},
    },
};

/// The outcome of a flushed HTTP/2 response.
pub(in crate::flush) fn flushed(body_bytes: u64) -> FlushOutcome {
    FlushOutcome::Flushed { body_bytes: Some(body_bytes) }
}

/// The outcome of a flushed HTTP/1 response.
pub(in crate::flush) const FLUSHED: FlushOutcome = FlushOutcome::Flushed { body_bytes: None };

pub(in crate::flush) fn connection() -> (Arc<Connection>, Arc<Counters>) {
    let counters = Arc::new(Counters::default());
    (Arc::new(Connection::new(counters.clone())), counters)
}

/// Counters of a tracker with one connection.
pub(in crate::flush) fn stats(change: impl FnOnce(&mut TrackerStats)) -> TrackerStats {
    let mut stats = TrackerStats { connections: 1, ..TrackerStats::default() };
    change(&mut stats);
    stats
}

/// Begins a response to a request of this version. On HTTP/2 it takes the pending stream.
pub(in crate::flush) fn begin(connection: &Connection, version: Version) -> TestResponse {
    let (response, waiter) = TestResponse::new(version);
    connection.begin(version, waiter);
    response
}

/// Opens a stream and begins its response.
pub(in crate::flush) fn begin_stream(connection: &Connection, stream: u32) -> TestResponse {
    connection.open_stream(StreamId::new(stream));
    begin(connection, Version::HTTP_2)
}

/// Results of a transport, and a record of the calls. A read, write or flush without a result is
/// pending.
#[derive(Debug, Default)]
pub(in crate::flush) struct Script {
    pub(in crate::flush) reads: VecDeque<Read>,
    /// The maximum number of bytes that each write accepts.
    pub(in crate::flush) writes: VecDeque<io::Result<usize>>,
    pub(in crate::flush) flushes: VecDeque<io::Result<()>>,
    /// The buffer sizes of the reads that returned.
    pub(in crate::flush) rooms: Vec<usize>,
    pub(in crate::flush) written: Vec<u8>,
    pub(in crate::flush) reader: Option<Waker>,
}

#[derive(Debug)]
pub(in crate::flush) enum Read {
    Bytes(Vec<u8>),
    End,
    Failure,
}

#[derive(Clone, Debug, Default)]
pub(in crate::flush) struct Scripted(pub(in crate::flush) Arc<Mutex<Script>>);

impl AsyncRead for Scripted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut script = self.0.lock().unwrap();
        script.reader = Some(cx.waker().clone());
        let Some(read) = script.reads.pop_front() else { return Poll::Pending };
        script.rooms.push(buffer.remaining());
        match read {
            Read::Bytes(mut bytes) => {
                let behind = bytes.split_off(bytes.len().min(buffer.remaining()));
                buffer.put_slice(&bytes);
                if !behind.is_empty() {
                    script.reads.push_front(Read::Bytes(behind));
                }
            }
            Read::End => {}
            Read::Failure => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut script = self.0.lock().unwrap();
        let Some(limit) = script.writes.pop_front() else { return Poll::Pending };
        let mut accepted = slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<_>>();
        accepted.truncate(limit?);
        script.written.extend(&accepted);
        Poll::Ready(Ok(accepted.len()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().unwrap().flushes.pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

/// Reads once into a buffer of `room` bytes.
pub(in crate::flush) fn poll_read(
    io: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    room: usize,
) -> Poll<io::Result<Vec<u8>>> {
    let mut bytes = vec![0; room];
    let mut buffer = ReadBuf::new(&mut bytes);
    ready!(Pin::new(io).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().to_vec()))
}
