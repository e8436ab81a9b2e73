use super::TaskId;

/// What [`Tasks`](super::Tasks) is doing and has met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Tasks of this process whose final record is not written yet: because they are not over, or the store does not take it.
    pub open: usize,
    /// Batches that the store did not write. What was in them is tried again.
    pub failed_writes: u64,
    /// Records that were changed too late: by then the store had given them up as lost.
    pub fenced: u64,
}

/// What a [drain](super::Tasks::drain) could not bring to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Tasks whose final record is not written. When the store is used next they are lost.
    pub unwritten: Vec<TaskId>,
}

impl DrainReport {
    /// `true` if every record is final and written.
    pub fn is_clean(&self) -> bool {
        self.unwritten.is_empty()
    }
}
