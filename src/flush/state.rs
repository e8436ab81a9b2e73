//! The part of a connection that is behind its lock.

use std::{collections::VecDeque, io::IoSlice, mem};

use super::{
    acknowledge::FlushedResponse,
    frames::StreamId,
    outbound::{Abort, Outbound, Slot, Unknown, Waiter},
};
use crate::after_response::{FlushOutcome, FlushWaiter};

/// Waiters to complete once the lock is released. The first is stored inline, because usually there
/// is only one.
#[derive(Default)]
pub(super) struct Completions {
    first: Option<(FlushWaiter, FlushOutcome)>,
    rest: Vec<(FlushWaiter, FlushOutcome)>,
    /// The number of streams that have ended without a request.
    pub(super) undelivered: u64,
    /// The number of responses that were flushed and not acknowledged, although that was requested.
    pub(super) unacknowledged: u64,
    /// Responses that were flushed and wait for an acknowledgement.
    pub(super) awaiting: Vec<FlushedResponse>,
}

impl Completions {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn push(&mut self, waiter: FlushWaiter, outcome: FlushOutcome) {
        match self.first {
            None => self.first = Some((waiter, outcome)),
            Some(_) => self.rest.push((waiter, outcome)),
        }
    }

    /// Adds the waiter of a response that was flushed.
    fn push_flushed(&mut self, waiter: FlushWaiter, body_bytes: Option<u64>) {
        if waiter.awaits_acknowledgement() {
            self.awaiting.push((waiter, body_bytes));
        } else {
            self.push(waiter, FlushOutcome::Flushed { body_bytes });
        }
    }

