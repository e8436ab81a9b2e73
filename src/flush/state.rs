//! The part of a connection that is behind its lock.

use std::{collections::VecDeque, io::IoSlice, mem};

use super::{
    connection::ThreadAndTaskId,
    frames::StreamId,
    outbound::{Abort, Outbound, Waiter},
};
use crate::after_response::{FlushOutcome, FlushWaiter};

/// Waiters to complete once the lock is released. The first is stored inline, because usually there
/// is only one.
#[derive(Default)]
pub(super) struct Completions {
    first: Option<(FlushWaiter, FlushOutcome)>,
    rest: Vec<(FlushWaiter, FlushOutcome)>,
}

impl Completions {
    pub(super) fn push(&mut self, waiter: FlushWaiter, outcome: FlushOutcome) {
        match self.first {
            None => self.first = Some((waiter, outcome)),
            Some(_) => self.rest.push((waiter, outcome)),
        }
    }
}

impl IntoIterator for Completions {
    type Item = (FlushWaiter, FlushOutcome);
    type IntoIter = std::iter::Chain<std::option::IntoIter<Self::Item>, std::vec::IntoIter<Self::Item>>;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.rest)
    }
}

impl Waiter for FlushWaiter {
    fn ends_with_head(&self) -> bool {
        self.ends_with_head()
    }
}

/// An HTTP/2 stream whose request hyper is about to pass to the service.
pub(super) struct PendingStream {
    /// `None` if the stream is not followed.
    pub(super) stream: Option<StreamId>,
    /// The task that reads the transport. hyper calls the service in the same poll.
    pub(super) reader: ThreadAndTaskId,
}

/// The open responses of a connection.
#[derive(Default)]
pub(super) struct State {
    /// HTTP/2: set by the transport when a stream opens. Taken by the service, or by the transport
    /// if the service was not called.
    pub(super) pending_stream: Option<PendingStream>,
    /// HTTP/2: the task that reads the transport, while h2 may pass on requests that the client has
    /// reset, and no others. Then no stream is pending, because a stream becomes pending only when
    /// h2 has accepted those before it.
    resets_reader: Option<ThreadAndTaskId>,
    /// HTTP/2: the open responses.
    pub(super) outbound: Outbound<FlushWaiter>,
    /// HTTP/1: responses whose body may still be open, in the order of their requests.
    open: VecDeque<FlushWaiter>,
    /// HTTP/1: responses whose body had ended when the last flush was called. Only
    /// [`begin_flush`](Self::begin_flush) adds to it, so a flush that succeeds covers all of them.
    flushing: Vec<FlushWaiter>,
    /// The transport failed or was dropped. Set once.
    lost: bool,
    /// The server's bytes were not understood, so no response can be followed. Set once.
    gave_up: bool,
    /// HTTP/2: the streams of new requests are no longer known. Set once. Streams that were mapped
    /// before are still followed, because the server's bytes decide about them.
    mapping_stopped: bool,
}

/// The maximum number of open responses on HTTP/1. Only `pipeline_flush` of hyper leads to more
/// than a few. Responses over the limit are handed over only.
pub(super) const MAX_HTTP1_RESPONSES: usize = 1024;

impl State {
    /// Returns the number of responses that the next flush may cover.
    pub(super) fn flushable(&self) -> usize {
        self.open.len() + self.flushing.len() + self.outbound.ended()
    }

    /// Adds a response on HTTP/1.
    pub(super) fn begin_http1(&mut self, waiter: FlushWaiter, completions: &mut Completions) {
        if self.lost {
            completions.push(waiter, FlushOutcome::Lost);
        } else if self.gave_up || self.open.len() + self.flushing.len() >= MAX_HTTP1_RESPONSES {
            completions.push(waiter, FlushOutcome::GaveUp);
        } else {
            self.open.push_back(waiter);
        }
    }

    /// Adds a response on HTTP/2. `stream` is `None` if it is unknown.
    pub(super) fn begin_http2(&mut self, stream: Option<StreamId>, waiter: FlushWaiter, completions: &mut Completions) {
        if self.gave_up {
            completions.push(waiter, FlushOutcome::GaveUp);
        } else if let Some(stream) = stream {
            // A pending stream that is no longer followed was reset, or the connection was lost.
            if let Some(waiter) = self.outbound.attach(stream, waiter) {
                completions.push(waiter, FlushOutcome::Lost);
            }
        } else if self.mapping_stopped {
            completions.push(waiter, FlushOutcome::GaveUp);
        } else {
            completions.push(waiter, FlushOutcome::Unmapped);
        }
    }

    /// Sets whether the requests that h2 passes on next were reset by the client. `reader` is the
    /// task that reads the transport.
    pub(super) fn expect_resets(&mut self, reader: Option<ThreadAndTaskId>) {
        self.resets_reader = reader;
    }

