use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::state::ThreadState;
use crate::sync::{AtomicU8, Ordering, park_timeout, thread};

const EMPTY: u8 = 0;
/// Notified because an entry waits.
const NOTIFIED: u8 = 1;
/// Notified because the scheduler closes.
const CLOSING: u8 = 2;

/// Parks one worker thread, and unparks it with the state in which it continues.
///
/// A wake-up has two steps:
///
/// 1. [`notify`](Self::notify), under the scheduler's lock. A worker whose timeout expires acquires
///    the same lock, so it knows for certain whether it was notified.
/// 2. [`unpark`](Self::unpark), after the lock was released, since the worker needs it next.
#[derive(Debug)]
pub(super) struct Parker {
    thread: thread::Thread,
    /// Written by `notify` at most once between two parks of the worker, because the parker is then
    /// no longer on the idle stack. Reset only by the worker. A load and a store therefore suffice
    /// to take a notification.
    notification: AtomicU8,
}

impl Parker {
    /// Creates the parker of the calling thread.
    pub(super) fn current() -> Arc<Self> {
        Arc::new(Self { thread: thread::current(), notification: AtomicU8::new(EMPTY) })
    }

    /// Sets the state in which the worker continues: `Notified`, or `Busy` if the scheduler closes.
    pub(super) fn notify(&self, state: ThreadState) {
        let notification = if state == ThreadState::Notified { NOTIFIED } else { CLOSING };
        self.notification.store(notification, Ordering::Release);
    }

    /// Wakes the worker, after `notify`.
    pub(super) fn unpark(&self) {
        self.thread.unpark();
    }

    /// Parks the calling thread until it is notified or `timeout` has passed. `None` waits forever.
    /// Returns `None` on timeout.
    pub(super) fn park(&self, timeout: Option<Duration>) -> Option<ThreadState> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            if let Some(state) = self.take_notification() {
                return Some(state);
            }
            match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return None,
                Some(remaining) => park_timeout(remaining),
                None => thread::park(),
            }
        }
    }

    /// Takes the notification if there is one. Called only by the thread that the parker belongs
    /// to.
    pub(super) fn take_notification(&self) -> Option<ThreadState> {
        let state = match self.notification.load(Ordering::Acquire) {
            NOTIFIED => ThreadState::Notified,
            CLOSING => ThreadState::Busy,
            _ => return None,
        };
        self.notification.store(EMPTY, Ordering::Relaxed);
        Some(state)
    }
}

impl PartialEq for Parker {
    /// Compares addresses: each worker has one parker.
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}
