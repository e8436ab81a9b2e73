//! Which responses have been flushed on an HTTP/2 connection, by the bytes that its transport accepted.
//!
//! A response has ended on the wire once its `END_STREAM` has been accepted, for nothing of it follows that flag (RFC 9113,
//! section 5.1), and it has been flushed with the next flush that succeeds. Not sooner: below may be TLS or a buffer, which
//! accept what they have not written. h2 flushes in the midst of its queue (`h2/proto/streams/streams.rs:197-233`), so a flush
//! alone says nothing about any one stream.
//!
//! A reset before that flush has aborted the response, with one exception: `NO_ERROR` behind `END_STREAM` only asks the client
//! to send no more of its request, and it must keep the response (RFC 9113, section 8.1). What h2 accepted cannot be called
//! back; still, who resets a stream with an error does not have its response.

use std::{
    collections::{HashMap, VecDeque},
    io::IoSlice,
    iter,
};

use super::{
    frames::{Event, Frames, StreamId},
    slices,
};

/// RFC 9113, section 7.
const NO_ERROR: u32 = 0;

/// How many streams are followed at once. Far more than servers admit (hyper: 200), so that it never tells, and yet a bound, of
/// less than a megabyte a connection.
const MOST_STREAMS: usize = 16_384;

/// Reads what the transport accepted.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    frames: Frames,
    /// Streams that are open, or have ended and wait for the flush.
    responses: HashMap<StreamId, Response>,
    /// Streams that have ended, in that order; each is among the responses.
    ended: VecDeque<StreamId>,
}

#[derive(Debug, Default)]
struct Response {
    data: u64,
    ended: bool,
    /// Set by [`Outbound::ends_with_head`].
    ends_with_head: bool,
}

impl Outbound {
    /// Follows a stream that the client opened. Frames of others are passed over, which bounds the memory by what is open.
    ///
    /// False if it cannot be followed, because too many are or the bytes were malformed: its response is only handed over.
    pub(super) fn open(&mut self, stream: StreamId) -> bool {
        let follow = !self.gave_up() && self.responses.len() < MOST_STREAMS;
        if follow {
            self.responses.entry(stream).or_default();
        }
        follow
    }

    /// Stops following a stream, as when the client has reset it. True if it was followed: then its response is decided by this,
    /// and not by a later flush.
    pub(super) fn close(&mut self, stream: StreamId) -> bool {
        let response = self.responses.remove(&stream);
        if response.as_ref().is_some_and(|response| response.ended) {
            self.ended.retain(|ended| *ended != stream);
        }
        response.is_some()
    }

    /// Whether a stream is followed: opened, and neither flushed nor closed since.
    pub(super) fn follows(&self, stream: StreamId) -> bool {
        self.responses.contains_key(&stream)
    }

    /// The next header block of a stream ends its response, for what follows is not the response's any more: a tunnel, after
    /// CONNECT was answered with success (RFC 9113, section 8.5). To be said before that block is accepted.
    ///
    /// It must be the final one. An interim response that is accepted first would be taken for it; hyper sends none by itself.
    pub(super) fn ends_with_head(&mut self, stream: StreamId) {
        if let Some(response) = self.responses.get_mut(&stream) {
            response.ends_with_head = true;
        }
    }

    /// How many responses wait for the next flush.
    pub(super) fn ended(&self) -> usize {
        self.ended.len()
    }

    /// The transport accepted these bytes. Streams that were reset in them are told to `reset`, with the error code, and are
    /// not followed any more.
    pub(super) fn accepted(&mut self, bytes: &[u8], mut reset: impl FnMut(StreamId, u32)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (read, event) = self.frames.read(rest);
            rest = &rest[read..];
            match event {
                Some(Event::Data { stream, data, end_stream }) => self.sent(stream, data, end_stream),
                Some(Event::Headers { stream, end_stream }) => {
                    let is_head = self.responses.get(&stream).is_some_and(|it| it.ends_with_head);
                    self.sent(stream, 0, end_stream || is_head);
                }
                Some(Event::Malformed) => self.give_up(),
                Some(Event::Reset { stream, error_code }) => {
                    let complete = error_code == NO_ERROR && self.responses.get(&stream).is_some_and(|it| it.ended);
                    if !complete && self.close(stream) {
                        reset(stream, error_code);
                    }
                }
                Some(Event::GoAway { .. } | Event::Settings { .. }) | None => {}
            }
        }
    }

    /// The transport accepted the first `count` bytes of these slices. Otherwise as [`accepted`](Self::accepted).
    pub(super) fn accepted_vectored(
        &mut self,
        slices: &[IoSlice<'_>],
        count: usize,
        mut reset: impl FnMut(StreamId, u32),
    ) {
        slices::first(slices, count).for_each(|accepted| self.accepted(accepted, &mut reset));
    }

    /// A flush succeeded that began after all that was accepted: the responses flushed with it, in the order they ended, and
    /// the bytes of their bodies that went over the wire. A count that differs from what the body produced is a doubt about
    /// which stream this is, or about this parser.
    ///
    /// What is not taken from the iterator comes with the next.
    pub(super) fn flushed(&mut self) -> impl Iterator<Item = (StreamId, u64)> {
        iter::from_fn(|| {
            let stream = self.ended.pop_front()?;
            let response = self.responses.remove(&stream)?;
            Some((stream, response.data))
        })
    }

    /// Whether the bytes were malformed. From then on nothing is followed, and every response only handed over.
    pub(super) fn gave_up(&self) -> bool {
        self.frames.gave_up()
    }

    fn sent(&mut self, stream: StreamId, data: u32, end_stream: bool) {
        // What comes behind the end is a tunnel's.
        let Some(response) = self.responses.get_mut(&stream).filter(|response| !response.ended) else { return };
        response.data += u64::from(data);
        if end_stream {
            response.ended = true;
            self.ended.push_back(stream);
        }
    }

    /// Also what has ended and waits for its flush: where frames begin has been in doubt since nobody knows when.
    fn give_up(&mut self) {
        self.responses = HashMap::new();
        self.ended = VecDeque::new();
    }
}

#[cfg(test)]
mod tests;
