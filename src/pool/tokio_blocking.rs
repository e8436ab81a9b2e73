use std::{error::Error, fmt, io, sync::Arc, time::Duration};

use tokio::runtime::Handle;

use super::{
    Pool,
    admission::{Admission, DEFAULT_QUEUE_CAPACITY},
    error::CallError,
    policy::QueuePolicy,
    scheduler::Limits,
    stall::STALL_TIMEOUT,
    stats::PoolStats,
    worker::{Executor, PoolHandle, Worker, WorkerConfig, WorkerPool},
};
use crate::{
    panic::{catch_unwind, drop_payload},
    sync::{Mutex, lock},
};

/// Runs calls on the blocking pool of a tokio runtime (`spawn_blocking`), using at most
/// `max_threads` of its threads.
///
/// Tokio starts a thread for each blocking task, up to 512, and does not bound its queue. This pool
/// also limits the number of calls that wait. All calls run on the runtime in which the pool was
/// built, even those made from another runtime. After that runtime has shut down, calls fail with
/// [`CallError::Closed`]. If the system starts no thread for the runtime, they fail with
/// [`CallError::Overloaded`].
///
/// This type is a handle, and clones refer to the same pool.
#[derive(Debug, Clone)]
pub struct TokioBlocking {
    handle: Arc<PoolHandle>,
}

/// Configures a [`TokioBlocking`] pool. Created by [`TokioBlocking::builder`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct TokioBlockingBuilder {
    max_threads: usize,
    name: String,
    queue_capacity: usize,
    queue_policy: QueuePolicy,
}

impl TokioBlocking {
    /// Creates a pool that uses at most `max_threads` threads of the current runtime, with the
    /// defaults of [`TokioBlockingBuilder`].
    ///
    /// # Panics
    ///
    /// Panics if `max_threads` is 0, or outside a tokio runtime: create the pool inside
    /// `#[tokio::main]` or `runtime.block_on(..)`. [`try_new`](Self::try_new) returns the latter as
    /// an error.
    #[track_caller]
    pub fn new(max_threads: usize) -> Self {
        Self::builder(max_threads).build()
    }

    /// Like [`new`](Self::new), but returns an error outside a tokio runtime.
    ///
    /// # Errors
    ///
    /// Returns an error outside a tokio runtime.
    ///
    /// # Panics
    ///
    /// Panics if `max_threads` is 0.
    #[track_caller]
    pub fn try_new(max_threads: usize) -> Result<Self, NoRuntimeError> {
        Self::builder(max_threads).try_build()
    }

    /// Returns a builder for a pool of at most `max_threads` threads, at least 1.
    pub fn builder(max_threads: usize) -> TokioBlockingBuilder {
        TokioBlockingBuilder {
            max_threads,
            name: "tokio".to_owned(),
            queue_capacity: DEFAULT_QUEUE_CAPACITY,
            queue_policy: QueuePolicy::default(),
        }
    }

    /// Returns the counters and gauges of the pool.
    pub fn stats(&self) -> PoolStats {
        self.admission().stats()
    }
}

impl TokioBlockingBuilder {
    /// Sets the name of the pool in metrics and events. Default: `tokio`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the maximum number of calls that wait to be started, at least 1. Default: 1024.
    pub fn queue_capacity(mut self, calls: usize) -> Self {
        self.queue_capacity = calls;
        self
    }

    /// Sets what happens to calls during an overload. Default: [`QueuePolicy::AcceptBursts`].
    pub fn queue_policy(mut self, policy: QueuePolicy) -> Self {
        self.queue_policy = policy;
        self
    }

    /// Builds the pool on the current runtime. It starts no threads.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime, and like [`try_build`](Self::try_build).
    #[track_caller]
    pub fn build(self) -> TokioBlocking {
        match self.try_build() {
            Ok(pool) => pool,
            Err(error) => panic!("{error}"),
        }
    }

