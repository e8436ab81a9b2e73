use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::roster::From;
use crate::sync::{AtomicU8, Ordering, park_timeout, thread};

const ASLEEP: u8 = 0;
/// Woken for a job.
const COMING: u8 = 1;
/// Woken because the crew closes.
const CLOSING: u8 = 2;

/// Where a thread sleeps, and how to wake it.
#[derive(Debug)]
pub(super) struct Seat {
    thread: thread::Thread,
    state: AtomicU8,
}

impl Seat {
    /// The seat of the calling thread.
    pub(super) fn here() -> Arc<Self> {
        Arc::new(Self { thread: thread::current(), state: AtomicU8::new(ASLEEP) })
    }

    /// Says why the thread will be woken. Under the lock of the roster, so that a thread whose time is up knows whether it
    /// was promised something.
    pub(super) fn promise(&self, from: From) {
        self.state.store(if from == From::Coming { COMING } else { CLOSING }, Ordering::Release);
    }

    /// Wakes the thread, after a `promise`. Not under the lock: the thread will want it.
    pub(super) fn wake(&self) {
        self.thread.unpark();
    }

    /// Sleeps until a promise or for so long (`None`: for ever). `None` says that the time is up.
    pub(super) fn sleep(&self, at_most: Option<Duration>) -> Option<From> {
        let until = at_most.and_then(|at_most| Instant::now().checked_add(at_most));
        loop {
            if let Some(from) = self.promised() {
                return Some(from);
            }
            match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return None,
                Some(left) => park_timeout(left),
                None => thread::park(),
            }
        }
    }

    /// Takes the promise, if there is one. Only the thread itself does, and there is no second promise before its seat was
    /// put into the stack again, under the lock; so a load and a store are enough.
    pub(super) fn promised(&self) -> Option<From> {
        let from = match self.state.load(Ordering::Acquire) {
            COMING => From::Coming,
            CLOSING => From::Busy,
            _ => return None,
        };
        self.state.store(ASLEEP, Ordering::Relaxed);
        Some(from)
    }
}

impl PartialEq for Seat {
    /// Each is one of a kind.
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}
