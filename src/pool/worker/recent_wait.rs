use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::pool::time::PoolTime;

/// The wait of the oldest call in the queue, as it was found in the current millisecond.
///
/// Finding it takes the locks of workers and submitters. Every rejected call asks for it, and a
/// flood of them must not slow down the calls that are admitted.
#[derive(Debug, Default)]
pub(super) struct RecentWait(AtomicU64);

impl RecentWait {
    /// Returns the wait in whole milliseconds, at most 49 days. `find` is called in most cases once
    /// per millisecond.
    pub(super) fn get(&self, now: PoolTime, find: impl FnOnce() -> Duration) -> Duration {
        // The upper half is the millisecond, which wraps around, and the lower half is the wait.
        let now = (now / 1_000_000) << 32;
        let recent = self.0.load(Relaxed);
        let wait = if recent >> 32 == now >> 32 {
            recent & u64::from(u32::MAX)
        } else {
            let wait = u64::from(u32::try_from(find().as_millis()).unwrap_or(u32::MAX));
            self.0.store(now | wait, Relaxed);
            wait
        };
        Duration::from_millis(wait)
    }
}
