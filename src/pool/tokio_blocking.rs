use std::{error::Error, fmt, io, panic::AssertUnwindSafe, pin::Pin, sync::Arc, time::Duration};

use tokio::runtime::Handle;

use super::{
    DEFAULT_QUEUE_CAPACITY, Gate, Job, Left, Pool, QueuePolicy, Rejection, Stats,
    roster::Limits,
    workers::{Policy, Worker, Workers},
};

/// The blocking pool of a tokio runtime (`spawn_blocking`), at most so many of its threads at once.
///
/// Tokio starts a thread for each call until there are 512, and bounds nothing; this pool asks for at most `max_threads`
/// and lets a bounded number of calls wait. Its jobs run on the runtime in which the pool was made, whatever runtime a
/// call is made from. When that runtime is gone, calls are answered [`Rejection::Closed`].
///
/// [`Priority::Release`](super::Priority::Release) calls go first, but there is no reserved thread for them: where all of
/// the pool's threads are blocked, they wait.
///
/// A handle: clones are the same pool.
#[derive(Debug, Clone)]
pub struct TokioBlocking {
    workers: Arc<Workers>,
    runtime: Handle,
}

impl TokioBlocking {
    /// At most `max_threads` threads of the current runtime, and room for 1024 calls to wait. Named `tokio`.
    ///
    /// # Panics
    ///
    /// If `max_threads` is 0, or outside a tokio runtime: make the pool inside `#[tokio::main]` or
    /// `runtime.block_on(..)`. [`try_new`](Self::try_new) returns the second as an error.
    #[track_caller]
    pub fn new(max_threads: usize) -> Self {
        match Self::try_new(max_threads) {
            Ok(pool) => pool,
            Err(error) => panic!("{error}"),
        }
    }

    /// As [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// Outside a tokio runtime.
    ///
    /// # Panics
    ///
    /// If `max_threads` is 0.
    #[track_caller]
    pub fn try_new(max_threads: usize) -> Result<Self, NoRuntime> {
        assert!(max_threads > 0, "a pool with 0 threads runs no call: give `TokioBlocking` at least 1");
        let runtime = Handle::try_current().map_err(|_| NoRuntime(()))?;
        Ok(Self::build("tokio", DEFAULT_QUEUE_CAPACITY, QueuePolicy::default(), max_threads, runtime))
    }

    /// The same with another name, which labels metrics and log lines. A new pool: call it before the first use.
    pub fn name(self, name: &str) -> Self {
        Self::build(
            name,
            self.gate().queue_capacity(),
            self.workers.policy().queue,
            self.max_threads(),
            self.runtime.clone(),
        )
    }

    /// The same with room for so many calls to wait, at least 1. A new pool: call it before the first use.
    ///
    /// # Panics
    ///
    /// If `calls` is 0.
    pub fn queue_capacity(self, calls: usize) -> Self {
        let policy = self.workers.policy().queue;
        Self::build(self.gate().name(), calls, policy, self.max_threads(), self.runtime.clone())
    }

    /// The same with another policy; default: first in, first out. A new pool: call it before the first use.
    ///
    /// # Panics
    ///
    /// If the policy has no use: see [`Codel::new`](super::Codel::new).
    #[track_caller]
    pub fn queue_policy(self, policy: impl Into<QueuePolicy>) -> Self {
        let policy = policy.into();
        policy.check().unwrap_or_else(|unfit| panic!("{unfit}"));
        let (name, capacity) = (self.gate().name(), self.gate().queue_capacity());
        Self::build(name, capacity, policy, self.max_threads(), self.runtime.clone())
    }

    /// What the pool has done and is doing.
    pub fn stats(&self) -> Stats {
        self.workers.gate().stats()
    }

    fn max_threads(&self) -> usize {
        self.workers.policy().limits.max
    }

    fn build(name: &str, queue_capacity: usize, queue: QueuePolicy, max_threads: usize, runtime: Handle) -> Self {
        let policy = Policy {
            limits: Limits { min: 0, max: max_threads, reserved: 0 },
            keep_alive: Some(Duration::ZERO), // tokio keeps the idle thread
            reserved_keep_alive: Duration::ZERO,
            queue,
            borrowed: false,
            spin: false,
            lost: Rejection::Closed,
        };
        let spawner = runtime.clone();
        let workers = Workers::new(Gate::new(name, queue_capacity), policy, move |worker: Worker| {
            // Tokio panics if the system gives it no thread; the worker is dropped then, and the jobs are answered.
            std::panic::catch_unwind(AssertUnwindSafe(|| drop(spawner.spawn_blocking(move || worker.run()))))
                .map_err(|_| io::Error::other("tokio could not start a blocking thread"))
        });
        Self { workers, runtime }
    }
}

impl Pool for TokioBlocking {
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

/// There is no tokio runtime here whose threads a [`TokioBlocking`] could use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRuntime(());

impl fmt::Display for NoRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no tokio runtime here: make the pool inside `#[tokio::main]` or `runtime.block_on(..)`")
    }
}

impl Error for NoRuntime {}
