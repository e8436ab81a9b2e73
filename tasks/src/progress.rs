use std::{fmt, sync::Arc};

use crate::TaskId;

/// Reports the progress of a task from within its work. Clones report for the same task.
///
/// A report wakes the subscribers of this process at once. The store gets the latest report within
/// 250 ms, so frequent reports cost a lock each and few writes. Reports after the end of the task
/// are ignored.
#[derive(Clone)]
pub struct Progress {
    sink: Arc<dyn ProgressSink>,
}

/// Receives the reports of one task.
pub(crate) trait ProgressSink: Send + Sync {
    fn id(&self) -> TaskId;

    /// Sets the progress and the message, unless they are `None`.
    fn advance(&self, progress: Option<f64>, message: Option<String>);

    /// Returns `true` if the work should stop.
    fn is_cancelled(&self) -> bool;
}

impl Progress {
    pub(crate) fn new(sink: Arc<dyn ProgressSink>) -> Self {
        Self { sink }
    }

    /// Returns the id of the task.
    pub fn id(&self) -> TaskId {
        self.sink.id()
    }

    /// Sets progress (0.0 to 1.0) and message.
    ///
    /// Values outside the range are clamped, and NaN is ignored. Messages are truncated to 1 KiB.
    pub fn set(&self, value: f64, message: impl Into<String>) {
        self.sink.advance(Some(value), Some(message.into()));
    }

    /// Sets the progress only, like [`set`](Self::set).
    pub fn value(&self, value: f64) {
        self.sink.advance(Some(value), None);
    }

    /// Sets the message only, like [`set`](Self::set).
    pub fn message(&self, message: impl Into<String>) {
        self.sink.advance(None, Some(message.into()));
    }

    /// Returns `true` if the work should stop: the task was cancelled, exceeded its timeout, or was
    /// still running when a shutdown timed out.
    ///
    /// Poll it between the steps of a closure. A future does not need to poll: it is dropped at its
    /// next `.await`.
    pub fn is_cancelled(&self) -> bool {
        self.sink.is_cancelled()
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("id", &self.id()).field("is_cancelled", &self.is_cancelled()).finish()
    }
}