    /// Builds the pool on the current runtime. It starts no threads.
    ///
    /// # Errors
    ///
    /// Returns an error outside a tokio runtime.
    ///
    /// # Panics
    ///
    /// Panics if the number of threads or the queue capacity is 0.
    #[track_caller]
    pub fn try_build(self) -> Result<TokioBlocking, NoRuntimeError> {
        let Self { max_threads, name, queue_capacity, queue_policy } = self;
        assert!(max_threads > 0, "a pool with 0 threads runs no call: give `TokioBlocking` at least 1");
        let runtime = Handle::try_current().map_err(|_| NoRuntimeError(()))?;
        let config = WorkerConfig {
            limits: Limits { min: 0, max: max_threads },
            keep_alive: Some(Duration::ZERO), // Tokio keeps idle threads alive.
            queue_policy,
            is_borrowed: false,
            spin: false,
            stall_timeout: STALL_TIMEOUT,
            spawn_error: CallError::Closed,
        };
        let executor = TokioExecutor { runtime, handoff: Arc::default() };
        let handle = WorkerPool::create(Admission::new(name, queue_capacity), config, executor);
        Ok(TokioBlocking { handle })
    }
}

/// Runs workers as blocking tasks.
struct TokioExecutor {
    runtime: Handle,
    handoff: Arc<Handoff>,
}

/// Workers that have no thread yet.
///
/// Tokio queues a blocking task before it starts a thread, and panics if that fails. The task stays
/// in its queue, so a worker that the task contained could not be taken back. Workers are
/// interchangeable: a task runs any one of them, or none if all have been taken.
#[derive(Default)]
struct Handoff(Mutex<Vec<Worker>>);

impl Handoff {
    fn put(&self, worker: Worker) {
        lock(&self.0).push(worker);
    }

    fn take(&self) -> Option<Worker> {
        lock(&self.0).pop()
    }

    fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }
}

impl Executor for TokioExecutor {
    fn spawn(&self, worker: Worker) -> io::Result<()> {
        self.handoff.put(worker);
        self.spawn_task()
    }

    /// In a runtime with threads of its own, tokio ignores that the system is temporarily out of
    /// threads. The task then waits until another blocking task is spawned.
    fn retry(&self) {
        if !self.handoff.is_empty() {
            let _ = self.spawn_task();
        }
    }
}

impl TokioExecutor {
    fn spawn_task(&self) -> io::Result<()> {
        let task = WorkerTask(Some(self.handoff.clone()));
        catch_unwind(|| drop(self.runtime.spawn_blocking(move || task.run()))).map_err(|payload| {
            drop_payload(payload);
            if let Some(worker) = self.handoff.take() {
                worker.refuse_calls(CallError::Overloaded);
            }
            io::Error::other("tokio could not start a blocking thread")
        })
    }
}

/// A blocking task that runs a worker. If the runtime drops it instead, it drops the worker.
struct WorkerTask(Option<Arc<Handoff>>);

impl WorkerTask {
    fn run(mut self) {
        if let Some(worker) = self.take() {
            worker.run();
        }
    }

    /// Returns a worker the first time.
    fn take(&mut self) -> Option<Worker> {
        self.0.take()?.take()
    }
}

impl Drop for WorkerTask {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl Pool for TokioBlocking {
    forward_to_pool!(self => *self.handle);

    fn into_shared(self) -> Arc<dyn Pool> {
        self.handle
    }
}

/// Error of building a [`TokioBlocking`] pool outside a tokio runtime.
///
/// It converts to [`std::io::Error`], for a `main` that returns `io::Result<()>`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NoRuntimeError(());

/// Contains the text, because a `main` that returns the error prints this.
impl fmt::Debug for NoRuntimeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NoRuntimeError").field(&self.to_string()).finish()
    }
}

impl fmt::Display for NoRuntimeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no tokio runtime here: create the pool inside `#[tokio::main]` or `runtime.block_on(..)`")
    }
}

impl Error for NoRuntimeError {}

impl From<NoRuntimeError> for std::io::Error {
    fn from(error: NoRuntimeError) -> Self {
        Self::other(error)
    }
}
