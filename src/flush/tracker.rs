use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{TrackedIo, TrackedService, connection::Connection};
use crate::after_response::FlushOutcome;

/// Makes tracked connections, and counts how their responses end. Clones are handles to the same
/// tracker.
///
/// See the [module docs](crate::flush).
#[derive(Clone, Default)]
pub struct Tracker {
    counters: Arc<Counters>,
}

impl Tracker {
    /// Creates a tracker with all counters at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wraps the transport and the service of one connection. Pass both to hyper or hyper-util,
    /// with nothing in between.
    ///
    /// Nothing may have been read from the transport. It goes above TLS. The service is a hyper
    /// service: wrap a tower service in hyper-util's `TowerToHyperService`.
    pub fn track<T, S>(&self, io: T, service: S) -> (TrackedIo<T>, TrackedService<S>) {
        let connection = self.connection();
        (TrackedIo::new(io, connection.clone()), TrackedService::new(service, connection))
    }

    /// Returns how the responses on all connections ended so far.
    pub fn stats(&self) -> TrackerStats {
        self.counters.stats()
    }

    pub(crate) fn connection(&self) -> Arc<Connection> {
        Arc::new(Connection::new(self.counters.clone()))
    }
}

impl fmt::Debug for Tracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker").field("stats", &self.stats()).finish()
    }
}

/// Counters of a [`Tracker`].
///
/// Every response on HTTP/2, and every response on HTTP/1 whose body ended, is counted in exactly
/// one of `flushed`, `lost`, `gave_up`, `stalled` and `unmapped` once it is decided. The counters
/// are read one after the other, so their sum may be off by the responses that are decided at that
/// moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrackerStats {
    /// Those of `flushed` whose bytes the peer's TCP has acknowledged. Only responses that
    /// [requested](crate::AfterResponse::request_acknowledgement) it are counted here and in
    /// `unacknowledged`.
    pub acknowledged: u64,
    /// Connections, including closed ones.
    pub connections: u64,
    /// Responses that were flushed: a flush succeeded after the transport had accepted all of their
    /// bytes. On HTTP/1 these include heads that the server may have replaced, because their
    /// lengths contradict each other; the outcome of those is handed over.
    pub flushed: u64,
    /// Responses that were handed over only, because bytes on their HTTP/2 connection were not
    /// understood. Clients that break the protocol cause it. It should stay at zero otherwise.
    pub gave_up: u64,
    /// Responses whose stream was reset or whose connection closed before they were flushed.
    pub lost: u64,
    /// Those of `flushed` whose length on the wire differs from the length of their body. Their
    /// outcome is handed over. It should stay at zero.
    pub mismatched: u64,
    /// Responses that were handed over only, because the client did not take them in time: see the
    /// [module docs](crate::flush#what-is-promised).
    pub stalled: u64,
    /// Those of `flushed` whose acknowledgement was requested and was not seen: see the
    /// [module docs](crate::flush#acknowledged-responses).
    pub unacknowledged: u64,
    /// HTTP/2 streams that a client opened and the HTTP implementation did not pass on, because
    /// they were malformed, refused or too large. All streams, if the service does not belong to
    /// the transport.
    pub undelivered: u64,
    /// Responses that were handed over only, because their HTTP/2 stream is unknown. It should stay
    /// at zero, and grows if the HTTP implementation calls its services in a way that this crate
    /// does not know.
    pub unmapped: u64,
}

/// The counters behind [`TrackerStats`]. Their order relative to other memory does not matter.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) acknowledged: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) flushed: AtomicU64,
    gave_up: AtomicU64,
    lost: AtomicU64,
    /// Shared with the exchanges whose body has not ended.
    pub(super) mismatched: Arc<AtomicU64>,
    stalled: AtomicU64,
    pub(super) unacknowledged: AtomicU64,
    pub(super) undelivered: AtomicU64,
    unmapped: AtomicU64,
}

impl Counters {
    pub(super) fn count(&self, outcome: FlushOutcome) {
        count(match outcome {
            FlushOutcome::Unmapped => &self.unmapped,
            FlushOutcome::GaveUp => &self.gave_up,
            FlushOutcome::Stalled => &self.stalled,
            FlushOutcome::Lost => &self.lost,
            FlushOutcome::Flushed { .. } | FlushOutcome::Acknowledged { .. } => &self.flushed,
        });
    }

    pub(super) fn stats(&self) -> TrackerStats {
        TrackerStats {
            acknowledged: self.acknowledged.load(Relaxed),
            connections: self.connections.load(Relaxed),
            flushed: self.flushed.load(Relaxed),
            gave_up: self.gave_up.load(Relaxed),
            lost: self.lost.load(Relaxed),
            mismatched: self.mismatched.load(Relaxed),
            stalled: self.stalled.load(Relaxed),
            unacknowledged: self.unacknowledged.load(Relaxed),
            undelivered: self.undelivered.load(Relaxed),
            unmapped: self.unmapped.load(Relaxed),
        }
    }
}

pub(super) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Relaxed);
}
