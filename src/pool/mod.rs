//! Thread pools that run calls, and the bounds on how many calls may wait.
//!
//! ```
//! use tower_offload::{ThreadPool, pool::Pool};
//!
//! # #[tokio::main]
//! # async fn main() {
//! let pool = ThreadPool::builder().name("sums").threads(1).build().expect("one thread");
//! assert_eq!(pool.run(|| 1 + 1).await, Ok(2));
//! let report = pool.shutdown(std::time::Duration::from_secs(5)).await;
//! assert!(report.is_empty());
//! # }
//! ```
//!
//! * [`ThreadPool::cpu`], with one thread per core, for work that computes: hashing, images,
//!   parsing, models. Beside a runtime that also answers short requests, [`CpuBudget`] sizes both.
//! * [`ThreadPool::blocking`], with up to `n` threads that start on demand and stop when idle, for
//!   work that waits: disks, synchronous database drivers.
//! * [`Rayon`](https://docs.rs/tower-offload/latest/tower_offload/pool/struct.Rayon.html) (feature
//!   `rayon`), with the threads of a rayon pool, for handlers that use `par_iter` and for programs
//!   that already have a rayon pool.
//! * [`TokioBlocking`], with a limited number of the runtime's `spawn_blocking` threads, for
//!   programs that want no other threads and for tests with a paused clock.
//! * [`Inline`], without threads, for tests and examples.
//!
//! Use separate pools for work that waits and work that computes. On the few threads of a CPU pool,
//! work that waits leaves the cores idle while calls queue: with 50 ms sleeps at 200 per second on
//! two threads, the queue grows to seconds. On 64 threads, work that computes takes the cores away
//! from the event loop.
//!
//! # Bounds
//!
//! Every pool has an [`Admission`]: at most `queue_capacity` calls wait for their first poll, and
//! one more is rejected. Calls that have started are never rejected. Their wake-ups wait in a
//! separate queue that holds at most one entry per call and is served first. Every eighth pick is a
//! new call nevertheless, so that a future which wakes itself forever does not starve new calls.
//!
//! # Overload
//!
//! While more calls arrive than the threads can run, choose what happens to the excess:
//!
//! * [`QueuePolicy::AcceptBursts`], the default: bursts wait, and callers with a deadline are
//!   answered in time during a longer overload. The excess is rejected at once, before it costs
//!   anything. No setting depends on the duration of calls. Only calls of a layer are rejected like
//!   this: calls of [`run`](Pool::run), tasks of a background and the like are work that the
//!   program has accepted, and are rejected only if the queue is full.
//! * [`QueuePolicy::Fifo`]: every queued call starts, however late. The excess is rejected when the
//!   queue is full.
//! * A small [`queue_capacity`](ThreadPoolBuilder::queue_capacity): the same for all calls, if they
//!   take about the same time.
//! * [`Priority::High`] and [`Priority::Normal`]: some calls start before others. The excess is
//!   delayed, but never starved.
//! * [`Priority::Low`]: some calls run only when there is capacity. The excess is rejected when
//!   half of the queue is in use, and shed first.
//! * [Keys](#keys): a client that makes too many calls delays only itself, and is the one whose
//!   calls are rejected.
//!
//! Policies and priorities affect only calls that have not started.
//!
//! ```
//! use tower_offload::{CallError, Priority, ThreadPool, pool::Pool};
//!
//! # #[tokio::main]
//! # async fn main() {
//! let pool = ThreadPool::builder().threads(1).queue_capacity(64).build().expect("one thread");
//!
//! match pool.run_with_priority(Priority::Low, || "rows").await {
//!     Ok(report) => assert_eq!(report, "rows"),
//!     Err(CallError::Overloaded) => println!("retry in {:?}", pool.expected_wait()),
//!     Err(other) => panic!("{other}"),
//! }
//! # }
//! ```
//!
//! # Keys
//!
//! Calls may have a key, such as a tenant, a user or an address: with
//! [`OffloadLayer::fair_by`](crate::OffloadLayer::fair_by), or with [`CallOptions::fair_by`].
//!
//! * **Keys that wait take turns**, one call at a time, within a priority. When a thread becomes
//!   free, the key whose last turn was longest ago has the next one. The first call of a key
//!   therefore starts after at most one call of each other key that waits: within (number of keys x
//!   longest call / threads) + one call, whatever the others do. Calls that were woken come first,
//!   as always, and their keys take turns too. Calls without a key take turns like one more key.
//! * **A key leaves room for others.** A key that has as many calls in the queue as there are
//!   places left gets no more: its next call is rejected with [`CallError::KeyLimited`], by default
//!   with the status 429. One key fills half of the queue, two a third each. A key without a
//!   queued call is rejected only if the queue is full to the last place, which takes at least as
//!   many keys as the capacity has binary digits.
//! * **Groups** count as one key, however many keys they have; their keys take turns within the
//!   group. If clients can choose keys, such as the users of a tenant, group them: otherwise a
//!   client that sends a new key with each call counts as many clients.
//!
//! A turn is one call, however long it takes. At the start of an [overload](self#overload), calls
//! of the keys with the most calls are shed first. A pool of your own has the shares of the queue,
//! but no turns.
//!
//! Only hashes of keys are kept, with random keys of the process, and only while calls with the key
//! wait. While 4096 keys wait in a priority, further ones share the turns of others. A pool without
//! keys has no cost from this.
//!
//! # Deadlines
//!
//! A call has a [`Deadline`] if its [`CallOptions`] or an enclosing [`Deadline::scope`] give it
//! one, or if offloaded work with a deadline makes it. The earliest one applies. Once it has
//! passed,
//!
//! * a call that has not started never starts. It fails with [`CallError::DeadlineExceeded`], and
//!   before it is admitted it takes no place in the queue;
//! * a caller that awaits the call is answered with that error, even while the work runs;
//! * work that runs is cancelled as if the caller had left: [`cancelled`] returns `true`,
//!   [`cancel_reason`] returns the reason, and the call keeps its thread until the work returns.
//!   Work can also ask how much time is [`remaining`];
//! * a result that comes too late is dropped on the pool, even if the caller has not been answered
//!   yet. The time at which the last poll of the work ends decides. Work that stops at its deadline
//!   can therefore return anything. A panic still reaches the caller.
//!
//! The caller is woken by tokio's timer, with its resolution of a millisecond. Without one, outside
//! a runtime or in a runtime without `enable_time`, a call in the queue is answered when its turn
//! comes, and a call that runs when it ends: with the same error. Tokio offers no way to ask for
//! its timer, so such a call with a deadline raises and catches tokio's panic, which a panic hook
//! sees. A call without a deadline reads no clock for it and has no timer.
//!
//! A deadline does not reach a [`Background`](crate::Background), a
//! [`BlockingBody`](crate::offload::BlockingBody), tasks of the runtime or other threads, unless
//! [`Deadline::current`] is passed to them.
//!
//! [`PoolStats::cancelled_run_time`] is the time that threads ran calls without a caller.
//!
//! # Calls that wait for other calls
//!
//! If calls block on every thread of a pool until they get a connection, a permit or a lock, the
//! call that returns it must not wait in the same queue: it would wait behind them forever. Use a
//! second pool with one thread for such calls:
//!
//! ```
//! use std::sync::mpsc;
//! use tower_offload::{ThreadPool, pool::Pool};
//!
//! # #[tokio::main]
//! # async fn main() {
//! let pool = ThreadPool::builder().threads(1).build().expect("one thread");
//! let releases = ThreadPool::builder().name("releases").threads(1).build().expect("one thread");
//!
//! let (release, acquire) = mpsc::channel();
//! let blocked = pool.run(move || acquire.recv());
//! let released = releases.run(move || release.send("connection"));
//! assert_eq!(released.await, Ok(Ok(())));
//! assert_eq!(blocked.await, Ok(Ok("connection")));
//! # }
//! ```
//!
//! # Stalled pools
//!
//! A pool is *stalled* if calls wait for a thread and for 10 s no call has made progress: no poll
//! has ended and no entry has left the queue. Usually every thread is blocked. The pool then counts
//! a stall in its [stats](PoolStats::stalls) and metrics, and feature `tracing` emits an event. A
//! pool of long calls may also be stalled in this sense. Nothing happens to its calls.
//!
//! If a call blocks its thread until another call of the same pool is done, for example with
//! `Handle::block_on(pool.run(..))`, and every thread of a stalled pool is blocked like this, none
//! of these calls could ever end. Each wait then fails with [`CallError::Deadlock`]. A call that
//! waits for another one in any other way, such as `recv`, is not recognized. A pool on borrowed
//! threads ([`TokioBlocking`], `Rayon`) that is still waiting for one of them is only reported as
//! stalled, because the thread may become free. Give [`TokioBlocking`] no more threads than the
//! runtime has.
//!
//! A helper thread named `offload-monitor` looks for this once per second. The pool starts it when
//! a call has to wait, and it exits after a minute in which no call has waited. Pools with an
//! [`Admission`] of your own have no such thread.
//!
//! # Panics, cancellation and shutdown
//!
//! * A panic of the work is resumed in its caller and does not cost the pool a thread.
//! * If the caller drops its future, or the deadline passes, a call that has not started is
//!   dropped. One that is running can check [`cancelled`].
//! * [`Pool::shutdown`] rejects new calls and waits for the others up to a timeout.
//! * A crash of the process loses all calls.
//!
//! Callers of a busy [`ThreadPool`] are woken many at a time, by a task that the pool spawns once
//! in their runtime, at the first burst. The runtime counts it as an alive task until the pool is
//! gone. While wake-ups are batched, a helper thread named `offload-wakeups` wakes callers that
//! this task cannot reach.
//!
//! # When not to use a pool
//!
//! For work that takes microseconds: a call to another thread and back costs tens of them. For work
//! that only awaits: it blocks no thread where it is.

