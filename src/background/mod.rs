//! Runs tasks whose result no caller waits for: closures and futures, on a pool, bounded, and
//! drained at shutdown.
//!
//! ```
//! use std::time::Duration;
//! use tower_offload::Background;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), tower_offload::background::SubmitError> {
//! let background = Background::default();
//! background.spawn_blocking(|| std::fs::read("/dev/null").map(drop))?;
//! background.spawn(async { tokio::task::yield_now().await })?; // polled on the pool
//!
//! let report = background.shutdown(Duration::from_secs(10)).await;
//! assert!(report.is_clean());
//! assert_eq!(background.stats().completed, 2);
//! # Ok(())
//! # }
//! ```
//!
//! Use it for work that a request causes but does not need for its response, such as mails,
//! indexing and thumbnails. A task is admitted when it is submitted, so a handler can still respond
//! with an error if the background is full. At most [`max_running`](BackgroundBuilder::max_running)
//! tasks run at a time; the others wait in the order of their submission.
//!
//! With every option and a pool of its own:
//!
//! ```
//! use std::{sync::mpsc, time::Duration};
//! use tower_offload::{Background, ThreadPool};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), tower_offload::background::SubmitError> {
//! let (failures, failed) = mpsc::channel();
//! let background = Background::builder()
//!     .pool(ThreadPool::blocking(4))
//!     .max_tasks(100)
//!     .max_running(4)
//!     .on_failure(move |failure| failures.send(failure.to_string()).unwrap_or_default())
//!     .build();
//!
//! let task = background.task("mail").timeout(Duration::from_secs(30));
//! task.spawn_blocking(|| Err("no such address"))?;
//! background.shutdown(Duration::from_secs(10)).await;
//! assert_eq!(failed.recv().as_deref(), Ok("background task 1 `mail` failed: no such address"));
//! # Ok(())
//! # }
//! ```
//!
//! # Pool and runtime
//!
//! Give the background a pool that no [layer](crate::offload) uses. Otherwise its tasks occupy the
//! threads that requests need. [`Background::default`] creates such a pool.
//!
//! A future is polled on the pool too, one poll at a time, like the future of an offloaded service.
//! It holds a thread only during a poll, so a future that blocks by mistake delays no connection.
//! Timers, sockets and `tokio::spawn` inside it use the runtime in which the task was submitted.
//! If that runtime shuts down, a future that has started is dropped and reported as lost.
//! [`on_runtime`](TaskBuilder::on_runtime) runs the future on that runtime instead, and polls that
//! block it are reported.
//!
//! A closure that waits for another task of the same background needs a second thread and a second
//! run permit.
//!
//! In tests with tokio's paused clock, use [`Inline`](crate::pool::Inline) as the pool. The clock
//! advances while the runtime has nothing to do, even if a thread of another pool is running a
//! task.
//!
//! # Sequences
//!
//! Tasks with the same key run one at a time, in the order in which their work was submitted. Tasks
//! of other sequences, and tasks without one, run in parallel:
//!
//! ```
//! # use std::{sync::mpsc, time::Duration};
//! # use tower_offload::Background;
//! # #[tokio::main]
//! # async fn main() -> Result<(), tower_offload::background::SubmitError> {
//! # let background = Background::default();
//! # let (sender, versions) = mpsc::channel();
//! for version in 1..=3 {
//!     # let sender = sender.clone();
//!     let write = move || sender.send(version);
//!     background.task("index").sequence("customer:7").spawn_blocking(write)?;
//! }
//! # background.shutdown(Duration::from_secs(10)).await;
//! # drop(sender);
//! assert_eq!(Vec::from_iter(versions), [1, 2, 3]);
//! # Ok(())
//! # }
//! ```
//!
//! - However a task ends, the next one of its sequence starts after it: if it succeeds, fails,
//!   panics, times out, is cancelled, or is refused by the pool. No task holds its sequence longer
//!   than its code runs. A closure that ignores its timeout or its cancellation does so until it
//!   returns, because two tasks would overlap otherwise.
//! - A task waits for the tasks before it without a thread and without a run permit. It has been
//!   admitted, and can be cancelled and is waited for by a shutdown like every other task that has
//!   not started. It keeps its place in the queue: a free permit goes to the oldest task that may
//!   run.
//! - One sequence uses at most one run permit, and at most half of
//!   [`max_tasks`](BackgroundBuilder::max_tasks): if it has as many tasks as places are left, the
//!   next one [is rejected](SubmitError::is_full). A client that fills its sequence therefore takes
//!   one permit from the others, and leaves them room. The bound is that of keys in the queue of a
//!   pool ([`OffloadLayer::fair_by`](crate::OffloadLayer::fair_by)). Sequences do not take turns as
//!   these keys do: with a [`max_running`](BackgroundBuilder::max_running) of 1, all tasks run in
//!   the order of their submission.
//! - A key takes 8 bytes, and is forgotten when its last task completes.
//! - Keys of different types can be equal: two newtypes of the same integer, or a text that another
//!   part of the program uses too. Tasks of both are one sequence then. Name the kind of key in a
//!   tuple, such as `("customer", 7)`, to keep them apart.
//! - What a task has started elsewhere is not part of it. If a future is dropped while it waits for
//!   a process of a `ProcessPool` or for a spawned task, that may still run when the next task
//!   starts.
//! - A task must not wait for a later task of its own sequence, which would never start.
//! - A sequence belongs to its background. It does not order the tasks of other backgrounds or
//!   processes.
//!
//! A sequence cannot be held after a failure, as one of durable jobs can: the tasks that wait for
//! its release would occupy the background, and would be lost when the process exits.
//!
//! # Guarantees
//!
//! - An admitted task runs, unless it is cancelled, a shutdown times out or the process exits.
//!   Tasks exist only in memory.
//! - An error or a panic ends only its own task. It is counted in [`BackgroundStats::failed`],
//!   emitted as an event of level `ERROR` with feature `tracing`, and reported once to the [failure
//!   handler](BackgroundBuilder::on_failure).
//! - Dropping every handle does not stop the tasks.
//! - A running closure cannot be stopped from outside. After its [timeout](TaskBuilder::timeout),
//!   its [cancellation](TaskHandle::cancel) or a timed-out shutdown, [`cancelled`] returns `true`
//!   inside it. It keeps its thread and its run permit until it returns. A running future is
//!   dropped at its next `.await`.
//! - A task that reaches its timeout before its code begins never runs.
//!
//! # Observability
//!
//! [`BackgroundStats`] has all counters and needs no feature. A failed task is an event of level
//! `ERROR` with feature `tracing`, and its code runs in a span `background_task`. Feature `metrics`
//! records through the [`metrics`] crate. The metrics of all backgrounds of a process are added up.
//!
//! | metric | kind | labels | value |
//! |---|---|---|---|
//! | `offload_background_rejected_total` | counter | `reason` | rejected tasks |
//! | `offload_background_queue_wait_seconds` | histogram | `task` | time from submission to start |
//! | `offload_background_run_seconds` | histogram | `task` | run time |
//! | `offload_background_ended_total` | counter | `task`, `outcome` | tasks that ended |
//! | `offload_blocking_total` | counter | `route` | polls that blocked the runtime |
//! | `offload_blocking_seconds` | histogram | `route` | their duration |
//!
//! A `reason` is `full`, `too_many_awaiting`, `sequence_full` or `closed`. An `outcome` is
//! `skipped`, `cancelled`, `failed` or `completed`. The labels `task` and `route` are the name of
//! the task, and empty if it has none.
//!
//! [`metrics`]: https://docs.rs/metrics
//!
//! # When not to use it
//!
//! For work whose result the response needs, use [`Pool::run`]. Work that must survive a crash
//! needs a durable queue.

