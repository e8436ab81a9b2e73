use std::{
    error::Error,
    fmt, io,
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    admission::{Admission, DEFAULT_QUEUE_CAPACITY},
    error::CallError,
    policy::QueuePolicy,
    scheduler::Limits,
    stall::STALL_TIMEOUT,
    thread_pool::ThreadPool,
    thread_setup::{Hooks, NICENESS_RANGE, ThreadSetup},
    worker::{Worker, WorkerConfig, WorkerPool},
};

/// Upper limit of the number of threads. By default, Linux numbers threads with 15 bits, so a
/// larger number is a mistake.
const MAX_THREADS: usize = 32_767;

/// Nice value of the threads of [`ThreadPool::cpu`]. `None`, because every thread that the work
/// starts would inherit the value. If a default is ever set, a program that itself runs with a
/// higher nice value, for example under `nice -n 15`, must not fail because of it.
const CPU_NICENESS: Option<i32> = None;

impl ThreadPool {
    /// Creates a pool for work that computes: one thread per core, and capacity for 1024 calls to
    /// wait, of which an [overload](crate::pool#overload) leaves those of layers only a few. It is
    /// named `cpu`. A second such pool needs a name of its own: see
    /// [`blocking`](Self::blocking).
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
    /// Threads, metrics and events carry the name of the pool. If a program has two
    /// such pools, use the builder to name them:
    ///
    /// ```
    /// use tower_offload::ThreadPool;
    ///
    /// let disk = ThreadPool::builder().name("disk").min_threads(0).max_threads(64).build()?;
    /// let mail = ThreadPool::builder().name("mail").min_threads(0).max_threads(8).build()?;
    /// # let _ = (disk, mail);
    /// # Ok::<(), tower_offload::pool::ThreadPoolBuildError>(())
    /// ```
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

    #[track_caller]
    fn expect(built: Result<Self, ThreadPoolBuildError>) -> Self {
        match built {
            Ok(pool) => pool,
            Err(error) => panic!("{}", WithSources(&error)),
        }
    }
}

/// Configures a [`ThreadPool`]. Created by [`ThreadPool::builder`].
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
/// # Ok::<(), tower_offload::pool::ThreadPoolBuildError>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct ThreadPoolBuilder {
    name: String,
    min_threads: Option<usize>,
    max_threads: Option<usize>,
    queue_capacity: usize,
    queue_policy: QueuePolicy,
    keep_alive: Duration,
    stack_size: Option<usize>,
    niceness: Option<i32>,
    hooks: Hooks,
}

impl ThreadPoolBuilder {
    pub(super) fn new() -> Self {
        Self {
            name: "offload".to_owned(),
            min_threads: None,
            max_threads: None,
            queue_capacity: DEFAULT_QUEUE_CAPACITY,
            queue_policy: QueuePolicy::default(),
            keep_alive: Duration::from_secs(10),
            stack_size: None,
            niceness: None,
            hooks: Hooks::default(),
        }
    }

    /// Sets the name of the pool in metrics and events, and of its threads: `name-0`, `name-1` and
    /// so on. Linux shows the first 15 bytes. Pools with the same name share their metrics.
    ///
    /// Default: `offload`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets a constant number of threads, at least 1. Equal to setting minimum and maximum.
    ///
    /// Default: the available parallelism.
    pub fn threads(self, threads: usize) -> Self {
        self.min_threads(threads).max_threads(threads)
    }

    /// Sets the number of threads that are kept alive while idle.
    ///
    /// Default: the available parallelism, or the maximum if that is less.
    pub fn min_threads(mut self, threads: usize) -> Self {
        self.min_threads = Some(threads);
        self
    }

    /// Sets the maximum number of threads, at least 1. Threads over the minimum are started when a
    /// call finds none idle.
    ///
    /// Default: the available parallelism, or the minimum if that is more.
    pub fn max_threads(mut self, threads: usize) -> Self {
        self.max_threads = Some(threads);
        self
    }

    /// Returns the minimum and maximum number of threads.
    fn range(&self) -> (usize, usize) {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        match (self.min_threads, self.max_threads) {
            (None, None) => (cores, cores),
            (None, Some(max)) => (cores.min(max), max),
            (Some(min), None) => (min, cores.max(min)),
            (Some(min), Some(max)) => (min, max),
        }
    }

    /// Sets the maximum number of calls that wait to be started, at least 1.
    ///
    /// Default: 1024, which accepts a burst that the machine can work off without using much
    /// memory. With [`QueuePolicy::Fifo`], use the number of calls that the threads can run in the
    /// time that a caller is willing to wait.
    pub fn queue_capacity(mut self, calls: usize) -> Self {
        self.queue_capacity = calls;
        self
    }

