//! Random bytes of a client and a server in random pieces, through a tracked transport:
//! `cargo +nightly fuzz run tracked_io`.
//!
//! The bytes arrive unchanged apart from the marks, a read is never pending, every response is
//! counted once, and the split does not matter.
#![no_main]

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Ready, ready},
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Version, header::WWW_AUTHENTICATE};
use http_body_util::Empty;
use hyper::service::Service;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_offload::flush::{Tracker, TrackerStats};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Each stream with a multiple of this number is not passed to the service, like a malformed
/// request.
const NOT_PASSED_ON: u32 = 5;

// The first byte is the number of piece sizes, the second decides whether there is a preface, and
// the third is the share of the rest that belongs to the client.
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let [count, http2, share, rest @ ..] = input else { return };
    let (sizes, bytes) = rest.split_at(rest.len().min(usize::from(*count % 8)));
    let (from, to) = bytes.split_at(bytes.len() * usize::from(*share) / 256);
    let from = if http2 % 4 > 0 { [PREFACE, from].concat() } else { from.to_vec() };

    let whole = pass_through(&from, to, &[usize::MAX]);
    assert_eq!(whole.received, from);
    let sizes: Vec<usize> = sizes.iter().map(|size| usize::from(*size) + 1).chain([1]).collect();
    assert_eq!(pass_through(&from, to, &sizes), whole);
});

#[derive(Debug, PartialEq)]
struct Seen {
    received: Vec<u8>,
    before_drop: TrackerStats,
    after_drop: TrackerStats,
}

/// Passes bytes of a client, then accepts and flushes bytes of a server.
fn pass_through(from: &[u8], to: &[u8], sizes: &[usize]) -> Seen {
    let mut sizes = sizes.iter().copied().cycle();
    let mut next = move |most: usize| most.min(sizes.next().unwrap_or(1));
    let mut script = Scripted::default();
    let mut rest = from;
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(next(rest.len()));
        script.reads.push_back(piece.to_vec());
        rest = behind;
    }
    let tracker = Tracker::new();
    let (mut io, service) = tracker.track(script, Responder);
    let mut cx = Context::from_waker(Waker::noop());

    let mut delivered = Vec::new();
    let mut room = vec![0; 1 << 14];
    loop {
        let length = next(room.len());
        let mut buffer = ReadBuf::new(&mut room[..length]);
        match Pin::new(&mut io).poll_read(&mut cx, &mut buffer) {
            Poll::Pending => panic!("there is always something to read"),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => break,
            Poll::Ready(Ok(())) => delivered.extend_from_slice(buffer.filled()),
            Poll::Ready(Err(error)) => panic!("{error}"),
        }
    }
    let (received, marks) = match delivered.strip_prefix(PREFACE) {
        Some(frames) => {
            let (received, marks) = unmark(frames);
            ([PREFACE, &received].concat(), marks)
        }
        None => (delivered, Vec::new()),
    };
    let mut called = 0;
    for (number, mark) in (1..).zip(marks) {
        if number % NOT_PASSED_ON != 0 {
            called += 1;
            let mut request = Request::new(());
            *request.version_mut() = Version::HTTP_2;
            request.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_bytes(&mark).expect("a mark is valid"));
            assert!(pin!(service.call(request)).poll(&mut cx).is_ready());
        }
    }
    let mut rest = to;
    while !rest.is_empty() {
        let piece = &rest[..next(rest.len())];
        let (first, second) = piece.split_at(piece.len() / 2);
        let slices = [IoSlice::new(first), IoSlice::new(second)];
        let accepted = Pin::new(&mut io).poll_write_vectored(&mut cx, &slices);
        let Poll::Ready(Ok(accepted)) = accepted else { panic!("not accepted") };
        assert_eq!(accepted, piece.len().min(Scripted::MAX_WRITE));
        rest = &rest[accepted..];
    }
    // Only once, because a flush between the bytes may come before a reset.
    assert!(matches!(Pin::new(&mut io).poll_flush(&mut cx), Poll::Ready(Ok(()))));
    let before_drop = tracker.stats();
    drop(io);
    let after_drop = tracker.stats();
    let TrackerStats { flushed, gave_up, lost, unmapped, .. } = after_drop;
    assert_eq!(flushed + gave_up + lost + unmapped, called, "each response is counted once: {after_drop:?}");
    assert_eq!(unmapped, 0);
    Seen { received, before_drop, after_drop }
}

/// Removes the marks from the frames of a client. Returns the bytes that the client sent, and the
/// values of the marks.
fn unmark(mut bytes: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    const FIELD: usize = 19;
    let (mut sent, mut marks, mut last) = (Vec::new(), Vec::new(), 0);
    while let Some(length) = bytes.get(..3).map(|length| u32::from_be_bytes([0, length[0], length[1], length[2]])) {
        let Some((frame, behind)) = bytes.split_at_checked(9 + length as usize) else { break };
        bytes = behind;
        let is_block = matches!(frame[3], 1 | 9) && frame[4] & 4 != 0;
        let is_padded = frame[3] == 1 && frame[4] & 8 != 0 && length > 0;
        let end = frame.len().saturating_sub(if is_padded { frame[9].into() } else { 0 });
        if !(is_block && end >= 9 + FIELD && frame[end - FIELD..].starts_with(&[15, 46, 16])) {
            last = sent.len();
            sent.extend(frame);
            continue;
        }
        marks.push(frame[end - FIELD + 3..end].to_vec());
        let is_alone = frame[3] == 9 && frame.len() == 9 + FIELD && sent.len() > last + 4;
        if is_alone && sent.len() - last > 9 + 16_384 - FIELD {
            sent[last + 4] |= 4;
            continue;
        }
        last = sent.len();
        sent.extend(&(length - FIELD as u32).to_be_bytes()[1..]);
        sent.extend(&frame[3..end - FIELD]);
        sent.extend(&frame[end..]);
    }
    sent.extend(bytes);
    (sent, marks)
}

/// Returns the scripted reads and then the end. Accepts at most `MAX_WRITE` bytes per write.
#[derive(Debug, Default)]
struct Scripted {
    reads: VecDeque<Vec<u8>>,
}

impl Scripted {
    const MAX_WRITE: usize = 1000;
}

impl AsyncRead for Scripted {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(mut piece) = self.reads.pop_front() {
            let behind = piece.split_off(piece.len().min(buffer.remaining()));
            buffer.put_slice(&piece);
            if !behind.is_empty() {
                self.reads.push_front(behind);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len().min(Self::MAX_WRITE)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum::<usize>().min(Self::MAX_WRITE)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Responds at once without a body.
struct Responder;

impl Service<Request<()>> for Responder {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn call(&self, _: Request<()>) -> Self::Future {
        ready(Ok(Response::new(Empty::new())))
    }
}
