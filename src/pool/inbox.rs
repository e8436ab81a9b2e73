use std::{collections::VecDeque, mem};

use tokio::time::Instant;

use super::queue::{Waits, shrink};
use crate::sync::{AtomicBool, Mutex, Ordering::Relaxed, lock};

/// New calls on their way into the queue of a pool whose threads are all busy: put down under a lock of their own, so that
/// those who make calls do not stand in the way of those who run them; taken over all at once, by a thread that has come to the
/// end of what it knows of.
#[derive(Debug)]
pub(super) struct Inbox<T> {
    calls: Mutex<VecDeque<T>>,
    /// Whether there are any. Changed under the lock; read without, where a `fence` or a second look makes up for that.
    any: AtomicBool,
}

impl<T> Inbox<T> {
    pub(super) fn new() -> Self {
        Self { calls: Mutex::new(VecDeque::new()), any: AtomicBool::new(false) }
    }

    pub(super) fn push(&self, call: T) {
        let mut calls = lock(&self.calls);
        calls.push_back(call);
        if calls.len() == 1 {
            self.any.store(true, Relaxed);
        }
    }

    pub(super) fn has_any(&self) -> bool {
        self.any.load(Relaxed)
    }

    /// Moves everything behind what is in `queue`.
    pub(super) fn empty_into(&self, queue: &mut VecDeque<T>) {
        let mut calls = lock(&self.calls);
        if queue.is_empty() {
            mem::swap(&mut *calls, queue);
        } else {
            queue.append(&mut calls);
        }
        self.any.store(false, Relaxed);
    }

    /// Since when the oldest one waits.
    pub(super) fn oldest(&self) -> Option<Instant>
    where
        T: Waits,
    {
        lock(&self.calls).front().map(Waits::since)
    }

    /// Frees what a burst took.
    pub(super) fn shrink(&self) {
        shrink(&mut lock(&self.calls));
    }
}