/// Expands to the methods of [`Pool`] that a handle forwards to its pool.
macro_rules! forward_to_pool {
    ($self:ident => $pool:expr) => {
        fn admission(&$self) -> &$crate::pool::Admission {
            $pool.admission()
        }

        fn schedule(&$self, runnable: $crate::pool::Runnable) {
            $pool.schedule(runnable);
        }

        fn expected_wait(&$self) -> std::time::Duration {
            $pool.expected_wait()
        }

        fn max_threads(&$self) -> Option<usize> {
            $pool.max_threads()
        }

        fn shutdown(
            &$self,
            timeout: std::time::Duration,
        ) -> std::pin::Pin<Box<dyn Future<Output = $crate::pool::PoolShutdownReport> + Send + '_>> {
            $pool.shutdown(timeout)
        }
    };
}

mod admission;
mod builder;
mod busy;
pub(crate) mod call;
mod cancel;
mod clock;
mod cpu_budget;
mod deadline;
mod error;
mod flows;
mod inline;
mod key;
mod metrics;
mod nested;
mod options;
mod overload;
mod permits;
mod policy;
mod priority;
mod queue_permit;
#[cfg(feature = "rayon")]
mod rayon;
mod run;
mod scheduler;
mod scope;
mod semaphore;
mod shares;
mod stall;
mod stats;
mod thread_pool;
mod thread_setup;
mod time;
mod tokio_blocking;
mod wake_batch;
mod watchdog;
mod worker;

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