    /// Sets what happens to calls during an overload.
    ///
    /// Default: [`QueuePolicy::AcceptBursts`], with which the calls of a layer wait only briefly.
    pub fn queue_policy(mut self, policy: QueuePolicy) -> Self {
        self.queue_policy = policy;
        self
    }

    /// Sets the time after which an idle thread over the minimum exits.
    ///
    /// Default: 10 s, as in tokio's blocking pool.
    pub fn keep_alive(mut self, keep_alive: Duration) -> Self {
        self.keep_alive = keep_alive;
        self
    }

    /// Sets the stack size of each thread, in bytes.
    ///
    /// Default: that of the standard library, which is `RUST_MIN_STACK` or 2 MiB.
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// Sets the nice value of each thread, from -20 (favoured) to 19, as an absolute value like in
    /// setpriority(2).
    ///
    /// With a value above that of the program, work of the pool yields to the event loop when both
    /// need a core. Between threads of one CPU cgroup, a step of 1 is a factor of 1.25 in processor
    /// time (sched(7)).
    ///
    /// Only Linux has a nice value for each thread; elsewhere this has no effect. A value below the
    /// one that a thread starts with requires `CAP_SYS_NICE` or a suitable `RLIMIT_NICE`.
    /// [`build`](Self::build) fails if a thread does not get the value. A thread that is started
    /// later and does not get it still works, and feature `tracing` emits an event.
    ///
    /// A thread inherits the nice value of the thread that starts it. Threads that offloaded work
    /// starts (a `std::thread`, a thread of tokio's blocking pool or of another pool that grows on
    /// demand), and the pool's own `offload-wakeups`, therefore start with this value.
    ///
    /// Default: none is set.
    pub fn niceness(mut self, niceness: i32) -> Self {
        self.niceness = Some(niceness);
        self
    }

    /// Sets a hook that runs on each thread before its first call, outside any runtime. It replaces
    /// an earlier one.
    ///
    /// A panic of the hook is caught, reported by the panic hook and, with feature `tracing`, by an
    /// event. The thread then continues. The extra thread that a timed-out
    /// [shutdown](crate::pool::Pool::shutdown) may start, to drop the remaining calls, runs no
    /// hooks.
    ///
    /// ```
    /// use tower_offload::ThreadPool;
    ///
    /// let pool = ThreadPool::builder()
    ///     .on_thread_start(|| println!("{:?} starts", std::thread::current().name()))
    ///     .on_thread_stop(|| println!("{:?} stops", std::thread::current().name()))
    ///     .build()?;
    /// # let _ = pool;
    /// # Ok::<(), tower_offload::pool::ThreadPoolBuildError>(())
    /// ```
    pub fn on_thread_start(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.hooks.start = Some(Arc::new(hook));
        self
    }

    /// Sets a hook that runs on each thread after its last call, outside any runtime. It replaces
    /// an earlier one. Panics are handled as in [`on_thread_start`](Self::on_thread_start).
    ///
    /// The pool no longer counts the thread then and does not wait for it: a program may exit
    /// before the hook has run, or while it runs.
    pub fn on_thread_stop(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.hooks.stop = Some(Arc::new(hook));
        self
    }

    /// Builds the pool and starts the minimum number of threads, or one to check that threads can
    /// be started.
    ///
    /// # Errors
    ///
    /// Returns an error if an option is out of range
    /// ([`is_configuration`](ThreadPoolBuildError::is_configuration)), if the system starts no
    /// thread ([`is_spawn`](ThreadPoolBuildError::is_spawn)), or if it denies the nice value
    /// ([`is_permission`](ThreadPoolBuildError::is_permission)).
    pub fn build(self) -> Result<ThreadPool, ThreadPoolBuildError> {
        self.validate().map_err(ThreadPoolBuildError)?;
        let (min, max) = self.range();
        let Self { name, queue_capacity, queue_policy, keep_alive, stack_size, niceness, hooks, .. } = self;
        let admission = Admission::new(name.as_str(), queue_capacity);
        let config = WorkerConfig {
            limits: Limits { min, max },
            keep_alive: (min < max).then_some(keep_alive),
            queue_policy,
            is_borrowed: false,
            spin: thread::available_parallelism().map_or(1, usize::from) > 1,
            stall_timeout: STALL_TIMEOUT,
            spawn_error: CallError::Overloaded,
        };
        let spawned = AtomicUsize::new(0);
        let setup = Arc::new(ThreadSetup::new(name.as_str().into(), niceness, hooks));
        let thread_setup = setup.clone();
        let handle = WorkerPool::create(admission, config, move |worker: Worker| {
            let number = spawned.fetch_add(1, Ordering::Relaxed);
            let mut thread = thread::Builder::new().name(format!("{name}-{number}"));
            if let Some(bytes) = stack_size {
                thread = thread.stack_size(bytes);
            }
            thread.spawn(thread_setup.wrap(worker)).map(drop)
        });
        let start = || (0..min.max(1)).try_for_each(|_| handle.workers.spawn_ahead().map_err(Reason::Spawn));
        let on_denied = |error| Reason::NicenessDenied { niceness: niceness.unwrap_or_default(), error };
        setup.start_checked(start, on_denied).map_err(ThreadPoolBuildError)?;
        Ok(ThreadPool { handle })
    }

