use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use super::{
    DEFAULT_QUEUE_CAPACITY, Gate, Job, Left, Pool, QueuePolicy, Rejection, Stats,
    roster::Limits,
    workers::{Policy, Worker, Workers},
};

/// The threads of a rayon pool, with a bounded queue in front.
///
/// Work runs inside the rayon pool, so `par_iter` and `join` in it use that pool's threads. A panic of the work never
/// reaches rayon, which would abort the process. After each job the thread is offered to whatever else the rayon pool has
/// to do.
///
/// While work waits in `join` or `par_iter`, rayon may run another call on the same thread and stack. So never hold a lock
/// across those that another handler takes too.
///
/// [`Priority::Release`](super::Priority::Release) calls go first, but there is no reserved thread for them: where all of
/// rayon's threads are blocked, they wait.
///
/// A handle: clones are the same pool.
///
/// ```
/// use std::sync::Arc;
/// use tower_offload::pool::{Pool, Rayon};
///
/// # #[tokio::main]
/// # async fn main() {
/// let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("two threads");
/// let pool = Rayon::new(threads).name("search").queue_capacity(64);
/// assert_eq!(pool.run(|| rayon::join(|| 2, || 3)).await, Ok((2, 3)));
/// # }
/// ```
#[derive(Clone)]
pub struct Rayon {
    workers: Arc<Workers>,
    threads: Option<Arc<rayon_core::ThreadPool>>,
}

impl Rayon {
    /// A rayon pool, and room for 1024 calls to wait. Named `rayon`.
    pub fn new(threads: impl Into<Arc<rayon_core::ThreadPool>>) -> Self {
        Self::build("rayon", DEFAULT_QUEUE_CAPACITY, QueuePolicy::default(), Some(threads.into()))
    }

    /// Rayon's global pool, and room for 1024 calls to wait. Named `rayon`.
    ///
    /// # Panics
    ///
    /// As rayon itself does where its global pool cannot be started.
    pub fn global() -> Self {
        Self::build("rayon", DEFAULT_QUEUE_CAPACITY, QueuePolicy::default(), None)
    }

    /// The same with another name, which labels metrics and log lines. A new queue: call it before the first use.
    pub fn name(self, name: &str) -> Self {
        Self::build(name, self.gate().queue_capacity(), self.workers.policy().queue, self.threads)
    }

    /// The same with room for so many calls to wait, at least 1. A new queue: call it before the first use.
    ///
    /// # Panics
    ///
    /// If `calls` is 0.
    pub fn queue_capacity(self, calls: usize) -> Self {
        Self::build(self.gate().name(), calls, self.workers.policy().queue, self.threads.clone())
    }

    /// The same with another policy; default: first in, first out. A new queue: call it before the first use.
    ///
    /// # Panics
    ///
    /// If the policy has no use: see [`Codel::new`](super::Codel::new).
    #[track_caller]
    pub fn queue_policy(self, policy: impl Into<QueuePolicy>) -> Self {
        let policy = policy.into();
        policy.check().unwrap_or_else(|unfit| panic!("{unfit}"));
        Self::build(self.gate().name(), self.gate().queue_capacity(), policy, self.threads.clone())
    }

    /// What the pool has done and is doing.
    pub fn stats(&self) -> Stats {
        self.workers.gate().stats()
    }

    fn build(
        name: &str,
        queue_capacity: usize,
        queue: QueuePolicy,
        threads: Option<Arc<rayon_core::ThreadPool>>,
    ) -> Self {
        let max = threads.as_ref().map_or_else(rayon_core::current_num_threads, |it| it.current_num_threads());
        let policy = Policy {
            limits: Limits { min: 0, max, reserved: 0 },
            keep_alive: Some(Duration::ZERO),
            reserved_keep_alive: Duration::ZERO,
            queue,
            borrowed: true,
            spin: false,
            lost: Rejection::Closed,
        };
        let spawner = threads.clone();
        let workers = Workers::new(Gate::new(name, queue_capacity), policy, move |worker: Worker| {
            match &spawner {
                Some(threads) => threads.spawn(move || worker.run()),
                None => rayon_core::spawn(move || worker.run()),
            }
            Ok(())
        });
        Self { workers, threads }
    }
}

impl Pool for Rayon {
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

impl fmt::Debug for Rayon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rayon").field("workers", &self.workers).finish_non_exhaustive()
    }
}
