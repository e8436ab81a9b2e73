use std::time::Duration;

use crate::Timestamp;

/// One use of a store by one process, from its beginning to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(i64);

impl Epoch {
    /// Numbers grow from one beginning to the next.
    pub fn from_number(number: i64) -> Self {
        Self(number)
    }

    /// The number.
    pub fn as_number(self) -> i64 {
        self.0
    }
}

/// What a process got from a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lease {
    /// What its writes are made under.
    pub epoch: Epoch,
    /// How often it must be renewed. `None` if the store is for one process at a time: then nobody else needs to know that it lives, and
    /// nobody else can ask it to cancel.
    pub renew_every: Option<Duration>,
}

impl Lease {
    /// For as long as the process has the store.
    pub fn exclusive(epoch: Epoch) -> Self {
        Self { epoch, renew_every: None }
    }

    /// Over if it is not renewed; `renew_every` should be a third of how long it lasts, so that two renewals may fail.
    pub fn renewed_every(epoch: Epoch, renew_every: Duration) -> Self {
        Self { epoch, renew_every: Some(renew_every) }
    }
}

/// Who begins to use a store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Process {
    /// For people who look into the store.
    pub name: String,
    /// When it began.
    pub started_at: Timestamp,
}

impl Process {
    /// One of that name, which began then.
    pub fn new(name: impl Into<String>, started_at: Timestamp) -> Self {
        Self { name: name.into(), started_at }
    }
}
