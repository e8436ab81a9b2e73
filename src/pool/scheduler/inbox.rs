use std::collections::VecDeque;

use tokio::time::Instant;

use super::queue::{Queue, QueueItem, shrink};
use crate::sync::{AtomicBool, Mutex, Ordering::Relaxed, Padded, lock};

/// Submission buffer for new calls of normal priority without a key, used while every worker is
/// busy.
///
/// It has a lock of its own, so that submitters do not contend with workers for the scheduler's
/// lock. A worker that runs out of queued calls moves the whole buffer into the queue.
#[derive(Debug)]
pub(super) struct Inbox<T> {
    items: Padded<Mutex<Items<T>>>,
    /// `true` while the buffer is not empty. Written under its lock. A reader without that lock may
    /// see an old value. Workers read it for each call, so it is apart from what submitters write.
    nonempty: Padded<AtomicBool>,
}

#[derive(Debug)]
struct Items<T> {
    queue: VecDeque<T>,
    is_open: bool,
}

impl<T: QueueItem> Inbox<T> {
    /// Creates an inbox that is closed.
    pub(super) fn new() -> Self {
        Self {
            items: Padded(Mutex::new(Items { queue: VecDeque::new(), is_open: false })),
            nonempty: Padded(AtomicBool::new(false)),
        }
    }

    /// Adds a call, or returns it if the inbox is closed.
    pub(super) fn push(&self, item: T) -> Result<(), T> {
        let mut items = lock(&self.items);
        if !items.is_open {
            return Err(item);
        }
        items.queue.push_back(item);
        if items.queue.len() == 1 {
            self.nonempty.store(true, Relaxed);
        }
        Ok(())
    }

    /// Returns `true` if the buffer was seen empty.
    pub(super) fn looks_empty(&self) -> bool {
        !self.nonempty.load(Relaxed)
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.items).queue.is_empty()
    }

    /// Moves all calls to the end of the queue.
    pub(super) fn drain_into(&self, queue: &mut Queue<T>) {
        self.drain(&mut lock(&self.items), queue);
    }

    /// Accepts calls from now on.
    pub(super) fn open(&self) {
        lock(&self.items).is_open = true;
    }

    /// Accepts no more calls, and moves those that it has accepted to the end of the queue. Frees
    /// memory that was allocated for a burst.
    pub(super) fn close_into(&self, queue: &mut Queue<T>) {
        let mut items = lock(&self.items);
        items.is_open = false;
        self.drain(&mut items, queue);
        shrink(&mut items.queue);
    }

    fn drain(&self, items: &mut Items<T>, queue: &mut Queue<T>) {
        if !items.queue.is_empty() {
            queue.append_normal(&mut items.queue);
            self.nonempty.store(false, Relaxed);
        }
    }

    /// Returns the time since which the oldest call waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        lock(&self.items).queue.front().map(QueueItem::queued_at)
    }
}
