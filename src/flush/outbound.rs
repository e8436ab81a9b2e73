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
    hash::{BuildHasher, Hasher, RandomState},
    io::IoSlice,
    mem,
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
    responses: HashMap<StreamId, Response<W>, StreamHasher>,
    /// Streams that ended and are not flushed yet, in the order of their ends. Each has an entry in
    /// `responses`.
    ended: VecDeque<StreamId>,
    /// `true` once a stream was not followed because there were too many. Then an unknown stream
    /// may be open.
    overflowed: bool,
}

#[derive(Debug)]
struct Response<W> {
    slot: Slot<W>,
    /// Length of the accepted DATA frames without padding.
    body_bytes: u64,
    /// `body_bytes` at the last check for progress, if the body had ended by then.
    checked: Option<u64>,
    ended: bool,
}

/// The waiter of a stream.
#[derive(Debug, PartialEq)]
pub(super) enum Slot<W> {
    /// The service was not called.
    Vacant,
    Waiting(W),
    /// The waiter was completed before the response ended.
    Completed,
}

/// The waiter of an open response.
pub(super) trait Waiter {
    /// Returns `true` if the next header block ends the response, because it opens a tunnel (RFC
    /// 9113, section 8.5).
    ///
    /// That block must be the final one. An interim response that is accepted first would be taken
    /// for it; hyper sends none by itself.
    fn ends_with_head(&self) -> bool;

    /// Returns `true` if the body has ended, although the server may not have written it.
    fn has_ended(&self) -> bool;
}

/// Why a stream is unknown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unknown {
    /// It was closed, or never opened.
    Closed,
    /// It may be open, but it is not followed.
    NotFollowed,
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
    /// Follows a stream that the client opened, unless the bytes were malformed or too many streams
    /// are open. Frames of other streams are ignored, so memory is bounded by the number of open
    /// streams.
    pub(super) fn open(&mut self, stream: StreamId) {
        self.overflowed |= self.responses.len() >= MAX_STREAMS;
        if !self.gave_up() && self.responses.len() < MAX_STREAMS {
            let response = Response { slot: Slot::Vacant, body_bytes: 0, checked: None, ended: false };
            self.responses.entry(stream).or_insert(response);
        }
    }

    /// Attaches the waiter of the request on `stream`. Returns it if the stream is not followed.
    pub(super) fn attach(&mut self, stream: StreamId, waiter: W) -> Result<(), (W, Unknown)> {
        match self.responses.get_mut(&stream) {
            Some(Response { slot: slot @ Slot::Vacant, .. }) => {
                *slot = Slot::Waiting(waiter);
                Ok(())
            }
            Some(_) => Err((waiter, Unknown::NotFollowed)),
            None if self.overflowed => Err((waiter, Unknown::NotFollowed)),
            None => Err((waiter, Unknown::Closed)),
        }
    }

    /// Stops following a stream, for example because the client reset it. Returns the waiter to
    /// complete.
    pub(super) fn close(&mut self, stream: StreamId) -> Option<W> {
        match self.remove(stream)?.slot {
            Slot::Waiting(waiter) => Some(waiter),
            Slot::Vacant | Slot::Completed => None,
        }
    }

    /// Stops following all streams. Returns the waiters to complete.
    pub(super) fn close_all(&mut self) -> impl Iterator<Item = Slot<W>> + use<W> {
        self.ended = VecDeque::new();
        mem::take(&mut self.responses).into_values().map(|response| response.slot)
    }

    /// Calls `stalled` with the waiters of responses of which less than `min_progress` bytes were
    /// accepted since the last call, if their body had ended at both calls.
    pub(super) fn give_up_stalled(&mut self, min_progress: u64, mut stalled: impl FnMut(W)) {
        for response in self.responses.values_mut() {
            let Slot::Waiting(waiter) = &response.slot else { continue };
            if !waiter.has_ended() {
                continue;
            }
            let before = response.checked.replace(response.body_bytes);
            if before.is_some_and(|before| response.body_bytes - before < min_progress) {
                if let Slot::Waiting(waiter) = mem::replace(&mut response.slot, Slot::Completed) {
                    stalled(waiter);
                }
            }
        }
    }

    /// Returns the number of streams that are followed.
    pub(super) fn open_streams(&self) -> usize {
        self.responses.len()
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
    pub(super) fn accept(&mut self, bytes: &[u8], mut aborted: impl FnMut(Abort, Slot<W>)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (read, event) = self.frames.read(rest);
            rest = &rest[read..];
            match event {
                Some(Event::Data { stream, data, end_stream }) => self.add(stream, data, |_| end_stream),
                Some(Event::Headers { stream, end_stream }) => {
                    let is_tunnel = |slot: &Slot<W>| matches!(slot, Slot::Waiting(waiter) if waiter.ends_with_head());
                    self.add(stream, 0, |slot| end_stream || is_tunnel(slot));
                }
                Some(Event::Malformed) => self.close_all().for_each(|slot| aborted(Abort::Malformed, slot)),
                Some(Event::Reset { stream, error_code }) => {
                    let is_complete = error_code == NO_ERROR && self.responses.get(&stream).is_some_and(|it| it.ended);
                    if !is_complete {
                        if let Some(response) = self.remove(stream) {
                            aborted(Abort::Reset { stream, error_code }, response.slot);
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
        mut aborted: impl FnMut(Abort, Slot<W>),
    ) {
        first_bytes(slices, count).for_each(|accepted| self.accept(accepted, &mut aborted));
    }

    /// Ends the responses that a flush covers which began after all bytes so far were accepted.
    /// Calls `flushed` with the length of the body on the wire and the waiter, in the order in which
    /// the responses ended.
    ///
    /// A length that differs from the body's is a doubt about the stream or about this parser.
    pub(super) fn flush(&mut self, mut flushed: impl FnMut(StreamId, u64, Slot<W>)) {
        for stream in self.ended.drain(..) {
            if let Some(response) = self.responses.remove(&stream) {
                flushed(stream, response.body_bytes, response.slot);
            }
        }
    }

    /// Returns `true` if the bytes were malformed. No stream is followed from then on.
    pub(super) fn gave_up(&self) -> bool {
        self.frames.gave_up()
    }

    fn add(&mut self, stream: StreamId, data: u32, ends: impl FnOnce(&Slot<W>) -> bool) {
        // Frames after the end belong to a tunnel.
        let Some(response) = self.responses.get_mut(&stream).filter(|response| !response.ended) else { return };
        response.body_bytes += u64::from(data);
        if ends(&response.slot) {
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
        Self { frames: Frames::default(), responses: HashMap::default(), ended: VecDeque::new(), overflowed: false }
    }
}

/// Hashes identifiers of streams: a multiplication by a random factor, because the client chooses
/// the identifiers.
#[derive(Clone, Copy, Debug)]
struct StreamHasher {
    factor: u64,
    hash: u64,
}

impl Default for StreamHasher {
    fn default() -> Self {
        Self { factor: RandomState::new().hash_one(()) | 1, hash: 0 }
    }
}

impl BuildHasher for StreamHasher {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

impl Hasher for StreamHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32((*byte).into()));
    }

    fn write_u32(&mut self, number: u32) {
        let product = u128::from(self.hash ^ u64::from(number)) * u128::from(self.factor);
        self.hash = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.hash
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
