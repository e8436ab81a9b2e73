use crate::sync::{
    AtomicBool,
    Ordering::{Relaxed, SeqCst},
    fence,
};

/// State of a helper thread that watches something only while there is something to watch, such as
/// a nonempty list: `true` while the thread runs.
///
/// Invariant: while there is something to watch, the thread runs, or the thread that has produced
/// it is about to check this flag. That thread makes the list nonempty, issues a `SeqCst` fence,
/// and loads the flag. The watchdog clears the flag, issues a `SeqCst` fence, and checks the list.
/// At least one of the two sees the other's write.
#[derive(Debug)]
pub(super) struct Watchdog(AtomicBool);

impl Watchdog {
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Returns `true` if the caller, which has produced something to watch, must spawn the thread.
    pub(super) fn must_spawn(&self) -> bool {
        fence(SeqCst);
        !self.is_running() && !self.0.swap(true, SeqCst)
    }

    /// Returns `true` if the thread runs. Without the fence of [`must_spawn`](Self::must_spawn):
    /// the caller has produced what is watched under a lock that the watchdog acquires for its
    /// check.
    pub(super) fn is_running(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// Clears the flag. Returns `false` if the thread must continue, because there is something to
    /// watch and no other thread has taken over.
    pub(super) fn try_exit(&self, is_idle: impl Fn() -> bool) -> bool {
        self.0.store(false, Relaxed);
        fence(SeqCst);
        is_idle() || self.0.swap(true, SeqCst)
    }
}
