use crate::sync::{AtomicBool, Mutex, Ordering::SeqCst, lock};

/// Whether a task is to be stopped, and how that is done. One comes to know the first, another the second, at any time: each
/// method returns what its caller has to apply, outside the lock, since it may drop the work.
pub(super) struct Stopping<S> {
    /// Never cleared. Set before the look at `stop`, and read after a change of it, so that one of two sees the other.
    wanted: AtomicBool,
    stop: Mutex<Option<S>>,
}

impl<S> Stopping<S> {
    pub(super) fn new() -> Self {
        Self { wanted: AtomicBool::new(false), stop: Mutex::new(None) }
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(SeqCst)
    }

    /// For a task that has nothing to be stopped.
    pub(super) fn mark(&self) {
        self.wanted.store(true, SeqCst);
    }

    #[must_use = "it is to be applied"]
    pub(super) fn want(&self) -> Option<S> {
        self.mark();
        self.take()
    }

    /// The task is somewhere else now: what would have stopped it there does so no more.
    #[must_use = "it is to be applied"]
    pub(super) fn replace(&self, stop: S) -> Option<S> {
        let before = lock(&self.stop).replace(stop);
        drop(before);
        self.due()
    }

    /// The task is where it was sent, unless it has moved on by now.
    #[must_use = "it is to be applied"]
    pub(super) fn offer(&self, stop: S) -> Option<S> {
        let mut current = lock(&self.stop);
        if current.is_none() {
            *current = Some(stop);
        }
        drop(current);
        self.due()
    }

    /// Takes out what would stop the task.
    pub(super) fn take(&self) -> Option<S> {
        lock(&self.stop).take()
    }

    fn due(&self) -> Option<S> {
        if self.is_wanted() { self.take() } else { None }
    }
}

#[cfg(all(test, tower_offload_loom))]
mod loom;
