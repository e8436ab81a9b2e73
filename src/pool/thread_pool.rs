use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use super::{
    Pool, Runnable,
    admission::Admission,
    stats::{PoolShutdownReport, PoolStats},
    worker::WorkerPool,
};

/// A pool with threads of its own and a bounded queue.
///
/// This type is a handle, and clones refer to the same pool. When the last handle is dropped,
/// including those in layers, the pool stops accepting calls, runs the queued ones, and its threads
/// exit. The drop itself neither waits nor panics, inside a runtime or outside.
///
/// See the [module docs](crate::pool) for the choice between the presets.
#[derive(Clone)]
pub struct ThreadPool {
    handle: Arc<Handle>,
}

/// The shared part of all handles, which layers and calls hold. Its drop closes the pool.
///
/// It is aligned to cache lines of its own, because an `Arc` stores it behind the reference counts,
/// which every call changes.
#[repr(align(128))]
struct Handle {
    workers: Arc<WorkerPool>,
}

impl ThreadPool {
    /// Returns the counters and gauges of the pool.
    pub fn stats(&self) -> PoolStats {
        self.admission().stats()
    }

    /// Returns the current number of threads.
    pub fn threads(&self) -> usize {
        self.workers().workers()
    }

    pub(super) fn new(workers: Arc<WorkerPool>) -> Self {
        Self { handle: Arc::new(Handle { workers }) }
    }

    pub(super) fn workers(&self) -> &Arc<WorkerPool> {
        &self.handle.workers
    }
}

impl Pool for ThreadPool {
    fn admission(&self) -> &Admission {
        self.handle.admission()
    }

    fn schedule(&self, runnable: Runnable) {
        self.handle.schedule(runnable);
    }

    fn expected_wait(&self) -> Duration {
        self.handle.expected_wait()
    }

    fn max_threads(&self) -> Option<usize> {
        self.handle.max_threads()
    }

    fn shutdown(&self, timeout: Duration) -> Pin<Box<dyn Future<Output = PoolShutdownReport> + Send + '_>> {
        self.handle.shutdown(timeout)
    }

    fn into_shared(self) -> Arc<dyn Pool> {
        self.handle
    }
}

impl Pool for Handle {
    fn admission(&self) -> &Admission {
        self.workers.admission()
    }

    fn schedule(&self, runnable: Runnable) {
        self.workers.schedule(runnable);
    }

    fn expected_wait(&self) -> Duration {
        self.workers.expected_wait()
    }

    fn max_threads(&self) -> Option<usize> {
        self.workers.max_threads()
    }

    fn shutdown(&self, timeout: Duration) -> Pin<Box<dyn Future<Output = PoolShutdownReport> + Send + '_>> {
        self.workers.shutdown(timeout)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.workers.close();
    }
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.handle, f)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadPool")
            .field("name", &self.admission().name())
            .field("threads", &self.workers.workers())
            .field("stats", &self.admission().stats())
            .finish_non_exhaustive()
    }
}
