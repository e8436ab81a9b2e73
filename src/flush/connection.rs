//! One connection, as its transport and its service share it: which responses are open on it, and what the wire says of each.
//!
//! HTTP/1 has one response at a time, and the mark that its body has ended is set by the task that also flushes: the body is
//! dropped inside hyper's `poll_write`, with all of it in hyper's buffer. What counts is therefore the order of calls: of the
//! responses that wait only those are flushed by a flush that waited when it was *called*. A mark from elsewhere, amid a
//! flush, waits for the next: late rather than early.
//!
//! HTTP/2 goes by the bytes that were accepted, which only the transport tells, behind its `&mut`; the service adds and takes
//! away who is to be told.
//!
//! A client's reset is the end of a response that has not been flushed, also of one that was accepted to the last byte: a
//! client that resets does not have its response. Once flushed was told, nothing changes it.

mod here;
mod state;
mod wire;

use std::sync::Arc;

use http::Version;

use self::{
    here::Here,
    state::{Fate, Fates, State},
};
use super::stats::{Counters, count};
use crate::sync::{AtomicU8, AtomicUsize, Mutex, Ordering, lock};

pub(super) use self::wire::Flush;
pub(crate) use super::frames::StreamId;
pub(super) use crate::after_response::Verdict;

/// A response that waits for the wire's word about it.
pub(crate) trait Response: Send + Sync {
    /// Said at most once to each that [`begin`](Connection::begin) could promise it, at once or later, from any thread and
    /// under no lock. It must not run code of users: it is called in the midst of I/O.
    fn told(self: Arc<Self>, verdict: Verdict);
}

/// What is spoken on a connection, by the first bytes of the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Protocol {
    Undecided,
    Http1,
    Http2,
}

/// What the two sides of a connection share. The transport's side is in [`wire`].
pub(crate) struct Connection {
    counters: Arc<Counters>,
    /// A [`Protocol`]. Leaves `Undecided` once.
    protocol: AtomicU8,
    state: Mutex<State>,
    /// [`State::awaiting`], for a flush that has nobody to tell to be no more than one load.
    awaiting: AtomicUsize,
    /// HTTP/1: the number of responses with a head and a body that is not dropped. hyper encodes a
    /// head as soon as it has it and flushes only an empty buffer, so at each flush the transport
    /// has accepted the heads of all these responses.
    open_bodies: AtomicUsize,
}

/// The maximum number of HTTP/1 responses that wait for one flush. Only `pipeline_flush` of hyper
/// leads to more than a few; the responses over the limit are only handed over.
const MAX_WAITING: usize = 1024;

impl Connection {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        count(&counters.connections);
        Self {
            counters,
            protocol: AtomicU8::new(Protocol::Undecided as u8),
            state: Mutex::new(State::default()),
            awaiting: AtomicUsize::new(0),
            open_bodies: AtomicUsize::new(0),
        }
    }

    pub(crate) fn protocol(&self) -> Protocol {
        // Set by the transport, in the task that reads it or that called whoever does.
        match self.protocol.load(Ordering::Acquire) {
            http1 if http1 == Protocol::Http1 as u8 => Protocol::Http1,
            http2 if http2 == Protocol::Http2 as u8 => Protocol::Http2,
            _ => Protocol::Undecided,
        }
    }

    /// The stream of the request that is being handed over now, once. To be called where hyper hands it over, before the
    /// transport is read again; later it is nobody's. Always `None` on HTTP/1.
    ///
    /// Only in the task that reads: a service that is called later, in a task of its own, must not take the stream of the request
    /// that is handed over at that moment.
    pub(crate) fn take_stream(&self) -> Option<StreamId> {
        if self.protocol() != Protocol::Http2 {
            return None;
        }
        let opened = lock(&self.state).opened.take_if(|opened| opened.reader == Here::now());
        opened?.stream
    }

    /// A request of this version, of this stream, is being answered. Whether there will be a verdict other than
    /// [`Unsure`](Verdict::Unsure), which is told at once, as is [`Lost`](Verdict::Lost).
    ///
    /// On HTTP/2 the response is kept until it is told. On HTTP/1 nothing is kept until
    /// [`await_flush`](Self::await_flush).
    pub(crate) fn begin<R: Response + 'static>(
        &self,
        version: Version,
        stream: Option<StreamId>,
        response: &Arc<R>,
    ) -> bool {
        // The version is compared in case somebody read from the transport before it was wrapped: HTTP/1's rule would be too
        // early for HTTP/2.
        let protocol = self.protocol();
        if protocol == Protocol::Http1 && version < Version::HTTP_2 {
            return true;
        }
        let stream = stream.filter(|_| protocol == Protocol::Http2 && version == Version::HTTP_2);
        let fate = self.change(|state, fates| {
            let fate = state.begin(stream, response);
            fates.extend(fate.map(|fate| (Arc::clone(response) as Arc<dyn Response>, fate)));
            fate
        });
        matches!(fate, None | Some(Fate::Lost))
    }

    /// The response of a stream ends, on the wire, with its head: CONNECT was answered with success. To be called before hyper
    /// has the head.
    pub(crate) fn ends_with_head(&self, stream: StreamId) {
        lock(&self.state).outbound.ends_with_head(stream);
    }

    /// Notes that hyper is about to get the head of an HTTP/1 response.
    pub(crate) fn head_ready(&self) {
        self.open_bodies.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes that the body of an HTTP/1 response was dropped.
    pub(crate) fn body_dropped(&self) {
        self.open_bodies.fetch_sub(1, Ordering::AcqRel);
    }

    /// The body of an HTTP/1 response has ended, and is complete: the next flush that succeeds has flushed it.
    ///
    /// To be called by the connection's task, with what hyper holds of the body already in its buffer: as it drops the body,
    /// or takes its last frame.
    pub(crate) fn await_flush(&self, response: Arc<dyn Response>) {
        self.change(|state, fates| {
            if state.lost {
                fates.push((response, Fate::Lost));
            } else if state.gave_up || state.ended.len() >= MAX_WAITING {
                fates.push((response, Fate::GaveUp));
            } else {
                state.ended.push(response);
            }
        });
    }

    /// The body of a flushed response had another length than [`body_bytes`](Verdict::Flushed): to be counted.
    pub(crate) fn mismatched(&self) {
        count(&self.counters.mismatched);
    }

    /// The one way to change the state: who is to be told something is told after the lock was released, and counted.
    fn change<T>(&self, change: impl FnOnce(&mut State, &mut Fates) -> T) -> T {
        let mut fates = Fates::new();
        let changed = {
            let mut state = lock(&self.state);
            let changed = change(&mut state, &mut fates);
            self.awaiting.store(state.awaiting(), Ordering::Release);
            changed
        };
        for (response, fate) in fates {
            let (counter, verdict) = match fate {
                Fate::Flushed { body_bytes } => (&self.counters.flushed, Verdict::Flushed { body_bytes }),
                Fate::GaveUp => (&self.counters.gave_up, Verdict::Unsure),
                Fate::Lost => (&self.counters.lost, Verdict::Lost),
                Fate::Unmapped => (&self.counters.unmapped, Verdict::Unsure),
            };
            count(counter);
            response.told(verdict);
        }
        changed
    }
}

#[cfg(test)]
mod tests;