    fn validate(&self) -> Result<(), Reason> {
        let (min, max) = self.range();
        if max == 0 {
            Err(Reason::NoThreads)
        } else if max > MAX_THREADS {
            Err(Reason::TooManyThreads(max))
        } else if min > max {
            Err(Reason::MinOverMax { min, max })
        } else if self.queue_capacity == 0 {
            Err(Reason::NoCapacity)
        } else if let Some(niceness) = self.niceness.filter(|niceness| !NICENESS_RANGE.contains(niceness)) {
            Err(Reason::NicenessOutOfRange { niceness, range: NICENESS_RANGE })
        } else if self.name.contains('\0') {
            Err(Reason::NameHasNul)
        } else {
            Ok(())
        }
    }
}

/// Error of building a [`ThreadPool`].
///
/// It converts to [`std::io::Error`], for a `main` that returns `io::Result<()>`.
pub struct ThreadPoolBuildError(Reason);

enum Reason {
    NoThreads,
    TooManyThreads(usize),
    MinOverMax { min: usize, max: usize },
    NoCapacity,
    NicenessOutOfRange { niceness: i32, range: RangeInclusive<i32> },
    NameHasNul,
    Spawn(io::Error),
    NicenessDenied { niceness: i32, error: io::Error },
}

impl ThreadPoolBuildError {
    /// Returns `true` if an option is out of range, which is a mistake of the program.
    pub fn is_configuration(&self) -> bool {
        !self.is_spawn() && !self.is_permission()
    }

    /// Returns `true` if the system started no thread: there are too many, or no memory is left for
    /// a stack of that size.
    pub fn is_spawn(&self) -> bool {
        matches!(self.0, Reason::Spawn(_))
    }

    /// Returns `true` if the system denied the [`niceness`](ThreadPoolBuilder::niceness).
    pub fn is_permission(&self) -> bool {
        matches!(self.0, Reason::NicenessDenied { .. })
    }
}

/// Contains the text, because a `main` that returns the error prints this.
impl fmt::Debug for ThreadPoolBuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ThreadPoolBuildError").field(&WithSources(self).to_string()).finish()
    }
}

impl fmt::Display for ThreadPoolBuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Reason::NoThreads => {
                f.write_str("a pool with 0 threads runs no call: give `threads` or `max_threads` at least 1")
            }
            Reason::TooManyThreads(max) => {
                write!(f, "a pool of {max} threads is over the limit of {MAX_THREADS} threads")
            }
            Reason::MinOverMax { min, max } => {
                write!(f, "`min_threads` is {min} and `max_threads` is {max}: the minimum must not exceed the maximum")
            }
            Reason::NoCapacity => f.write_str("a pool with `queue_capacity` 0 admits no call: give it at least 1"),
            Reason::NicenessOutOfRange { niceness, range } => {
                write!(f, "nice value {niceness} is out of range: use {} to {}", range.start(), range.end())
            }
            Reason::NameHasNul => f.write_str("a pool's name must not contain a NUL byte, because it names threads"),
            Reason::Spawn(_) => f.write_str("the system did not start a thread for the pool"),
            Reason::NicenessDenied { niceness, .. } => {
                write!(f, "the system denied the pool's threads nice value {niceness}")
            }
        }
    }
}

impl Error for ThreadPoolBuildError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Reason::Spawn(error) | Reason::NicenessDenied { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl From<ThreadPoolBuildError> for io::Error {
    /// The kind is that of the system's error, or `InvalidInput` for an option that is out of
    /// range.
    fn from(error: ThreadPoolBuildError) -> Self {
        let kind = match &error.0 {
            Reason::Spawn(error) | Reason::NicenessDenied { error, .. } => error.kind(),
            _ => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
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
