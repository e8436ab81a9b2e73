use crate::{Record, TaskId, Timestamp};

/// Operation of a batch.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Op {
    /// Inserts the record of a new task, owned by the epoch of the batch.
    ///
    /// If a record or a tombstone with that id exists, it is kept and the operation is
    /// [done](Written::Done): an earlier attempt succeeded and its reply was lost.
    Accept(Box<Record>),
    /// Replaces the record of a task that this epoch has accepted, except for a
    /// [`Record::cancel_requested_at`] that is already set.
    Update(Box<Record>),
    /// Records a cancel request, from any process. The first request sets
    /// [`Record::cancel_requested_at`] and increments the version.
    RequestCancel {
        /// The id of the task.
        id: TaskId,
        /// When cancellation was requested.
        now: Timestamp,
    },
}

impl Op {
    /// Returns the id of the task.
    pub fn id(&self) -> TaskId {
        match self {
            Self::Accept(record) | Self::Update(record) => record.id,
            Self::RequestCancel { id, .. } => *id,
        }
    }
}

/// Result of an [`Op`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Written {
    /// The store has this version of the record, or a newer one of the same epoch. This includes a
    /// final version that was written before: its reply was lost.
    Done,
    /// Nothing was written: another version of the record is final, the record belongs to another
    /// epoch, or the epoch has ended.
    Fenced,
    /// Nothing was written: the store is full and no record can be evicted. Other operations of the
    /// batch are not affected.
    Full,
    /// Nothing was written: there is no such record.
    Unknown,
}

/// Result of [`TaskStore::get`](super::TaskStore::get).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Found {
    /// The record.
    Record(Box<Record>),
    /// The record was evicted.
    Evicted {
        /// The owner of the task.
        owner: Option<String>,
    },
    /// There is neither a record nor a tombstone.
    Unknown,
}

impl Found {
    /// Returns the record, if there is one.
    pub fn into_record(self) -> Option<Record> {
        match self {
            Self::Record(record) => Some(*record),
            Self::Evicted { .. } | Self::Unknown => None,
        }
    }
}
