use std::{fmt, sync::Arc};

use super::{Stats, TrackedIo, TrackedService, connection::Connection, stats::Counters};

/// Makes tracked connections, and counts what becomes of the responses on them. A handle: clones are the same tracker.
///
/// See the [module docs](crate::flush).
#[derive(Clone, Default)]
pub struct Tracker {
    counters: Arc<Counters>,
}

impl Tracker {
    /// With all counters at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a tracked connection of a transport that nobody has read from, and the service that answers on it. Both are for one
    /// connection, and belong together: give them to hyper, or to hyper-util, and nothing in between.
    ///
    /// The transport goes above TLS. The service is what hyper calls: a tower service is made one with hyper-util's
    /// `TowerToHyperService`.
    pub fn track<T, S>(&self, io: T, service: S) -> (TrackedIo<T>, TrackedService<S>) {
        let connection = self.connection();
        (TrackedIo::new(io, connection.clone()), TrackedService::new(service, connection))
    }

    /// What became of the responses so far, on all connections.
    pub fn stats(&self) -> Stats {
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
