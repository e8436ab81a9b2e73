//! A scripted transport, and responses for tests.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker, ready},
};

use http::{HeaderMap, Version};
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

/// Begins a response to a request of this version, without a stream.
pub(in crate::flush) fn begin(connection: &Connection, version: Version) -> TestResponse {
    begin_with(connection, version, &mut HeaderMap::new())
}

/// Begins a response to a request with these fields.
pub(in crate::flush) fn begin_with(connection: &Connection, version: Version, fields: &mut HeaderMap) -> TestResponse {
    let (response, waiter) = TestResponse::new(version);
    connection.begin(version, fields, waiter);
    response
}

/// Begins the response of a stream.
pub(in crate::flush) fn begin_on(connection: &Connection, stream: u32) -> TestResponse {
    let mut fields = connection.fields(StreamId::new(stream));
    let response = begin_with(connection, Version::HTTP_2, &mut fields);
    assert!(fields.is_empty(), "the mark is removed");
    response
}

/// Opens a stream and begins its response.
pub(in crate::flush) fn begin_stream(connection: &Connection, stream: u32) -> TestResponse {
    connection.open_stream(StreamId::new(stream));
    begin_on(connection, stream)
}

/// Removes the marks from the frames of a client, without the preface. Returns the bytes that the
/// client sent, and the marked streams. See
/// [`as_unmarked`] for a last frame that is incomplete.
pub(in crate::flush) fn unmark(mut bytes: &[u8]) -> (Vec<u8>, Vec<u32>) {
    const FIELD: usize = 19;
    let (mut sent, mut streams, mut last) = (Vec::new(), Vec::new(), 0);
    while let Some(length) = bytes.get(..3).map(|length| u32::from_be_bytes([0, length[0], length[1], length[2]])) {
        let Some((frame, behind)) = bytes.split_at_checked(9 + length as usize) else { break };
        bytes = behind;
        let is_block = matches!(frame[3], 1 | 9) && frame[4] & 4 != 0;
        let is_padded = frame[3] == 1 && frame[4] & 8 != 0 && length > 0;
        let padding = if is_padded { usize::from(frame[9]) } else { 0 };
        let end = frame.len().saturating_sub(padding);
        let is_marked = is_block && end >= 9 + FIELD && frame[end - FIELD..].starts_with(&[15, 46, 16]);
        if !is_marked {
            last = sent.len();
            sent.extend(frame);
            continue;
        }
        streams.push(u32::from_be_bytes(frame[5..9].try_into().unwrap()) & 0x7fff_ffff);
        if frame[3] == 9 && frame.len() == 9 + FIELD && sent.get(last + 3).is_some_and(|kind| matches!(kind, 1 | 9)) {
            // The client's last frame of the block had no room.
            let is_own = sent.len() - last > 9 + 16_384 - FIELD;
            if is_own {
                sent[last + 4] |= 4;
                continue;
            }
        }
        last = sent.len();
        sent.extend((length - FIELD as u32).to_be_bytes()[1..].iter());
        sent.extend(&frame[3..end - FIELD]);
        sent.extend(&frame[end..]);
    }
    sent.extend(without_length(bytes));
    (sent, streams)
}

/// Returns the first bytes of a frame without the length and the flags.
fn without_length(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if frame.len() >= 9 {
        frame[..3].fill(0);
        frame[4] = 0;
    }
    frame
}

/// Returns the bytes that a client sent, comparable with those of [`unmark`]: the length and the
/// flags of an incomplete last frame may announce a mark that did not follow.
pub(in crate::flush) fn as_unmarked(frames: &[u8]) -> Vec<u8> {
    let mut at = 0;
    while let Some(length) = frames.get(at..at + 3) {
        let end = at + 9 + u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
        if end > frames.len() {
            break;
        }
        at = end;
    }
    [&frames[..at], &without_length(&frames[at..])].concat()
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
