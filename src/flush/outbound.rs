//! Finds out which responses were flushed on an HTTP/2 connection, from the bytes that its
//! transport accepted.
//!
//! A response has ended on the wire once its `END_STREAM` was accepted, because nothing of it
//! follows that flag (RFC 9113, section 5.1). The next flush that succeeds flushes it. Acceptance
//! is not enough, because TLS or a buffer below may hold accepted bytes. A flush is not enough,
//! because h2 flushes in the middle of its queue (`h2/proto/streams/streams.rs:197-233`).
//!
//! A reset before that flush aborts the response, with one exception: `NO_ERROR` after `END_STREAM`
//! only asks the client to stop sending its request, and the client must keep the response (RFC
//! 9113, section 8.1).

use std::{
    collections::{HashMap, VecDeque},
    io::IoSlice,
    iter, mem,
};

use super::frames::{Event, Frames, StreamId};

/// RFC 9113, section 7.
const NO_ERROR: u32 = 0;

/// The maximum number of streams followed at once. Servers allow far fewer (hyper: 200), so it only
/// bounds the memory: less than a megabyte per connection.
const MAX_STREAMS: usize = 16_384;

/// Responses of the open streams, each with a waiter `W` once the service was called.
///
/// Pure, and constant in memory per open stream.
#[derive(Debug)]
pub(super) struct Outbound<W> {
    frames: Frames,
    /// Streams that are open, or ended and not flushed yet.
    responses: HashMap<StreamId, Response<W>>,
    /// Streams that ended and are not flushed yet, in the order of their ends. Each has an entry in
    /// `responses`.
    ended: VecDeque<StreamId>,
}

#[derive(Debug)]
struct Response<W> {
    waiter: Option<W>,
    /// Length of the accepted DATA frames without padding.
    body_bytes: u64,
    ended: bool,
}

/// The waiter of an open response.
pub(super) trait Waiter {
    /// Returns `true` if the next header block ends the response, because it opens a tunnel (RFC
    /// 9113, section 8.5).
    ///
    /// That block must be the final one. An interim response that is accepted first would be taken
    /// for it; hyper sends none by itself.
    fn ends_with_head(&self) -> bool;
}

/// Why a response ended without a flush.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Abort {
    /// The server reset the stream.
    Reset { stream: StreamId, error_code: u32 },
    /// The bytes were malformed. All responses end with this.
    Malformed,
}

impl<W: Waiter> Outbound<W> {
    /// Follows a stream that the client opened. Frames of other streams are ignored, so memory is
    /// bounded by the number of open streams.
    ///
    /// Returns `false` if too many streams are open or the bytes were malformed. The response is
    /// only handed over then.
    pub(super) fn open(&mut self, stream: StreamId) -> bool {
        let follow = !self.gave_up() && self.responses.len() < MAX_STREAMS;
        if follow {
            self.responses.entry(stream).or_insert(Response { waiter: None, body_bytes: 0, ended: false });
        }
        follow
    }

    /// Attaches the waiter of the request on `stream`. Returns it if the stream is no longer
    /// followed.
    pub(super) fn attach(&mut self, stream: StreamId, waiter: W) -> Option<W> {
        match self.responses.get_mut(&stream) {
            Some(response) => response.waiter.replace(waiter),
            None => Some(waiter),
        }
    }

    /// Stops following a stream, for example because the client reset it. Returns the waiter to
    /// complete.
    pub(super) fn close(&mut self, stream: StreamId) -> Option<W> {
        self.remove(stream)?.waiter
    }

    /// Stops following all streams. Returns the waiters to complete.
    pub(super) fn close_all(&mut self) -> impl Iterator<Item = W> + use<W> {
        self.ended = VecDeque::new();
        mem::take(&mut self.responses).into_values().filter_map(|response| response.waiter)
    }

    /// Returns `true` if the stream was opened and neither flushed nor closed since.
    #[cfg(test)]
    pub(super) fn follows(&self, stream: StreamId) -> bool {
        self.responses.contains_key(&stream)
    }

