use std::{error::Error, fmt};

/// Why a task was not registered: nothing of it will run.
///
/// Not the pool's [`CallError`](crate::CallError): that says what became of a call, which may be refused after it was
/// queued; a task is refused here or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejected(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Closed,
    Full,
}

impl Rejected {
    pub(super) fn new(kind: Kind) -> Self {
        Self(kind)
    }

    /// `true` if the background takes no tasks any more: it is being drained.
    pub fn is_closed(&self) -> bool {
        self.0 == Kind::Closed
    }

    /// `true` if every place is taken. Later there may be one.
    pub fn is_full(&self) -> bool {
        self.0 == Kind::Full
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Closed => "the background takes no tasks any more",
            Kind::Full => "the background has no room for the task",
        })
    }
}

impl Error for Rejected {}
