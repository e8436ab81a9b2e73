use std::collections::VecDeque;

use tokio::time::Instant;

use super::queue::{Queue, QueueItem, shrink};
use crate::sync::{AtomicBool, Mutex, Ordering::Relaxed, lock};

/// Submission buffer for new calls of normal priority without a key, used while every worker is busy.
///
/// It has a lock of its own, so that submitters do not contend with workers for the scheduler's
/// lock. A worker that runs out of queued calls moves the whole buffer into the queue.
#[derive(Debug)]
pub(super) struct Inbox<T> {
    items: Mutex<VecDeque<T>>,
    /// `true` while `items` is not empty. Written under the lock of `items`. A reader without that
    /// lock may see an old value and needs a fence (see [`Scheduler`](super::Scheduler)) or a
    /// second check.
    nonempty: AtomicBool,
}

impl<T: QueueItem> Inbox<T> {
    pub(super) fn new() -> Self {
        Self { items: Mutex::new(VecDeque::new()), nonempty: AtomicBool::new(false) }
    }

    pub(super) fn push(&self, item: T) {
        let mut items = lock(&self.items);
        items.push_back(item);
        if items.len() == 1 {
            self.nonempty.store(true, Relaxed);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.nonempty.load(Relaxed)
    }

    /// Moves all calls to the end of the queue.
    pub(super) fn drain_into(&self, queue: &mut Queue<T>) {
        let mut items = lock(&self.items);
        queue.append_normal(&mut items);
        self.nonempty.store(false, Relaxed);
    }

    /// Returns the time since which the oldest call waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        lock(&self.items).front().map(QueueItem::queued_at)
    }

    /// Frees memory that was allocated for a burst.
    pub(super) fn shrink(&self) {
        shrink(&mut lock(&self.items));
    }
}
