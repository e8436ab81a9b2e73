//! Counts the threads that have run a call and have not exited.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static PRESENT: Present = Present::new();
}

struct Present;

impl Present {
    fn new() -> Self {
        THREADS.fetch_add(1, SeqCst);
        Self
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        THREADS.fetch_sub(1, SeqCst);
    }
}

/// Counts the current thread, which runs a call.
pub(crate) fn here() {
    let _ = PRESENT.try_with(|_| ());
}

pub(crate) fn threads() -> usize {
    THREADS.load(SeqCst)
}
