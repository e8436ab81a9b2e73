use std::time::Duration;

use crate::Timestamp;

/// One use of a store by one process, identified by a number that grows with each epoch.
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

/// The right of a process to write records. Returned by
/// [`TaskStore::begin`](super::TaskStore::begin).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lease {
    /// The epoch of the process.
    pub epoch: Epoch,
    /// The interval at which the lease must be renewed. `None` if the store is for one process at a
    /// time: the lease does not expire, and no other process can request cancellation.
    pub renew_every: Option<Duration>,
}

impl Lease {
    /// Creates a lease that does not expire.
    pub fn exclusive(epoch: Epoch) -> Self {
        Self { epoch, renew_every: None }
    }

    /// Creates a lease that expires unless it is renewed. `interval` should be a third of its
    /// duration, so that two renewals may fail.
    pub fn renewed_every(epoch: Epoch, interval: Duration) -> Self {
        Self { epoch, renew_every: Some(interval) }
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
