use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What became of the responses on the connections that a tracker tracks.
///
/// Every response that is followed on HTTP/2, and every one on HTTP/1 whose body came to its end, is in exactly one of
/// `flushed`, `lost`, `gave_up` and `unmapped` once its fate is known. The counters are read one after the other while
/// connections go on: each is right, their sum may be off by the responses of that moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections, also those that have ended.
    pub connections: u64,
    /// Responses that were flushed: a flush succeeded after the transport had accepted all of them.
    pub flushed: u64,
    /// Responses whose flush could not be observed, because the client's or the server's bytes on
    /// their HTTP/2 connection were not understood, or because the client floods the connection
    /// with resets. Otherwise it should stay at zero.
    pub gave_up: u64,
    /// Responses whose stream was reset or whose connection ended before they were flushed.
    pub lost: u64,
    /// Of the `flushed`, those with more or fewer bytes on the wire than their body had. Their outcome does not say flushed. It
    /// should stay at zero.
    pub mismatched: u64,
    /// HTTP/2 streams that a client opened and the HTTP implementation did not pass on: malformed, refused, too large. Also all of
    /// them, if the service is not the one that belongs to the transport.
    pub undelivered: u64,
    /// Responses that nothing could be told about, because it was not learnt which HTTP/2 stream they are. It should stay at
    /// zero, and grows if the HTTP implementation calls its services in another way than this crate knows.
    pub unmapped: u64,
}

/// The same while it is counted, by all connections of a tracker.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(super) connections: AtomicU64,
    pub(super) flushed: AtomicU64,
    pub(super) gave_up: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) mismatched: AtomicU64,
    pub(super) undelivered: AtomicU64,
    pub(super) unmapped: AtomicU64,
}

impl Counters {
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            connections: self.connections.load(Relaxed),
            flushed: self.flushed.load(Relaxed),
            gave_up: self.gave_up.load(Relaxed),
            lost: self.lost.load(Relaxed),
            mismatched: self.mismatched.load(Relaxed),
            undelivered: self.undelivered.load(Relaxed),
            unmapped: self.unmapped.load(Relaxed),
        }
    }
}

/// Nothing depends on their order.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
