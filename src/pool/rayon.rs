use std::{fmt, sync::Arc, time::Duration};

use super::{
    Pool,
    admission::{Admission, DEFAULT_QUEUE_CAPACITY},
    error::CallError,
    policy::QueuePolicy,
    scheduler::Limits,
    stall::STALL_TIMEOUT,
    stats::PoolStats,
    worker::{PoolHandle, Worker, WorkerConfig, WorkerPool},
};

/// The threads of a rayon pool, with a bounded queue in front.
///
/// Work runs inside the rayon pool, so `par_iter` and `join` in it use that pool's threads. A panic
/// of the work never reaches rayon, which would abort the process. After each call the thread is
/// offered to the other tasks of the rayon pool.
///
/// While work waits in `join` or `par_iter`, rayon may run another call on the same thread and
/// stack. Do not hold a lock across these calls if another handler acquires the same lock.
///
/// This type is a handle, and clones refer to the same pool.
///
/// ```
/// use std::sync::Arc;
/// use tower_offload::pool::{Pool, Rayon};
///
/// # #[tokio::main]
/// # async fn main() {
/// let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("two threads");
/// let pool = Rayon::builder(threads).name("search").queue_capacity(64).build();
/// assert_eq!(pool.run(|| rayon::join(|| 2, || 3)).await, Ok((2, 3)));
/// # }
/// ```
#[derive(Clone)]
pub struct Rayon {
    handle: Arc<PoolHandle>,
}

/// Configures a [`Rayon`] pool. Created by [`Rayon::builder`] and [`Rayon::global_builder`].
#[must_use = "a builder does nothing until `build`"]
pub struct RayonBuilder {
    /// `None` for rayon's global pool.
    threads: Option<Arc<rayon_core::ThreadPool>>,
    name: String,
    queue_capacity: usize,
    queue_policy: QueuePolicy,
}

impl Rayon {
    /// Creates a pool on the threads of a rayon pool, with the defaults of [`RayonBuilder`].
    pub fn new(threads: impl Into<Arc<rayon_core::ThreadPool>>) -> Self {
        Self::builder(threads).build()
    }

    /// Creates a pool on the threads of rayon's global pool, with the defaults of [`RayonBuilder`].
    ///
    /// # Panics
    ///
    /// Panics, like rayon, if its global pool cannot be started.
    pub fn global() -> Self {
        Self::global_builder().build()
    }

    /// Returns a builder for a rayon pool.
    pub fn builder(threads: impl Into<Arc<rayon_core::ThreadPool>>) -> RayonBuilder {
        RayonBuilder::new(Some(threads.into()))
    }

    /// Returns a builder for rayon's global pool.
    pub fn global_builder() -> RayonBuilder {
        RayonBuilder::new(None)
    }

    /// Returns the counters and gauges of the pool.
    pub fn stats(&self) -> PoolStats {
        self.admission().stats()
    }
}

impl RayonBuilder {
    fn new(threads: Option<Arc<rayon_core::ThreadPool>>) -> Self {
        Self {
            threads,
            name: "rayon".to_owned(),
            queue_capacity: DEFAULT_QUEUE_CAPACITY,
            queue_policy: QueuePolicy::default(),
        }
    }

    /// Sets the name of the pool in metrics and events. Default: `rayon`.
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

    /// Builds the pool. It starts no threads.
    ///
    /// # Panics
    ///
    /// Panics if the queue capacity is 0, or if rayon's global pool cannot be started.
    #[track_caller]
    pub fn build(self) -> Rayon {
        let Self { threads, name, queue_capacity, queue_policy } = self;
        let max = threads.as_ref().map_or_else(rayon_core::current_num_threads, |it| it.current_num_threads());
        let config = WorkerConfig {
            limits: Limits { min: 0, max },
            keep_alive: Some(Duration::ZERO),
            queue_policy,
            is_borrowed: true,
            spin: false,
            stall_timeout: STALL_TIMEOUT,
            spawn_error: CallError::Closed,
        };
        let admission = Admission::new(name, queue_capacity);
        let handle = WorkerPool::create(admission, config, move |worker: Worker| {
            match &threads {
                Some(threads) => threads.spawn(move || worker.run()),
                None => rayon_core::spawn(move || worker.run()),
            }
            Ok(())
        });
        Rayon { handle }
    }
}

impl Pool for Rayon {
    forward_to_pool!(self => *self.handle);

    fn into_shared(self) -> Arc<dyn Pool> {
        self.handle
    }
}

impl fmt::Debug for Rayon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rayon").field(&self.handle).finish()
    }
}

impl fmt::Debug for RayonBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RayonBuilder")
            .field("name", &self.name)
            .field("queue_capacity", &self.queue_capacity)
            .field("queue_policy", &self.queue_policy)
            .finish_non_exhaustive()
    }
}
