use crate::sync::{AtomicUsize, Ordering};

/// The number of live [`DrainGuard`](super::DrainGuard)s of a background.
///
/// It is apart from the lock of the background, because the responses of all connections change it.
///
/// Invariant: of the release of the last guard and a shutdown that [closes](Self::close) and then
/// finds [`has_guards`](Self::has_guards), at least one sees the other. Both access one variable.
#[derive(Debug)]
pub(super) struct DrainCount(AtomicUsize);

/// A shutdown may wait for guards. Never cleared.
const CLOSED: usize = 1;
const GUARD: usize = 1 << 1;

impl DrainCount {
    pub(super) fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    pub(super) fn acquire(&self) {
        self.0.fetch_add(GUARD, Ordering::Relaxed);
    }

    /// Releases a guard. Returns `true` if it was the last one and the caller must notify
    /// shutdowns.
    #[must_use = "a shutdown may wait for the guard"]
    pub(super) fn release(&self) -> bool {
        self.0.fetch_sub(GUARD, Ordering::AcqRel) == GUARD | CLOSED
    }

    pub(super) fn close(&self) {
        self.0.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Returns `true` if a guard is live. Otherwise everything that happened under the guards is
    /// visible.
    pub(super) fn has_guards(&self) -> bool {
        self.0.load(Ordering::Acquire) >= GUARD
    }
}

#[cfg(all(test, tower_offload_loom))]
mod loom;
#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
