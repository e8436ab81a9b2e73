//! For tests: a transport that does what it is told, and a response that remembers what it was told.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    connection::{Connection, Response, Verdict},
    stats::{Counters, Stats},
};

/// A response that remembers.
#[derive(Debug, Default)]
pub(super) struct Heard(Mutex<Vec<Verdict>>);

impl Heard {
    pub(super) fn verdicts(&self) -> Vec<Verdict> {
        self.0.lock().unwrap().clone()
    }
}

impl Response for Heard {
    fn told(self: Arc<Self>, verdict: Verdict) {
        self.0.lock().unwrap().push(verdict);
    }
}

/// What was flushed on HTTP/2.
pub(super) fn flushed(body_bytes: u64) -> Verdict {
    Verdict::Flushed { body_bytes: Some(body_bytes) }
}

/// What was flushed on HTTP/1.
pub(super) const FLUSHED: Verdict = Verdict::Flushed { body_bytes: None };

pub(super) fn connection() -> (Arc<Connection>, Arc<Counters>) {
    let counters = Arc::new(Counters::default());
    (Arc::new(Connection::new(counters.clone())), counters)
}

/// Stats of one connection.
pub(super) fn stats(change: impl FnOnce(&mut Stats)) -> Stats {
    let mut stats = Stats { connections: 1, ..Stats::default() };
    change(&mut stats);
    stats
}

/// A script, and what came of it. Where it says nothing the transport waits.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) reads: VecDeque<Read>,
    /// How many bytes each write takes at most.
    pub(super) writes: VecDeque<io::Result<usize>>,
    pub(super) flushes: VecDeque<io::Result<()>>,
    /// The room of each read that was answered.
    pub(super) rooms: Vec<usize>,
    pub(super) written: Vec<u8>,
    pub(super) reader: Option<Waker>,
}

#[derive(Debug)]
pub(super) enum Read {
    Bytes(Vec<u8>),
    End,
    Failure,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Scripted(pub(super) Arc<Mutex<Script>>);

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
        let Some(most) = script.writes.pop_front() else { return Poll::Pending };
        let mut accepted = slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<_>>();
        accepted.truncate(most?);
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

/// Reads once, with so much room.
pub(super) fn poll_read(
    io: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    room: usize,
) -> Poll<io::Result<Vec<u8>>> {
    let mut bytes = vec![0; room];
    let mut buffer = ReadBuf::new(&mut bytes);
    ready!(Pin::new(io).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().to_vec()))
}
