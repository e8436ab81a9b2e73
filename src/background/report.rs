use std::{borrow::Cow, fmt, time::Duration};

/// What became of the tasks during a [drain](super::Background::drain).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Tasks that ended well.
    pub completed: u64,
    /// Tasks that failed; the error sink has them one by one.
    pub failed: u64,
    /// Tasks that never ran because time was up, and those that were cancelled.
    pub cancelled: u64,
    /// Tasks that still ran at the deadline. They were told to stop, and not waited for.
    pub orphaned: Vec<Orphan>,
}

/// A task that still ran at the deadline of a drain.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Orphan {
    /// The number of the task, unique within its background.
    pub id: u64,
    /// The name it was registered with; empty if with none.
    pub name: Cow<'static, str>,
    /// How long it has run.
    pub age: Duration,
}

impl DrainReport {
    /// `true` if every task ended in time, well or not: none was cut off, none still runs.
    pub fn is_clean(&self) -> bool {
        self.cancelled == 0 && self.orphaned.is_empty()
    }
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { completed, failed, cancelled, orphaned } = self;
        write!(f, "{completed} completed, {failed} failed, {cancelled} cancelled, {} orphaned", orphaned.len())?;
        orphaned.iter().enumerate().try_for_each(|(place, orphan)| {
            write!(f, "{}{} `{}` for {:?}", if place == 0 { ": " } else { ", " }, orphan.id, orphan.name, orphan.age)
        })
    }
}
