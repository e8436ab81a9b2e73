use std::{error::Error, fmt, pin::Pin, sync::Arc, time::Duration};

use super::{
    Pool, Runnable,
    admission::Admission,
    builder::{ThreadPoolBuildError, ThreadPoolBuilder},
    stats::{PoolShutdownReport, PoolStats},
    worker::WorkerPool,
};

/// Nice value of the threads of [`ThreadPool::cpu`]. `None` because a nice pool passes its value on
/// to every thread that its work starts. Before this is set: a program that itself runs with a
/// higher nice value, as under `nice -n 15`, must not fail because of it.
const CPU_NICENESS: Option<i32> = None;

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
/// Aligned to cache lines of its own, because it stands behind the reference counts of an `Arc`,
/// which every call changes.
#[repr(align(128))]
struct Handle {
    workers: Arc<WorkerPool>,
}

impl ThreadPool {
    /// Creates a pool for work that computes: one thread per core, and capacity for 1024 calls to
    /// wait. It is named `cpu`.
    ///
    /// # Panics
    ///
    /// Panics if the system starts no thread. [`builder`](Self::builder) returns that as an error.
    #[track_caller]
    pub fn cpu() -> Self {
        let builder = Self::builder().name("cpu");
        Self::expect(CPU_NICENESS.into_iter().fold(builder, ThreadPoolBuilder::niceness).build())
    }

    /// Creates a pool for work that waits, such as disk access or a synchronous database driver: up
    /// to `max_threads` threads, started when a call finds none idle and stopped after 10 s without
    /// work, and capacity for 1024 calls to wait. It is named `blocking`.
    ///
    /// # Panics
    ///
    /// Panics if `max_threads` is 0 or over 32 767, or if the system starts no thread.
    /// [`builder`](Self::builder) returns these as errors.
    #[track_caller]
    pub fn blocking(max_threads: usize) -> Self {
        Self::expect(Self::builder().name("blocking").min_threads(0).max_threads(max_threads).build())
    }

    /// Returns a builder with every option.
    pub fn builder() -> ThreadPoolBuilder {
        ThreadPoolBuilder::new()
    }

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

    #[track_caller]
    fn expect(built: Result<Self, ThreadPoolBuildError>) -> Self {
        match built {
            Ok(pool) => pool,
            Err(error) => panic!("{}", WithSources(&error)),
        }
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

    fn shutdown(&self, timeout: Duration) -> Pin<Box<dyn Future<Output = PoolShutdownReport> + Send + '_>> {
        Box::pin(self.workers.clone().shutdown(timeout))
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

/// Displays an error and its sources in one line.
struct WithSources<'a>(&'a dyn Error);

impl fmt::Display for WithSources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
