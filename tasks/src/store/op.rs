use crate::{Record, TaskId, Timestamp};

/// One thing to write.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Op {
    /// A new record, of the epoch that writes it. One that is there with the same id stays, and this is [done](Written::Done): it
    /// was written before, and the answer was lost.
    Accept(Box<Record>),
    /// Somebody, in whatever process, asks to cancel it. Done once: the time is noted, and the version is one more.
    RequestCancel {
        /// Which one.
        id: TaskId,
        /// When.
        now: Timestamp,
    },
    /// The whole content of a record that this epoch has accepted. Of [`Record::cancel_requested_at`] the one that is there stays.
    Update(Box<Record>),
}

impl Op {
    /// Whose record it is about.
    pub fn id(&self) -> TaskId {
        match self {
            Self::Accept(record) | Self::Update(record) => record.id,
            Self::RequestCancel { id, .. } => *id,
        }
    }
}

/// What became of an [`Op`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Written {
    /// It stands there, or something newer of the same epoch.
    Done,
    /// Nothing was written: the record is final, or of another epoch, or this epoch is over.
    Fenced,
    /// There is no room for another record, and none that may be evicted. The rest of the batch is not touched by that.
    Full,
    /// There is no such record.
    Unknown,
}

/// What stands under an id.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Found {
    /// There was a record, and it is gone.
    Evicted {
        /// Whose it was.
        owner: Option<String>,
    },
    /// The record.
    Record(Box<Record>),
    /// Nothing.
    Unknown,
}

impl Found {
    /// The record, if there is one.
    pub fn into_record(self) -> Option<Record> {
        match self {
            Self::Record(record) => Some(*record),
            Self::Evicted { .. } | Self::Unknown => None,
        }
    }
}
