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

use std::{
    io::IoSlice,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{HeaderMap, Version};
use tokio::time::Instant;

use super::{
    acknowledge::FlushedResponse,
    inbound::{Delivery, Event, Inbound},
    mark::Mark,
    state::{Completions, State},
    tracker::{Counters, add, count},
};
use crate::{
    after_response::{ConnectionDriver, FlushOutcome, FlushWaiter, SettledExchanges},
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
    created: Instant,
    /// HTTP/2: nanoseconds from `created` to the last read that contained a request. One clock
    /// reading serves all requests of a read.
    read_after: AtomicU64,
    /// A [`Protocol`]. Leaves `Undecided` once.
    protocol: AtomicU8,
    mark: Mark,
    /// The socket is known, so that acknowledgements may be. Set before the connection is served.
    has_socket: AtomicBool,
    state: Mutex<State>,
    /// [`State::flushable`], so that a flush without open responses costs one load.
    flushable: AtomicUsize,
    /// [`State::open`], so that an idle connection costs one load.
    open: AtomicUsize,
    driver: ConnectionDriver,
}

impl Connection {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        count(&counters.connections);
        Self {
            created: Instant::now(),
            read_after: AtomicU64::new(0),
            counters,
            protocol: AtomicU8::new(Protocol::Undecided as u8),
            mark: Mark::new(),
            has_socket: AtomicBool::new(false),
            state: Mutex::new(State::default()),
            flushable: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            driver: ConnectionDriver::default(),
        }
    }

    pub(crate) fn protocol(&self) -> Protocol {
        match self.protocol.load(Ordering::Acquire) {
            http1 if http1 == Protocol::Http1 as u8 => Protocol::Http1,
            http2 if http2 == Protocol::Http2 as u8 => Protocol::Http2,
            _ => Protocol::Undecided,
        }
    }

    /// Returns the time at which the request was read that the service receives now: on HTTP/2 that
    /// of the newest request, otherwise the current time.
    pub(super) fn request_time(&self) -> Instant {
        match self.protocol() {
            Protocol::Http2 => self.created + Duration::from_nanos(self.read_after.load(Relaxed)),
            Protocol::Http1 | Protocol::Undecided => Instant::now(),
        }
    }

    /// Records that the transport knows its socket.
    #[cfg(target_os = "linux")]
    pub(super) fn set_socket_known(&self) {
        self.has_socket.store(true, Relaxed);
    }

    /// Returns `true` if the connection may find out what its peer has acknowledged.
    pub(super) fn has_socket(&self) -> bool {
        self.has_socket.load(Relaxed)
    }

    // Called by the service.

    /// Adds the response to a request, and removes the [mark](super::mark) from its fields. The
    /// waiter is completed exactly once: here if the response cannot be followed, otherwise by a
    /// method of the transport.
    pub(super) fn begin(&self, version: Version, headers: &mut HeaderMap, waiter: FlushWaiter) {
        // The version is compared in case the transport was read before it was wrapped: the rule of
        // HTTP/1 would be too early for HTTP/2.
        match self.protocol() {
            Protocol::Http1 if version < Version::HTTP_2 => {
                self.change(|state, completions| state.begin_http1(waiter, completions));
            }
            protocol => {
                let is_http2 = protocol == Protocol::Http2 && version == Version::HTTP_2;
                let stream = if is_http2 { self.mark.take(headers) } else { None };
                self.change(|state, completions| state.begin_http2(stream, waiter, completions));
            }
        }
    }

    // Called by the transport.

    /// The first bytes have decided the protocol, or the client closed the connection before they
    /// did.
    pub(super) fn set_protocol(&self, protocol: Protocol) {
        self.protocol.store(protocol as u8, Ordering::Release);
    }

    /// Delivers bytes of an HTTP/2 client, like [`Inbound::deliver`].
    pub(super) fn read(&self, inbound: &mut Inbound, bytes: &[u8], room: usize, put: impl FnMut(&[u8])) -> Delivery {
        self.change(|state, completions| {
            let mut has_request = false;
            let delivery = inbound.deliver(&self.mark, bytes, room, put, |event| match event {
                Event::Open(stream) => {
                    has_request = true;
                    state.open_stream(stream);
                }
                Event::Reset(stream) => state.lose_stream(stream, completions),
            });
            if has_request {
                let elapsed = u64::try_from(self.created.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.read_after.store(elapsed, Relaxed);
            }
            delivery
        })
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

    /// The flush succeeded. Returns `true` if an HTTP/1 response has a head and an open body, and
    /// the responses that wait for an acknowledgement.
    pub(super) fn end_flush(&self) -> (bool, Vec<FlushedResponse>) {
        self.change(|state, completions| {
            let has_open_body = state.end_flush(completions);
            (has_open_body, std::mem::take(&mut completions.awaiting))
        })
    }

    /// Completes responses that have waited for an acknowledgement.
    pub(super) fn complete_flushed(&self, completions: Completions) {
        self.complete_all(completions);
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

    /// Returns `true` if a response is open.
    pub(super) fn has_open(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }

    /// Gives up on responses that the client has not taken, as [`State::give_up_stalled`] says.
    pub(super) fn give_up_stalled(&self, accepted: u64) {
        self.change(|state, completions| state.give_up_stalled(accepted, completions));
    }

    /// Changes the state, and completes waiters after the lock is released. Every change with
    /// completions goes through here.
    fn change<T>(&self, change: impl FnOnce(&mut State, &mut Completions) -> T) -> T {
        let mut completions = Completions::default();
        let changed = {
            let mut state = lock(&self.state);
            let changed = change(&mut state, &mut completions);
            self.flushable.store(state.flushable(), Ordering::Release);
            self.open.store(state.open(), Ordering::Release);
            changed
        };
        self.complete_all(completions);
        changed
    }

    /// Counts and completes what a change has left.
    fn complete_all(&self, completions: Completions) {
        if completions.undelivered > 0 {
            add(&self.counters.undelivered, completions.undelivered);
        }
        if completions.unacknowledged > 0 {
            add(&self.counters.unacknowledged, completions.unacknowledged);
        }
        if !completions.is_empty() {
            self.complete(completions);
        }
    }

    fn complete(&self, completions: Completions) {
        let mut settled = SettledExchanges::of(&self.driver);
        // Added once for all, because the counter is shared by all connections.
        let (mut flushed, mut acknowledged) = (0, 0);
        for (waiter, outcome) in completions {
            // An HTTP/1 response whose body did not end is not lost on the wire.
            let is_counted =
                outcome != FlushOutcome::Lost || self.protocol() != Protocol::Http1 || waiter.awaits_flush();
            match outcome {
                FlushOutcome::Flushed { .. } => flushed += 1,
                FlushOutcome::Acknowledged { .. } => (flushed, acknowledged) = (flushed + 1, acknowledged + 1),
                _ if is_counted => self.counters.count(outcome),
                _ => {}
            }
            waiter.complete(outcome, &self.counters.mismatched, &mut settled);
        }
        if flushed > 0 {
            add(&self.counters.flushed, flushed);
        }
        if acknowledged > 0 {
            add(&self.counters.acknowledged, acknowledged);
        }
    }
}

#[cfg(test)]
use super::frames::StreamId;

#[cfg(test)]
impl Connection {
    pub(super) fn follows(&self, stream: StreamId) -> bool {
        lock(&self.state).outbound.follows(stream)
    }

    pub(super) fn open_stream(&self, stream: StreamId) {
        self.change(|state, _| state.open_stream(stream));
    }

    /// Returns the fields of a request on this stream, as the service receives them.
    pub(super) fn fields(&self, stream: StreamId) -> HeaderMap {
        let value = http::HeaderValue::from_bytes(&self.mark.field(stream)[3..]);
        HeaderMap::from_iter([(super::mark::NAME, value.expect("it is valid"))])
    }

    /// The client resets a stream.
    pub(super) fn reset_stream(&self, stream: StreamId) {
        self.change(|state, completions| state.lose_stream(stream, completions));
    }
}

#[cfg(test)]
mod tests;
