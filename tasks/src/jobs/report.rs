use std::fmt;

use crate::TaskId;

/// What [`Durable::drain`](super::Durable::drain) left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "it says which jobs still run"]
#[non_exhaustive]
pub struct DrainReport {
    /// Jobs whose sync work went on past the deadline, or waited for a thread. It is not known how far they come; if the process ends now, they begin once more,
    /// here or elsewhere.
    pub still_running: Vec<TaskId>,
    /// Whether the database knows how everything else ended. If not, because it did not answer in time, what ended last or was to be handed back is
    /// found as the jobs of a lost process are, and counts as an attempt.
    pub is_written: bool,
}

impl DrainReport {
    /// `true` if everything has ended or was handed back.
    pub fn is_clean(&self) -> bool {
        self.is_written && self.still_running.is_empty()
    }
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} jobs still running", self.still_running.len())?;
        if self.is_written { Ok(()) } else { f.write_str(", and the database does not know how the others ended") }
    }
}
