use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::{BuildError, ThreadPool, error::Kind, hooks::Hooks, niceness, setup::Setup};
use crate::pool::{
    DEFAULT_QUEUE_CAPACITY, Gate, QueuePolicy, Rejection,
    roster::Limits,
    workers::{Policy, Worker, Workers},
};

/// More threads than this are a mistake: Linux counts them by a 15-bit id unless told otherwise.
const MAX_THREADS: usize = 32_767;

/// Configures a [`ThreadPool`]. Made by [`ThreadPool::builder`].
///
/// ```
/// use std::time::Duration;
/// use tower_offload::ThreadPool;
///
/// let pool = ThreadPool::builder()
///     .name("thumbnails")
///     .min_threads(1)
///     .max_threads(8)
///     .queue_capacity(64)
///     .keep_alive(Duration::from_secs(60))
///     .build()?;
/// # let _ = pool;
/// # Ok::<(), tower_offload::pool::BuildError>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct Builder {
    name: String,
    min_threads: Option<usize>,
    max_threads: Option<usize>,
    queue_capacity: usize,
    queue_policy: QueuePolicy,
    reserved_threads: usize,
    keep_alive: Duration,
    stack_size: Option<usize>,
    niceness: Option<i32>,
    hooks: Hooks,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            name: "offload".to_owned(),
            min_threads: None,
            max_threads: None,
            queue_capacity: DEFAULT_QUEUE_CAPACITY,
            queue_policy: QueuePolicy::default(),
            reserved_threads: 1,
            keep_alive: Duration::from_secs(10),
            stack_size: None,
            niceness: None,
            hooks: Hooks::default(),
        }
    }

    /// Names the pool in metrics and log lines, and its threads `name-0`, `name-1` and so on (Linux shows the first 15
    /// bytes). Default: `offload`. Pools of the same name share their metrics.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// As many threads always, at least 1: minimum and maximum in one. Default: as many as the machine runs at once.
    pub fn threads(self, threads: usize) -> Self {
        self.min_threads(threads).max_threads(threads)
    }

    /// Threads that stay though they are idle. Default: as many as the machine runs at once, or the maximum if that is less.
    pub fn min_threads(mut self, threads: usize) -> Self {
        self.min_threads = Some(threads);
        self
    }

    /// The most threads at once, at least 1. Threads over the minimum are started when a call finds none idle. Default: as
    /// many as the machine runs at once, or the minimum if that is more.
    pub fn max_threads(mut self, threads: usize) -> Self {
        self.max_threads = Some(threads);
        self
    }

    /// The least and the most threads.
    fn range(&self) -> (usize, usize) {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        match (self.min_threads, self.max_threads) {
            (None, None) => (cores, cores),
            (None, Some(max)) => (cores.min(max), max),
            (Some(min), None) => (min, cores.max(min)),
            (Some(min), Some(max)) => (min, max),
        }
    }

    /// How many calls may wait to be started, at least 1. Default: 1024, which takes a burst that the machine can work off
    /// without holding much memory. When latency under overload matters more than taking bursts, choose what the threads
    /// do within the time a caller is willing to wait.
    pub fn queue_capacity(mut self, calls: usize) -> Self {
        self.queue_capacity = calls;
        self
    }

    /// In which order calls are started, and whether one that waited for too long still is. Default:
    /// [`QueuePolicy::Fifo`], since whatever sheds calls is to be asked for.
    pub fn queue_policy(mut self, policy: impl Into<QueuePolicy>) -> Self {
        self.queue_policy = policy.into();
        self
    }

    /// So many threads more, started when a [`Release`](crate::pool::Priority::Release) call finds all others busy,
    /// which run nothing but such calls, and end like those over the minimum. Default: 1, which is enough where these
    /// calls do not block themselves; none is ever started where there are no such calls.
    pub fn reserved_threads(mut self, threads: usize) -> Self {
        self.reserved_threads = threads;
        self
    }

    /// How long a thread over the minimum stays idle before it ends. Default: 10 s, as in tokio's blocking pool.
    pub fn keep_alive(mut self, keep_alive: Duration) -> Self {
        self.keep_alive = keep_alive;
        self
    }

    /// The stack of each thread, in bytes. Default: that of the standard library, 2 MiB unless `RUST_MIN_STACK` says
    /// otherwise.
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// The nice value of each thread, from -20 (favoured) to 19 (gives way), as setpriority(2) takes it: a value, not what is
    /// added to one. Default: none is set.
    ///
    /// With a value above the program's own, work of the pool gives way to the event loop when both want a core. A step
    /// of 1 is a factor of 1.25 in processor time (sched(7)), between threads of one CPU cgroup.
    ///
    /// On Linux, where each thread has a nice value of its own; no effect elsewhere. A value below the one that a thread
    /// starts with needs `CAP_SYS_NICE` or an `RLIMIT_NICE` that allows it. [`build`](Self::build) fails if its threads do
    /// not get the value. One that is started later and does not get it works all the same, and feature `tracing` tells.
    ///
    /// A thread starts with the nice value of the thread that starts it. So what offloaded work starts (a `std::thread`,
    /// a thread of tokio's blocking pool, one of a second pool that grows on demand) begins with this value, and keeps it
    /// if nothing sets another; the pool's own `offload-replies` too.
    pub fn niceness(mut self, niceness: i32) -> Self {
        self.niceness = Some(niceness);
        self
    }

    /// Runs on each thread before its first job, outside of any runtime. A second one replaces the first.
    ///
    /// Its panic is catch_unwind_future, printed by the panic hook and, with feature `tracing`, an event; the thread goes on to its
    /// work. The thread that may come after a [shutdown](crate::pool::Pool::shutdown)'s deadline, to drop what is left, runs
    /// no hooks.
    ///
    /// ```
    /// use tower_offload::ThreadPool;
    ///
    /// let pool = ThreadPool::builder()
    ///     .on_thread_start(|| println!("{:?} starts", std::thread::current().name()))
    ///     .on_thread_stop(|| println!("{:?} stops", std::thread::current().name()))
    ///     .build()?;
    /// # let _ = pool;
    /// # Ok::<(), tower_offload::pool::BuildError>(())
    /// ```
    pub fn on_thread_start(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.hooks.start = Some(Arc::new(hook));
        self
    }

    /// Runs on each thread after its last job, outside of any runtime. A second one replaces the first. Its panic is
    /// treated as that of [`on_thread_start`](Self::on_thread_start).
    ///
    /// The pool does not count the thread any more by then, and nobody waits for it: a program may end before the hook
    /// has run, or while it does.
    pub fn on_thread_stop(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.hooks.stop = Some(Arc::new(hook));
        self
    }

    /// Starts the minimum of threads, or one to see that it can be had.
    ///
    /// # Errors
    ///
    /// If an option is out of range ([`BuildError::is_configuration`]), the system gives no thread
    /// ([`BuildError::is_spawn`]), or it does not let the threads have their nice value ([`BuildError::is_permission`]).
    pub fn build(self) -> Result<ThreadPool, BuildError> {
        self.check().map_err(BuildError::new)?;
        let (min, max) = self.range();
        let Self { name, queue_capacity, stack_size, niceness, hooks, .. } = self;
        let gate = Gate::new(name.as_str(), queue_capacity);
        let spin = thread::available_parallelism().map_or(1, usize::from) > 1;
        let policy = Policy {
            limits: Limits { min, max, reserved: self.reserved_threads },
            keep_alive: (min < max).then_some(self.keep_alive),
            reserved_keep_alive: self.keep_alive,
            queue: self.queue_policy,
            borrowed: false,
            spin,
            lost: Rejection::Overloaded,
        };
        let spawned = AtomicUsize::new(0);
        let setup = Arc::new(Setup::new(name.as_str().into(), niceness, hooks));
        let of_threads = setup.clone();
        let workers = Workers::new(gate, policy, move |worker: Worker| {
            let number = spawned.fetch_add(1, Ordering::Relaxed);
            let mut thread = thread::Builder::new().name(format!("{name}-{number}"));
            if let Some(bytes) = stack_size {
                thread = thread.stack_size(bytes);
            }
            thread.spawn(of_threads.wrap(worker)).map(drop)
        });
        let pool = ThreadPool::new(workers);
        let start = || (0..min.max(1)).try_for_each(|_| pool.workers().hire().map_err(Kind::Spawn));
        let refused = |error| Kind::NicenessRefused { niceness: niceness.unwrap_or_default(), error };
        setup.checked(start, refused).map_err(BuildError::new)?;
        Ok(pool)
    }

    fn check(&self) -> Result<(), Kind> {
        let (min, max) = self.range();
        if max == 0 {
            Err(Kind::NoThreads)
        } else if max > MAX_THREADS {
            Err(Kind::TooManyThreads { what: "threads", max, limit: MAX_THREADS })
        } else if self.reserved_threads > MAX_THREADS {
            Err(Kind::TooManyThreads { what: "reserved threads", max: self.reserved_threads, limit: MAX_THREADS })
        } else if min > max {
            Err(Kind::MinOverMax { min, max })
        } else if self.queue_capacity == 0 {
            Err(Kind::NoCapacity)
        } else if let Some(niceness) = self.niceness.filter(|niceness| !niceness::RANGE.contains(niceness)) {
            Err(Kind::Niceness { niceness, range: niceness::RANGE })
        } else if self.name.contains('\0') {
            Err(Kind::NameHasNul)
        } else {
            self.queue_policy.check().map_err(Kind::Policy)
        }
    }
}
