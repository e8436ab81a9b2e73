//! A connection as its transport and its service share it: the open responses, and what the wire
//! says about each.
//!
//! On HTTP/1 the wire does not number its responses. hyper has the whole response in its buffer
//! when it drops the body, and flushes the transport only once that buffer is empty. So a flush
//! covers the responses whose body had ended when it was *called*. A body that another thread ends
//! during a flush waits for the next one.
//!
//! On HTTP/2 the bytes that the transport accepts decide ([`outbound`](super::outbound)).
//!
//! A client's reset ends a response that was not flushed, even if every byte of it was accepted: a
//! client that resets does not have its response. A response that was reported as flushed stays
//! flushed.

use std::{io::IoSlice, sync::Arc};

use http::Version;
use tokio::task;

use super::{
    frames::StreamId,
    state::{Completions, State},
    tracker::{Counters, count},
};
use crate::{
    after_response::{FlushOutcome, FlushWaiter},
    sync::{AtomicU8, AtomicUsize, Mutex, Ordering, lock},
};

/// The protocol of a connection, decided by the first bytes of the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Protocol {
    Undecided,
    Http1,
    Http2,
}

/// Shared by [`TrackedIo`](super::TrackedIo) and [`TrackedService`](super::TrackedService).
///
/// The methods of the transport are called behind its `&mut`, one after the other.
pub(crate) struct Connection {
    counters: Arc<Counters>,
    /// A [`Protocol`]. Leaves `Undecided` once.
    protocol: AtomicU8,
    state: Mutex<State>,
    /// [`State::flushable`], so that a flush without open responses costs one load.
    flushable: AtomicUsize,
}

