use std::fmt;

use crate::tasks::TaskId;

/// What [`Durable::drain`](super::Durable::drain) left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "it says which jobs still run"]
#[non_exhaustive]
pub struct DrainReport {
    /// Jobs whose sync work went on past the deadline. It is not known how far they come; if the process ends now, they begin once more,
    /// here or elsewhere.
    pub still_running: Vec<TaskId>,
}

impl DrainReport {
    /// `true` if everything has ended or was handed back.
    pub fn is_clean(&self) -> bool {
        self.still_running.is_empty()
    }
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} jobs still running", self.still_running.len())
    }
}