mod builder;
mod completion;
mod drain;
mod error;
mod header;
mod metrics;
mod run;
mod sequence;
mod shared;
mod shutdown;
mod state;
mod task;

use std::{borrow::Cow, fmt, sync::Arc};

#[doc(hidden)]
use self::shared::Shared;
pub use self::{
    builder::BackgroundBuilder,
    completion::Completion,
    error::{SubmitError, TaskFailure},
    shutdown::{BackgroundShutdownReport, RunningTask},
    state::BackgroundStats,
    task::{Reservation, TaskBuilder, TaskHandle, TaskOutput, TaskTarget},
};
#[cfg_attr(not(feature = "after-response"), allow(unused_imports, reason = "for `after_response`"))]
pub(crate) use self::{run::TaskBody, sequence::SequenceKey, shutdown::DrainGuard};
use crate::pool::Pool;
pub use crate::pool::{CancellationToken, cancellation_token, cancelled};

/// Runs tasks in the background. Clones are handles to the same background.
///
/// See the [module docs](crate::background).
#[derive(Clone)]
pub struct Background {
    shared: Arc<Shared>,
}

impl Background {
    /// Creates a background with default options that runs its tasks on `pool`.
    ///
    /// No layer should use the same pool.
    pub fn new(pool: impl Pool) -> Self {
        Self::builder().pool(pool).build()
    }

