use std::{error::Error, fmt};

use crate::background;

/// Why a task was not registered: nothing of it will run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejected(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Background(background::Rejected),
    Untracked,
}

impl Rejected {
    pub(super) const UNTRACKED: Self = Self(Kind::Untracked);

    /// `true` if the background takes no tasks any more: it is being drained.
    pub fn is_closed(&self) -> bool {
        matches!(self.0, Kind::Background(rejected) if rejected.is_closed())
    }

    /// `true` if every place is taken. Later there may be one.
    pub fn is_full(&self) -> bool {
        matches!(self.0, Kind::Background(rejected) if rejected.is_full())
    }

    /// `true` if the task was for [flushed](super::Task::on_flushed) responses only, and this connection cannot tell
    /// which are.
    pub fn is_untracked(&self) -> bool {
        self.0 == Kind::Untracked
    }
}

impl From<background::Rejected> for Rejected {
    fn from(rejected: background::Rejected) -> Self {
        Self(Kind::Background(rejected))
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Kind::Background(_) => f.write_str("the task was not registered"),
            Kind::Untracked => f.write_str(
                "the task is for flushed responses, and the connection is not tracked: that takes `Tracker::track`, or \
                 `tower_offload::axum::serve`",
            ),
        }
    }
}

impl Error for Rejected {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Kind::Background(rejected) => Some(rejected),
            Kind::Untracked => None,
        }
    }
}