    /// Returns the number of responses that the next flush covers.
    pub(super) fn ended(&self) -> usize {
        self.ended.len()
    }

    /// Reads bytes that the transport accepted. Responses that these bytes abort go to `aborted`,
    /// and their streams are no longer followed.
    pub(super) fn accept(&mut self, bytes: &[u8], mut aborted: impl FnMut(Abort, Option<W>)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (read, event) = self.frames.read(rest);
            rest = &rest[read..];
            match event {
                Some(Event::Data { stream, data, end_stream }) => self.add(stream, data, end_stream),
                Some(Event::Headers { stream, end_stream }) => {
                    let is_tunnel = || {
                        let waiter = self.responses.get(&stream).and_then(|response| response.waiter.as_ref());
                        waiter.is_some_and(Waiter::ends_with_head)
                    };
                    let ends = end_stream || is_tunnel();
                    self.add(stream, 0, ends);
                }
                Some(Event::Malformed) => self.close_all().for_each(|waiter| aborted(Abort::Malformed, Some(waiter))),
                Some(Event::Reset { stream, error_code }) => {
                    let is_complete = error_code == NO_ERROR && self.responses.get(&stream).is_some_and(|it| it.ended);
                    if !is_complete {
                        if let Some(response) = self.remove(stream) {
                            aborted(Abort::Reset { stream, error_code }, response.waiter);
                        }
                    }
                }
                Some(Event::GoAway { .. } | Event::Settings { .. }) | None => {}
            }
        }
    }

    /// Reads the first `count` bytes of these slices, like [`accept`](Self::accept).
    pub(super) fn accept_vectored(
        &mut self,
        slices: &[IoSlice<'_>],
        count: usize,
        mut aborted: impl FnMut(Abort, Option<W>),
    ) {
        first_bytes(slices, count).for_each(|accepted| self.accept(accepted, &mut aborted));
    }

    /// Returns the responses that a flush covers which began after all bytes so far were accepted:
    /// the stream, the length of its body on the wire, and the waiter, in the order in which the
    /// responses ended.
    ///
    /// A length that differs from the body's is a doubt about the stream or about this parser.
    pub(super) fn flushed(&mut self) -> impl Iterator<Item = (StreamId, u64, Option<W>)> {
        iter::from_fn(|| {
            let stream = self.ended.pop_front()?;
            let response = self.responses.remove(&stream)?;
            Some((stream, response.body_bytes, response.waiter))
        })
    }

    /// Returns `true` if the bytes were malformed. No stream is followed from then on.
    pub(super) fn gave_up(&self) -> bool {
        self.frames.gave_up()
    }

    fn add(&mut self, stream: StreamId, data: u32, end_stream: bool) {
        // Frames after the end belong to a tunnel.
        let Some(response) = self.responses.get_mut(&stream).filter(|response| !response.ended) else { return };
        response.body_bytes += u64::from(data);
        if end_stream {
            response.ended = true;
            self.ended.push_back(stream);
        }
    }

    fn remove(&mut self, stream: StreamId) -> Option<Response<W>> {
        let response = self.responses.remove(&stream)?;
        if response.ended {
            self.ended.retain(|ended| *ended != stream);
        }
        Some(response)
    }
}

impl<W> Default for Outbound<W> {
    fn default() -> Self {
        Self { frames: Frames::default(), responses: HashMap::new(), ended: VecDeque::new() }
    }
}

/// Returns the first `count` bytes of a vectored write: the part that was accepted.
pub(super) fn first_bytes<'a>(slices: &'a [IoSlice<'_>], count: usize) -> impl Iterator<Item = &'a [u8]> {
    slices.iter().scan(count, |remaining, slice| {
        let accepted = &slice[..slice.len().min(*remaining)];
        *remaining -= accepted.len();
        Some(accepted)
    })
}

#[cfg(test)]
mod tests;