    /// Returns a builder with default options.
    pub fn builder() -> BackgroundBuilder {
        BackgroundBuilder::new()
    }

    /// Submits a closure, which runs on the pool. It is a [task](Self::task) without a name or a
    /// timeout.
    ///
    /// # Errors
    ///
    /// Returns an error if the background is full or closed. The closure is dropped then.
    pub fn spawn_blocking<F, T>(&self, work: F) -> Result<TaskHandle, SubmitError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        self.task("").spawn_blocking(work)
    }

    /// Submits a future, which is polled on the pool, within the current runtime. It is a
    /// [task](Self::task) without a name or a timeout.
    ///
    /// A future that blocks holds a thread of the pool and delays neither the runtime nor its
    /// connections. [`TaskBuilder::on_runtime`] runs a future on the runtime itself. Outside a
    /// runtime, a future that needs one, such as for a timer or a socket, panics when it is polled.
    ///
    /// # Errors
    ///
    /// Returns an error if the background is full or closed. The future is dropped then.
    pub fn spawn<F>(&self, work: F) -> Result<TaskHandle, SubmitError>
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.task("").spawn(work)
    }

    /// Returns a builder for a task with a name.
    ///
    /// The name appears in reports, spans and metrics. Since it is a label of metrics, a program
    /// should use few different names.
    pub fn task(&self, name: impl Into<Cow<'static, str>>) -> TaskBuilder<'_> {
        TaskBuilder::new(self, name.into())
    }

    /// Admits a task that gets its work later. The task belongs to the current runtime and span.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_offload::Background;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tower_offload::background::SubmitError> {
    /// let background = Background::default();
    /// let mail = background.reserve("mail")?; // fails if the background is full
    /// let other = background.reserve("other")?;
    ///
    /// mail.spawn_blocking(|| println!("sent"));
    /// drop(other); // skipped
    /// background.shutdown(Duration::from_secs(10)).await;
    /// assert_eq!((background.stats().completed, background.stats().skipped), (1, 1));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error if the background is full or closed.
    pub fn reserve(&self, name: impl Into<Cow<'static, str>>) -> Result<Reservation, SubmitError> {
        let header = self.shared.reserve(name.into(), false, None)?;
        Ok(Reservation::new(self.shared.clone(), header))
    }

    /// [Cancels](TaskHandle::cancel) every incomplete task with this name. Returns the number of
    /// tasks that were cancelled.
    ///
    /// The empty name cancels nothing: it is the name of all tasks without one.
    pub fn cancel(&self, name: &str) -> usize {
        self.shared.cancel_named(name)
    }

    /// Closes the background. Admitted tasks still run, and running tasks may submit further ones;
    /// all other submissions are rejected.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Returns `true` after [`close`](Self::close) or [`shutdown`](Self::shutdown) was called.
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }

    /// Returns the current counters and gauges.
    pub fn stats(&self) -> BackgroundStats {
        self.shared.stats()
    }
}

#[cfg_attr(not(feature = "after-response"), allow(dead_code, reason = "for `after_response`"))]
impl Background {
    /// Cancels the task with this id, like [`TaskHandle::cancel`].
    pub(crate) fn cancel_id(&self, id: u64) -> bool {
        self.shared.cancel(id)
    }

    /// Admits a task that gets its work, and starts, after a response. It counts towards
    /// [`max_awaiting_response`](BackgroundBuilder::max_awaiting_response) until then.
    pub(crate) fn reserve_after_response(
        &self,
        name: Cow<'static, str>,
        sequence: Option<SequenceKey>,
    ) -> Result<Reservation, SubmitError> {
        let header = self.shared.reserve(name, true, sequence)?;
        Ok(Reservation::new(self.shared.clone(), header))
    }

    /// Returns `true` if both are handles to the same background.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    pub(crate) fn into_drain_guard(self) -> DrainGuard {
        DrainGuard::new(self.shared)
    }
}

impl Default for Background {
    /// Creates a background with a pool of its own, named `background`: up to 64 threads, started
    /// on demand and stopped after 10 s without work. A second background of a process should have
    /// a [pool](BackgroundBuilder::pool) with another name, by which threads and metrics are told
    /// apart.
    ///
    /// # Panics
    ///
    /// Panics if the pool cannot start a thread.
    fn default() -> Self {
        Self::builder().build()
    }
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Background").field("pool", &self.shared.pool).field("stats", &self.stats()).finish()
    }
}