#[cfg(feature = "rayon")]
pub use self::rayon::{Rayon, RayonBuilder};
pub use self::{
    admission::Admission,
    builder::{ThreadPoolBuildError, ThreadPoolBuilder},
    call::Runnable,
    cancel::{CancellationToken, cancel_reason, cancellation_token, cancelled},
    cpu_budget::CpuBudget,
    deadline::Deadline,
    error::{CallError, CancelReason},
    inline::Inline,
    options::CallOptions,
    policy::QueuePolicy,
    priority::Priority,
    run::Run,
    scope::{DeadlineScope, remaining},
    stats::{PoolShutdownReport, PoolStats},
    thread_pool::ThreadPool,
    tokio_blocking::{NoRuntimeError, TokioBlocking, TokioBlockingBuilder},
};
pub(crate) use self::{
    call::{spawn, spawn_in_place},
    key::CallKey,
    permits::PermitKind,
    queue_permit::{Admitted, QueuePermit},
    semaphore::Semaphore,
    shares::Shares,
};

/// Runs calls on threads of its own.
///
/// An implementation needs two methods: `schedule` must ensure that [`Runnable::run`] is called
/// once, soon, on some thread, and `admission` returns the pool's [`Admission`], which
/// bounds, measures and closes the pool. An implementation therefore needs no bound, no counters
/// and no panic handling of its own:
///
/// ```
/// use tower_offload::pool::{Admission, Pool, Runnable};
///
/// /// Starts a thread for each poll of a call.
/// #[derive(Debug)]
/// struct Spawning(Admission);
///
/// impl Pool for Spawning {
///     fn admission(&self) -> &Admission {
///         &self.0
///     }
///     fn schedule(&self, runnable: Runnable) {
///         std::thread::spawn(move || runnable.run());
///     }
/// }
///
/// # #[tokio::main]
/// # async fn main() {
/// let pool = std::sync::Arc::new(Spawning(Admission::new("spawning", 16)));
/// assert_eq!(pool.run(|| 6 * 7).await, Ok(42));
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a pool",
    note = "end a builder with `.build()?`, which returns a pool or an error",
    note = "a `ProcessPool` runs `Work`, not closures or services: call `pool.run(work)` in the handler"
)]
pub trait Pool: fmt::Debug + Send + Sync + 'static {
    /// Returns the admission control of this pool, always the same one.
    fn admission(&self) -> &Admission;

    /// Queues one poll of an admitted call and returns at once.
    ///
    /// It is called from `call`, from wakers and from destructors. It must therefore not block, and
    /// must not run the entry before it returns ([`Inline`] does, which is why it is for tests). An
    /// entry cannot be rejected here. It can be failed with [`Runnable::refuse`], best from a
    /// thread of the pool.
    fn schedule(&self, runnable: Runnable);

    /// Returns how long a new call is expected to wait, which becomes `Retry-After` of a rejected
    /// call. A pool that has become idle keeps its last value.
    ///
    /// By default, this is the queue wait of the call that started last. The pools of this crate
    /// also consider the call that has waited longest, so that a pool whose threads are all stuck
    /// does not report an outdated value.
    fn expected_wait(&self) -> Duration {
        self.admission().expected_wait()
    }

    /// Returns the maximum number of calls that run at the same time, if it is known.
    ///
    /// A job queue claims no more jobs than its pool can run, so that other processes can run them.
    fn max_threads(&self) -> Option<usize> {
        None
    }

    /// Rejects new calls, runs the others up to `timeout`, and reports what is left.
    ///
    /// After the timeout, calls that never started are dropped on the pool and fail with
    /// [`CallError::Closed`], and so does a parked call when it is woken. Work that is still
    /// running is reported and not joined. A second shutdown waits for the same calls with its own
    /// timeout.
    ///
    /// # Panics
    ///
    /// The future panics outside a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped early, the pool rejects new calls and runs the others.
    fn shutdown(&self, timeout: Duration) -> Pin<Box<dyn Future<Output = PoolShutdownReport> + Send + '_>> {
        Box::pin(self.admission().shutdown(timeout))
    }

    /// Runs a closure on the pool and returns its value.
    ///
    /// The permit for the queue is acquired by this method and not at the first poll, so the future
    /// of a call that finds the queue full is ready at once. Only a full queue rejects the call: an
    /// [overload](self#overload) does not. Offload the handler of a server with an
    /// [`OffloadLayer`](crate::OffloadLayer) instead, which answers 503 during an overload, or give
    /// the call a [timeout](CallOptions::timeout).
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() {
    /// use tower_offload::{ThreadPool, pool::Pool};
    ///
    /// let cpu = ThreadPool::cpu();
    /// let sum = cpu.run(|| (1..=10).sum::<u32>()).await;
    /// assert_eq!(sum, Ok(55));
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The future returns [`CallError::Overloaded`] if the queue is full, and [`CallError::Closed`]
    /// if the pool is shut down.
    ///
    /// # Panics
    ///
    /// The future resumes a panic of the closure, with its payload.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the closure has started, the closure is dropped and never
    /// runs. If it is dropped later, [`cancelled`] returns `true` inside the closure, and its value
    /// is dropped on the pool.
    fn run<T, W>(&self, work: W) -> Run<T>
    where
        Self: Clone + Sized,
        W: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.run_with(CallOptions::new(), work)
    }

    /// Like [`run`](Self::run), with a priority.
    ///
    /// ```
    /// use tower_offload::{Priority, ThreadPool, pool::Pool};
    ///
    /// # #[tokio::main]
    /// # async fn main() {
    /// let cpu = ThreadPool::cpu();
    /// let report = cpu.run_with_priority(Priority::Low, || "report").await;
    /// assert_eq!(report, Ok("report"));
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`run`](Self::run). A [`Priority::Low`] call also fails with [`CallError::Overloaded`]
    /// if half of the queue is in use.
    fn run_with_priority<T, W>(&self, priority: Priority, work: W) -> Run<T>
    where
        Self: Clone + Sized,
        W: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.run_with(CallOptions::new().priority(priority), work)
    }

    /// Like [`run`](Self::run), with a priority or a deadline. See [`CallOptions`].
    ///
    /// # Errors
    ///
    /// Like [`run_with_priority`](Self::run_with_priority). The future returns
    /// [`CallError::DeadlineExceeded`] at the deadline, if the closure has not ended by then.
    fn run_with<T, W>(&self, options: CallOptions, work: W) -> Run<T>
    where
        Self: Clone + Sized,
        W: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        Run::new(self.clone().into_shared(), options, PermitKind::Exempt, work)
    }

    /// Returns `true` if the pool has no threads, so that work runs where it is woken.
    #[doc(hidden)]
    fn is_inline(&self) -> bool {
        false
    }

    /// Converts the pool into a trait object, as layers store it.
    ///
    /// By default, this allocates an `Arc`. Handles that contain one return it instead.
    fn into_shared(self) -> Arc<dyn Pool>
    where
        Self: Sized,
    {
        Arc::new(self)
    }
}

impl Pool for Arc<dyn Pool> {
    forward_to_pool!(self => **self);

    fn is_inline(&self) -> bool {
        (**self).is_inline()
    }

    fn into_shared(self) -> Arc<dyn Pool> {
        self
    }
}

impl<P: Pool> Pool for Arc<P> {
    forward_to_pool!(self => **self);

    fn is_inline(&self) -> bool {
        (**self).is_inline()
    }

    fn into_shared(self) -> Arc<dyn Pool> {
        self
    }
}
