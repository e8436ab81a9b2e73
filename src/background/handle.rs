use std::{fmt, sync::Arc};

use super::shared::Shared;

/// A task that was registered. Dropping it changes nothing.
#[derive(Clone)]
pub struct TaskHandle {
    shared: Arc<Shared>,
    id: u64,
}

impl TaskHandle {
    pub(super) fn new(shared: Arc<Shared>, id: u64) -> Self {
        Self { shared, id }
    }

    /// The number of the task, unique within its background.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Cancels the task; `false` if it was over.
    ///
    /// One that waits never runs, and is dropped before this returns, so that a slow `Drop` holds up the caller. An async one that runs is dropped at its next `.await`; in sync work
    /// [`cancelled`](super::cancelled) turns true. Counted as cancelled, and not reported.
    pub fn cancel(&self) -> bool {
        self.shared.cancel(self.id)
    }

    /// Whether the background takes no tasks any more.
    #[doc(hidden)]
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }
}

impl fmt::Debug for TaskHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle").field("id", &self.id).finish_non_exhaustive()
    }
}
