use std::{any::Any, fmt, sync::Arc, time::Duration};

use crate::Timestamp;

/// One use of a store by one [`Tasks`](crate::Tasks), identified by a number that grows with each
/// epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(i64);

impl From<i64> for Epoch {
    fn from(number: i64) -> Self {
        Self(number)
    }
}

impl From<Epoch> for i64 {
    fn from(epoch: Epoch) -> Self {
        epoch.0
    }
}

/// The right of a [`Tasks`](crate::Tasks) to write records, valid in one [epoch](Epoch). Returned
/// by [`TaskStore::begin`](super::TaskStore::begin).
#[derive(Clone)]
#[non_exhaustive]
pub struct Lease {
    /// The epoch.
    pub epoch: Epoch,
    /// The interval at which the lease must be renewed. `None` if the lease does not expire,
    /// because the store is for one process at a time.
    pub renew_every: Option<Duration>,
    guard: Option<Arc<dyn Any + Send + Sync>>,
}

impl Lease {
    /// Creates a lease that does not expire.
    pub fn exclusive(epoch: Epoch) -> Self {
        Self { epoch, renew_every: None, guard: None }
    }

    /// Creates a lease that expires unless it is renewed.
    ///
    /// `interval` should be an eighth of the duration of the lease: an attempt may take two
    /// intervals, and one that failed is repeated after a quarter of an interval.
    pub fn renewed_every(epoch: Epoch, interval: Duration) -> Self {
        Self { epoch, renew_every: Some(interval), guard: None }
    }

    /// Keeps `guard` for as long as the lease or a clone of it exists.
    ///
    /// A store for one process learns from the drop of the guard that the owner of the epoch is
    /// gone although it did not [end](super::TaskStore::end) the epoch.
    #[must_use]
    pub fn guard(self, guard: impl Any + Send + Sync) -> Self {
        Self { guard: Some(Arc::new(guard)), ..self }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("epoch", &self.epoch)
            .field("renew_every", &self.renew_every)
            .field("has_guard", &self.guard.is_some())
            .finish()
    }
}

/// Describes the process that begins an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Process {
    /// The name of the process, for people who inspect the store.
    pub name: String,
    /// When the epoch begins.
    pub started_at: Timestamp,
}

impl Process {
    /// Creates a description.
    pub fn new(name: impl Into<String>, started_at: Timestamp) -> Self {
        Self { name: name.into(), started_at }
    }
}