    /// Returns `true` if the client has reset the request that the caller passes on.
    pub(super) fn is_reset(&self, caller: ThreadAndTaskId) -> bool {
        self.resets_reader == Some(caller)
    }

    /// Opens an HTTP/2 stream, unless responses can no longer be followed.
    pub(super) fn open_stream(&mut self, stream: StreamId, reader: ThreadAndTaskId) {
        let is_followed = !self.lost && !self.gave_up && !self.mapping_stopped && self.outbound.open(stream);
        self.pending_stream = Some(PendingStream { stream: is_followed.then_some(stream), reader });
    }

    /// Takes the pending stream, if the caller reads the transport.
    pub(super) fn take_pending_stream(&mut self, caller: ThreadAndTaskId) -> Option<StreamId> {
        self.pending_stream.take_if(|pending| pending.reader == caller)?.stream
    }

    /// Takes the pending stream back from the service, which was not called. Returns `true` if
    /// there was one.
    pub(super) fn reclaim_stream(&mut self, completions: &mut Completions) -> bool {
        let Some(pending) = self.pending_stream.take() else { return false };
        if let Some(stream) = pending.stream {
            self.lose_stream(stream, completions);
        }
        true
    }

    /// The client reset a stream.
    pub(super) fn lose_stream(&mut self, stream: StreamId, completions: &mut Completions) {
        if let Some(waiter) = self.outbound.close(stream) {
            completions.push(waiter, FlushOutcome::Lost);
        }
    }

    /// The transport of an HTTP/2 connection accepted the first `count` bytes of `slices`.
    pub(super) fn accept(&mut self, slices: &[IoSlice<'_>], count: usize, completions: &mut Completions) {
        if self.lost || self.gave_up {
            return;
        }
        self.outbound.accept_vectored(slices, count, |abort, waiter| {
            let outcome = match abort {
                Abort::Reset { .. } => FlushOutcome::Lost,
                Abort::Malformed => FlushOutcome::GaveUp,
            };
            if let Some(waiter) = waiter {
                completions.push(waiter, outcome);
            }
        });
        self.gave_up |= self.outbound.gave_up();
    }

    /// Prepares a flush of the transport. Returns `true` if it covers a response.
    pub(super) fn begin_flush(&mut self, completions: &mut Completions) -> bool {
        for _ in 0..self.open.len() {
            let Some(waiter) = self.open.pop_front() else { break };
            if waiter.awaits_flush() {
                self.flushing.push(waiter);
            } else if waiter.is_obsolete() {
                completions.push(waiter, FlushOutcome::Lost);
            } else {
                self.open.push_back(waiter);
            }
        }
        !self.flushing.is_empty() || self.outbound.ended() > 0
    }

    /// The flush succeeded. Returns `true` if an HTTP/1 response has an open body.
    pub(super) fn end_flush(&mut self, completions: &mut Completions) -> bool {
        for waiter in self.flushing.drain(..) {
            completions.push(waiter, FlushOutcome::Flushed { body_bytes: None });
        }
        for (_, body_bytes, waiter) in self.outbound.flushed() {
            if let Some(waiter) = waiter {
                completions.push(waiter, FlushOutcome::Flushed { body_bytes: Some(body_bytes) });
            }
        }
        self.has_open_body()
    }

    /// The flush succeeded, but the heads of the HTTP/1 responses that it should cover will never
    /// be written.
    pub(super) fn lose_flushing(&mut self, completions: &mut Completions) {
        self.flushing.drain(..).for_each(|waiter| completions.push(waiter, FlushOutcome::Lost));
    }

    /// Returns `true` if an HTTP/1 response has a head and an open body.
    pub(super) fn has_open_body(&self) -> bool {
        self.open.iter().any(FlushWaiter::has_open_body)
    }

    /// Stops mapping requests to HTTP/2 streams.
    pub(super) fn stop_mapping(&mut self) {
        self.mapping_stopped = true;
    }

    /// The server's bytes were not understood.
    pub(super) fn give_up(&mut self, completions: &mut Completions) {
        self.gave_up = true;
        self.complete_all(FlushOutcome::GaveUp, completions);
    }

    /// The transport failed or was dropped.
    pub(super) fn lose(&mut self, completions: &mut Completions) {
        self.lost = true;
        self.complete_all(FlushOutcome::Lost, completions);
    }

    fn complete_all(&mut self, outcome: FlushOutcome, completions: &mut Completions) {
        let http1 = mem::take(&mut self.flushing).into_iter().chain(mem::take(&mut self.open));
        http1.chain(self.outbound.close_all()).for_each(|waiter| completions.push(waiter, outcome));
    }
}
