use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use super::Builder;
use crate::pool::{Gate, Job, Left, Pool, Stats, workers::Workers};

/// Threads of our own, with a bounded queue.
///
/// A handle: clones are the same pool. When the last one is gone, and with it every layer that holds one, the pool stops
/// accepting, runs what it has, and its threads end; the drop itself neither waits nor panics, inside a runtime or out.
///
/// See the [module docs](crate::pool) for which preset to take.
#[derive(Clone)]
pub struct ThreadPool {
    handle: Arc<Handle>,
}

/// What layers and calls hold. Its drop closes the pool.
///
/// On cache lines of its own: it stands behind the counters of an `Arc`, which every call changes.
#[repr(align(128))]
struct Handle {
    workers: Arc<Workers>,
}

impl ThreadPool {
    /// For work that computes: as many threads as the machine runs at once, and room for 1024 calls to wait. Named `cpu`.
    ///
    /// # Panics
    ///
    /// If the system gives no thread. [`builder`](Self::builder) returns that as an error.
    #[track_caller]
    pub fn cpu() -> Self {
        let builder = Self::builder().name("cpu");
        let builder = CPU_NICENESS.into_iter().fold(builder, Builder::niceness);
        match builder.build() {
            Ok(pool) => pool,
            Err(error) => panic!("{}", Reasons(&error)),
        }
    }

    /// For work that waits, as for a disk or a sync database driver: up to `max_threads` threads, started when a call
    /// finds none idle and ended after 10 s without work, and room for 1024 calls to wait. Named `blocking`.
    ///
    /// # Panics
    ///
    /// If `max_threads` is 0 or over 32 767, or if the system gives no thread. [`builder`](Self::builder) returns these as
    /// errors.
    #[track_caller]
    pub fn blocking(max_threads: usize) -> Self {
        match Self::builder().name("blocking").min_threads(0).max_threads(max_threads).build() {
            Ok(pool) => pool,
            Err(error) => panic!("{}", Reasons(&error)),
        }
    }

    /// Every option. See [`Builder`].
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// What the pool has done and is doing.
    pub fn stats(&self) -> Stats {
        self.workers().gate().stats()
    }

    /// How many threads the pool has now, reserved ones included.
    pub fn threads(&self) -> usize {
        self.workers().threads()
    }

    pub(super) fn new(workers: Arc<Workers>) -> Self {
        Self { handle: Arc::new(Handle { workers }) }
    }

    pub(super) fn workers(&self) -> &Arc<Workers> {
        &self.handle.workers
    }
}

/// The nice value of the threads of [`ThreadPool::cpu`]; `None` sets none, until a measurement says that one pays. Before it
/// is set: a program that runs nicer than this, as under `nice -n 15`, must not fail for it.
const CPU_NICENESS: Option<i32> = None;

impl Pool for ThreadPool {
    fn gate(&self) -> &Gate {
        self.handle.gate()
    }

    fn schedule(&self, job: Job) {
        self.handle.schedule(job);
    }

    fn expected_wait(&self) -> Duration {
        self.handle.expected_wait()
    }

    fn shutdown(&self, deadline: Duration) -> Pin<Box<dyn Future<Output = Left> + Send + '_>> {
        self.handle.shutdown(deadline)
    }

    fn into_shared(self) -> Arc<dyn Pool> {
        self.handle
    }
}

impl Pool for Handle {
    fn gate(&self) -> &Gate {
        self.workers.gate()
    }

    fn schedule(&self, job: Job) {
        self.workers.schedule(job);
    }

    fn expected_wait(&self) -> Duration {
        self.workers.expected_wait()
    }

    fn shutdown(&self, deadline: Duration) -> Pin<Box<dyn Future<Output = Left> + Send + '_>> {
        Box::pin(self.workers.clone().shutdown(deadline))
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
            .field("name", &self.gate().name())
            .field("threads", &self.workers.threads())
            .field("stats", &self.gate().stats())
            .finish_non_exhaustive()
    }
}

/// An error and its sources in one line.
struct Reasons<'a>(&'a dyn std::error::Error);

impl fmt::Display for Reasons<'_> {
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