    /// Adds the waiter of an HTTP/2 stream that has ended, if it has one.
    fn push_slot(&mut self, slot: Slot<FlushWaiter>, outcome: FlushOutcome) {
        match slot {
            Slot::Waiting(waiter) => self.push(waiter, outcome),
            Slot::Vacant => self.undelivered += 1,
            Slot::Completed => {}
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

    fn has_ended(&self) -> bool {
        self.has_ended()
    }
}

/// The open responses of a connection.
#[derive(Default)]
pub(super) struct State {
    /// HTTP/2: the open responses.
    pub(super) outbound: Outbound<FlushWaiter>,
    /// HTTP/1: responses whose body may still be open, in the order of their requests.
    open: VecDeque<Http1Response>,
    /// HTTP/1: responses whose body had ended when the last flush was called. Only
    /// [`begin_flush`](Self::begin_flush) adds to it, so a flush that succeeds covers all of them.
    flushing: Vec<Http1Response>,
    /// The transport failed or was dropped. Set once.
    lost: bool,
    /// The server's bytes were not understood, so no response can be followed. Set once.
    gave_up: bool,
    /// The argument of the last [`give_up_stalled`](Self::give_up_stalled).
    accepted: u64,
}

/// An open response on HTTP/1.
struct Http1Response {
    /// `None` once the response was given up. It stays in its list, so that the flush is
    /// attributed like before.
    waiter: Option<FlushWaiter>,
    /// `true` if the body had ended at the last [`give_up_stalled`](State::give_up_stalled).
    was_checked: bool,
}

impl Http1Response {
    fn is(&self, condition: fn(&FlushWaiter) -> bool) -> bool {
        self.waiter.as_ref().is_some_and(condition)
    }
}

/// The minimum progress of a response between two calls of [`State::give_up_stalled`], in bytes.
const MIN_PROGRESS: u64 = 4 * 1024;

/// The maximum number of open responses on HTTP/1. Only `pipeline_flush` of hyper leads to more
/// than a few. Responses over the limit are handed over only.
pub(super) const MAX_HTTP1_RESPONSES: usize = 1024;

impl State {
    /// Returns the number of responses that the next flush may cover.
    pub(super) fn flushable(&self) -> usize {
        self.open.len() + self.flushing.len() + self.outbound.ended()
    }

    /// Returns the number of open responses, including streams without a request.
    pub(super) fn open(&self) -> usize {
        self.open.len() + self.flushing.len() + self.outbound.open_streams()
    }

    /// Adds a response on HTTP/1.
    pub(super) fn begin_http1(&mut self, waiter: FlushWaiter, completions: &mut Completions) {
        if self.lost {
            completions.push(waiter, FlushOutcome::Lost);
        } else if self.gave_up || self.open.len() + self.flushing.len() >= MAX_HTTP1_RESPONSES {
            completions.push(waiter, FlushOutcome::GaveUp);
        } else {
            self.open.push_back(Http1Response { waiter: Some(waiter), was_checked: false });
        }
    }

    /// Adds a response on HTTP/2. `stream` is `None` if it is unknown.
    pub(super) fn begin_http2(&mut self, stream: Option<StreamId>, waiter: FlushWaiter, completions: &mut Completions) {
        let outcome = match stream {
            _ if self.gave_up => FlushOutcome::GaveUp,
            _ if self.lost => FlushOutcome::Lost,
            None => FlushOutcome::Unmapped,
            Some(stream) => match self.outbound.attach(stream, waiter) {
                Ok(()) => return,
                Err((waiter, unknown)) => {
                    let outcome = match unknown {
                        Unknown::Closed => FlushOutcome::Lost,
                        Unknown::NotFollowed => FlushOutcome::Unmapped,
                    };
                    return completions.push(waiter, outcome);
                }
            },
        };
        completions.push(waiter, outcome);
    }

    /// The client opens an HTTP/2 stream. It is followed if responses can be.
    pub(super) fn open_stream(&mut self, stream: StreamId) {
        if !self.lost && !self.gave_up {
            self.outbound.open(stream);
        }
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
        self.outbound.accept_vectored(slices, count, |abort, slot| {
            let outcome = match abort {
                Abort::Reset { .. } => FlushOutcome::Lost,
                Abort::Malformed => FlushOutcome::GaveUp,
            };
            completions.push_slot(slot, outcome);
        });
        self.gave_up |= self.outbound.gave_up();
    }

    /// Prepares a flush of the transport. Returns `true` if it covers a response.
    pub(super) fn begin_flush(&mut self, completions: &mut Completions) -> bool {
        for _ in 0..self.open.len() {
            let Some(response) = self.open.pop_front() else { break };
            match response.waiter {
                Some(waiter) if waiter.is_obsolete() => completions.push(waiter, FlushOutcome::Lost),
                Some(ref waiter) if !waiter.awaits_flush() => self.open.push_back(response),
                _ => self.flushing.push(response),
            }
        }
        !self.flushing.is_empty() || self.outbound.ended() > 0
    }

    /// The flush succeeded. Returns `true` if an HTTP/1 response has an open body.
    pub(super) fn end_flush(&mut self, completions: &mut Completions) -> bool {
        for waiter in self.flushing.drain(..).filter_map(|response| response.waiter) {
            completions.push_flushed(waiter, None);
        }
        self.outbound.flush(|_, body_bytes, slot| match slot {
            Slot::Waiting(waiter) => completions.push_flushed(waiter, Some(body_bytes)),
            slot => completions.push_slot(slot, FlushOutcome::Flushed { body_bytes: Some(body_bytes) }),
        });
        self.has_open_body()
    }

    /// The flush succeeded, but the heads of the HTTP/1 responses that it should cover will never
    /// be written.
    pub(super) fn lose_flushing(&mut self, completions: &mut Completions) {
        let waiters = self.flushing.drain(..).filter_map(|response| response.waiter);
        waiters.for_each(|waiter| completions.push(waiter, FlushOutcome::Lost));
    }

    /// Returns `true` if an HTTP/1 response has a head and an open body.
    pub(super) fn has_open_body(&self) -> bool {
        self.open.iter().any(|response| response.is(FlushWaiter::has_open_body))
    }

    /// Gives up on responses whose body has ended, if they made less than [`MIN_PROGRESS`]
    /// since the last call: on HTTP/2 each by itself, on HTTP/1 the connection as a whole.
    ///
    /// `accepted` is the number of bytes that the transport has accepted so far.
    pub(super) fn give_up_stalled(&mut self, accepted: u64, completions: &mut Completions) {
        let progress = accepted.saturating_sub(std::mem::replace(&mut self.accepted, accepted));
        for response in self.open.iter_mut().chain(&mut self.flushing) {
            let has_ended = response.is(FlushWaiter::has_ended);
            if response.was_checked && has_ended && progress < MIN_PROGRESS {
                if let Some(waiter) = response.waiter.take() {
                    completions.push(waiter, FlushOutcome::Stalled);
                }
            }
            response.was_checked = has_ended;
        }
        self.outbound.give_up_stalled(MIN_PROGRESS, |waiter| completions.push(waiter, FlushOutcome::Stalled));
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
        http1.filter_map(|response| response.waiter).for_each(|waiter| completions.push(waiter, outcome));
        self.outbound.close_all().for_each(|slot| completions.push_slot(slot, outcome));
    }
}