impl Connection {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        count(&counters.connections);
        Self {
            counters,
            protocol: AtomicU8::new(Protocol::Undecided as u8),
            state: Mutex::new(State::default()),
            flushable: AtomicUsize::new(0),
        }
    }

    pub(crate) fn protocol(&self) -> Protocol {
        match self.protocol.load(Ordering::Acquire) {
            http1 if http1 == Protocol::Http1 as u8 => Protocol::Http1,
            http2 if http2 == Protocol::Http2 as u8 => Protocol::Http2,
            _ => Protocol::Undecided,
        }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    // Called by the service.

    /// Adds the response to the request that hyper passes to the service now. The waiter is
    /// completed exactly once: here if the response cannot be followed, otherwise by a method of
    /// the transport.
    ///
    /// On HTTP/2 the stream of the request is known only here, in the task that reads, and before
    /// it reads again. A service that is called later in a task of its own must not take the stream
    /// of another request.
    pub(super) fn begin(&self, version: Version, waiter: FlushWaiter) {
        // The version is compared in case the transport was read before it was wrapped: the rule of
        // HTTP/1 would be too early for HTTP/2.
        match self.protocol() {
            Protocol::Http1 if version < Version::HTTP_2 => {
                self.change(|state, completions| state.begin_http1(waiter, completions));
            }
            Protocol::Http2 => {
                let caller = ThreadAndTaskId::current();
                self.change(|state, completions| {
                    if state.is_reset(caller) {
                        completions.push(waiter, FlushOutcome::Lost);
                        return;
                    }
                    let stream = state.take_pending_stream(caller).filter(|_| version == Version::HTTP_2);
                    state.begin_http2(stream, waiter, completions);
                });
            }
            Protocol::Undecided | Protocol::Http1 => {
                self.change(|state, completions| state.begin_http2(None, waiter, completions));
            }
        }
    }

    // Called by the transport.

    /// The first bytes have decided the protocol, or the client closed the connection before they
    /// did.
    pub(super) fn set_protocol(&self, protocol: Protocol) {
        self.protocol.store(protocol as u8, Ordering::Release);
    }

    /// A header block that opens a stream was delivered to the end. A stream that cannot be
    /// followed is pending as well, otherwise its request would take the next stream.
    pub(super) fn open_stream(&self, stream: StreamId) {
        lock(&self.state).open_stream(stream, ThreadAndTaskId::current());
    }

    /// Sets whether the requests that h2 passes to the service before the next read were reset by
    /// the client. Their responses are lost.
    pub(super) fn expect_resets(&self, expected: bool) {
        lock(&self.state).expect_resets(expected.then(ThreadAndTaskId::current));
    }

    /// Returns `true` if the service has not taken the stream that was opened last.
    pub(super) fn has_pending_stream(&self) -> bool {
        lock(&self.state).pending_stream.is_some()
    }

    /// Takes the pending stream back: hyper has polled the transport again, so it did not pass the
    /// request on.
    pub(super) fn reclaim_stream(&self) {
        if self.change(State::reclaim_stream) {
            count(&self.counters.undelivered);
        }
    }

    /// The client reset a stream, which may never have been open.
    pub(super) fn reset_stream(&self, stream: StreamId) {
        self.change(|state, completions| state.lose_stream(stream, completions));
    }

    /// Stops mapping requests to HTTP/2 streams. Responses to later requests are handed over only;
    /// those whose stream is known are still followed.
    pub(super) fn stop_mapping(&self) {
        lock(&self.state).stop_mapping();
    }

    /// The server's bytes on HTTP/1 belong to no known response. Ends tracking.
    pub(super) fn give_up(&self) {
        self.change(State::give_up);
    }

    /// Returns `true` if an HTTP/1 response has a head and an open body.
    pub(super) fn has_open_body(&self) -> bool {
        lock(&self.state).has_open_body()
    }

    /// The transport accepted the first `count` bytes of `slices`. They are read on HTTP/2, and
    /// before the protocol is decided, because h2 sends its settings before it reads.
    pub(super) fn accept(&self, slices: &[IoSlice<'_>], count: usize) {
        if self.protocol() != Protocol::Http1 {
            self.change(|state, completions| state.accept(slices, count, completions));
        }
    }

    /// To be called before each poll of the transport's flush. Returns `true` if that flush covers
    /// a response, and its success must be reported by [`end_flush`](Self::end_flush).
    pub(super) fn begin_flush(&self) -> bool {
        match self.flushable.load(Ordering::Acquire) {
            0 => false,
            _ if self.protocol() == Protocol::Http2 => true,
            _ => self.change(State::begin_flush),
        }
    }

    /// The flush succeeded. Returns `true` if an HTTP/1 response has a head and an open body.
    pub(super) fn end_flush(&self) -> bool {
        self.change(State::end_flush)
    }

    /// The flush succeeded, but it flushed bytes that an application wrote after it took over an
    /// HTTP/1 connection. The responses that waited for it have no head on the wire, and hyper no
    /// longer holds one.
    pub(super) fn lose_flushing(&self) {
        self.change(State::lose_flushing);
    }

    /// The transport failed or was dropped.
    pub(super) fn lose(&self) {
        self.change(State::lose);
    }

    /// Changes the state, and completes waiters after the lock is released. Every change with
    /// completions goes through here.
    fn change<T>(&self, change: impl FnOnce(&mut State, &mut Completions) -> T) -> T {
        let mut completions = Completions::default();
        let changed = {
            let mut state = lock(&self.state);
            let changed = change(&mut state, &mut completions);
            self.flushable.store(state.flushable(), Ordering::Release);
            changed
        };
        for (waiter, outcome) in completions {
            // An HTTP/1 response whose body did not end is not lost on the wire.
            let is_counted =
                outcome != FlushOutcome::Lost || self.protocol() != Protocol::Http1 || waiter.awaits_flush();
            if is_counted {
                self.counters.count(outcome);
            }
            waiter.complete(outcome);
        }
        changed
    }
}

#[cfg(test)]
impl Connection {
    pub(super) fn follows(&self, stream: StreamId) -> bool {
        lock(&self.state).outbound.follows(stream)
    }

    /// Pretends that the pending stream could not be followed.
    pub(super) fn unfollow_pending_stream(&self) {
        if let Some(pending) = &mut lock(&self.state).pending_stream {
            pending.stream = None;
        }
    }
}

thread_local! {
    static THREAD: u8 = const { 0 };
}

/// The current thread, and the tokio task on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct ThreadAndTaskId {
    /// Address of a thread-local, unique among living threads. Cheaper than the id of `std`, which
    /// counts a reference.
    thread: usize,
    task: Option<task::Id>,
}

impl ThreadAndTaskId {
    fn current() -> Self {
        Self { thread: THREAD.with(|thread| std::ptr::from_ref(thread).addr()), task: task::try_id() }
    }
}

#[cfg(test)]
mod tests;
