use std::{fmt, sync::Arc};

use super::TaskId;

/// What a tracked task says of itself while it runs, and what it is told. Clones are the same; any thread may use them.
///
/// Saying something costs a lock and no write: whoever watches in this process is woken at once, and the store gets the newest after at most
/// a quarter of a second. What is said when the task is over is dropped.
#[derive(Clone)]
pub struct Progress {
    report: Arc<dyn Report>,
}

/// Whoever keeps what a task says of itself.
pub(crate) trait Report: Send + Sync {
    fn id(&self) -> TaskId;
    /// It has come so far.
    fn advance(&self, progress: Option<f64>, message: Option<String>);
    /// Whether it should stop.
    fn is_unwanted(&self) -> bool;
}

impl Progress {
    pub(crate) fn new(report: Arc<dyn Report>) -> Self {
        Self { report }
    }

    /// The id of the task.
    pub fn id(&self) -> TaskId {
        self.report.id()
    }

    /// So much is done, from 0 to 1, and this is being done. Of the message 1 KiB is kept; not a number is no news.
    pub fn set(&self, value: f64, message: impl Into<String>) {
        self.report.advance(Some(value), Some(message.into()));
    }

    /// So much is done, from 0 to 1.
    pub fn value(&self, value: f64) {
        self.report.advance(Some(value), None);
    }

    /// This is being done.
    pub fn message(&self, message: impl Into<String>) {
        self.report.advance(None, Some(message.into()));
    }

    /// Whether the work should stop: somebody asked to cancel it, its time is up, or a drain's deadline has passed.
    ///
    /// Ask between two steps of sync work. Async work need not: it is dropped at its next `.await`.
    pub fn is_cancelled(&self) -> bool {
        self.report.is_unwanted()
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("id", &self.id()).field("is_cancelled", &self.is_cancelled()).finish()
    }
}
