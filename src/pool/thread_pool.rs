use std::{fmt, sync::Arc};

use super::{Pool, stats::PoolStats, worker::PoolHandle};

/// A pool with threads of its own and a bounded queue.
///
/// This type is a handle, and clones refer to the same pool. When the last handle is dropped,
/// including those in layers, the pool stops accepting calls, runs the queued ones, and its threads
/// exit. The drop itself neither waits nor panics, inside a runtime or outside.
///
/// See the [module docs](crate::pool) for the choice between the presets.
#[derive(Clone)]
pub struct ThreadPool {
    pub(super) handle: Arc<PoolHandle>,
}

impl ThreadPool {
    /// Returns the counters and gauges of the pool.
    pub fn stats(&self) -> PoolStats {
        self.admission().stats()
    }

    /// Returns the current number of threads.
    pub fn threads(&self) -> usize {
        self.handle.workers.threads()
    }
}

impl Pool for ThreadPool {
    forward_to_pool!(self => *self.handle);

    fn into_shared(self) -> Arc<dyn Pool> {
        self.handle
    }
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ThreadPool").field(&self.handle).finish()
    }
}
