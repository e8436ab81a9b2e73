//! Durable jobs: a queue on [River](https://riverqueue.com) in the database of the [tasks](crate).
//!
//! Use it for work that must be done even if the process crashes, or that several machines share.
//! The same code runs on a SQLite file, which one process owns, and on Postgres, which many
//! processes share, [also in other languages](#workers-in-other-languages). A job is a task: it has
//! a [`TaskId`], a status, progress and a result.
//!
//! ```
//! use std::{convert::Infallible, time::Duration};
//! use serde::{Deserialize, Serialize};
//! use tower_offload::ThreadPool;
//! use tower_offload_tasks::{SqlStore, Tasks, jobs::{Job, Jobs}};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Report { customer: u64 }
//!
//! impl Job for Report { const KIND: &'static str = "report"; }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let file = std::env::temp_dir().join(format!("tower-offload-jobs-{}.db", std::process::id()));
//! # let url = format!("sqlite:{}", file.display());
//! let tasks = Tasks::new(SqlStore::open(&url).await?);
//! let jobs = Jobs::builder(&tasks)
//!     // A closure on a pool. Each attempt may take ten minutes.
//!     .blocking_worker(ThreadPool::cpu(), Duration::from_secs(600), |report: Report, progress| {
//!         progress.set(0.5, "halfway");
//!         Ok::<_, Infallible>(format!("report of customer {}", report.customer))
//!     })
//!     .start()
//!     .await?;
//!
//! let accepted = jobs.enqueue(Report { customer: 7 }).await?; // the job is committed
//! # let mut subscription = tasks.subscribe(accepted.id()).await?.expect("the job exists");
//! # while subscription.changed().await?.is_some() {}
//! # let record = tasks.get(accepted.id()).await?.into_record().expect("the job exists");
//! # let result = record.result.expect("the job has succeeded").parse::<String>()?;
//! # assert_eq!(result, "report of customer 7");
//!
//! // At shutdown: claims no more jobs, and requeues those that do not end in time.
//! assert!(jobs.shutdown(Duration::from_secs(10)).await.is_clean());
//! # for suffix in ["", "-wal", "-shm", ".tower-offload.lock"] {
//! #     let _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
//! # }
//! # Ok(())
//! # }
//! ```
//!
//! # Transactions
//!
//! A job that belongs to a row of the application can be enqueued in the transaction that writes
//! the row. Either both exist or neither does. The id is available at once, and the 202 response
//! after the commit.
//!
#![cfg_attr(feature = "postgres", doc = "```")]
#![cfg_attr(not(feature = "postgres"), doc = "```ignore")]
//! # use serde::{Deserialize, Serialize};
//! # use tower_offload_tasks::{Accepted, jobs::{Job, Jobs}};
//! # #[derive(Serialize, Deserialize)]
//! # struct Confirm { order: i64 }
//! # impl Job for Confirm { const KIND: &'static str = "confirm"; }
//! # type BoxError = Box<dyn std::error::Error + Send + Sync>;
//! async fn order(jobs: &Jobs, pool: &sqlx::PgPool) -> Result<Accepted, BoxError> {
//!     let mut transaction = pool.begin().await?;
//!     let insert = sqlx::query_scalar("INSERT INTO orders DEFAULT VALUES RETURNING id");
//!     let order = insert.fetch_one(&mut *transaction).await?;
//!     let id = jobs.enqueue(Confirm { order }).owner("ann").tx(&mut transaction).await?;
//!     transaction.commit().await?;
//!     Ok(jobs.tasks().accepted(id).await?.ok_or("the job was committed")?)
//! }
//! ```
//!
//! # Guarantees
//!
//! - **A job runs at least once.** An accepted job is attempted until an attempt succeeds, all
//!   attempts are used, or it is cancelled. If a process crashes after the work and before the
//!   result is committed, the job runs again. Make jobs idempotent, for example with a unique key,
//!   an upsert or an idempotency key of the other service.
//! - **A job never runs twice at the same time in one process.** A closure that exceeds its timeout
//!   keeps its job, and the next attempt starts when the closure has returned.
//! - **Between processes, two attempts overlap only if one process stalls.** On Postgres, a process
//!   that stalls for longer than its [lease](crate::SqlStore::open_with_lease) may run jobs at the
//!   same time as its replacement until it detects the loss, within half a lease. A trigger
//!   discards its results. A database outage has no such effect: a process ends the leases of
//!   others only after it has renewed its own without a gap for the duration of a lease.
//! - **A job starts when its work starts.** A job that waits for a thread of its pool is `queued`.
//!   If the process is shut down or crashes before the work has begun, the attempt does not count.
//!   The first 20 ms of a wait are an exception: a crash in them counts.
//! - **Jobs of a crashed process are recovered soon.** On SQLite when the next process starts, on
//!   Postgres when the lease expires. The attempt counts, so a job that crashes its process ends as
//!   `failed` with class `process_lost` when its attempts are used. After its first crash it is
//!   retried at once, since another job may have caused the crash. After further ones the
//!   [`Backoff`] applies. The message says whether the process crashed or was shut down.
//! - **The status is that of the job.** Triggers update it in the transaction that changes the job,
//!   even if another client changes it.
//!
//! | event | effect |
//! |---|---|
//! | error, panic, timeout | retried after the [`Backoff`]; then `failed` or `timed_out` |
//! | cancellation | a queued job never starts, a future is dropped, a closure can poll for it, a process ends |
//! | its worker process is killed or crashes | only this attempt has failed; see [processes](#processes) |
//! | the pool is full | retried after a second; the attempt does not count |
//! | shutdown | jobs that wait or do not end in time are requeued; the attempt does not count |
//! | the job is deleted from River's table, also by `TRUNCATE` | `lost`, reason `job_deleted` |
//! | the result exceeds 64 KiB or contains NUL | the attempt has failed, with class `result` |
//! | crash of the process | the job is recovered, see above |
//! | the process exits or is killed during or after a shutdown | recovered; see below |
//!
//! A closure that is still running when a shutdown times out is [reported](JobsShutdownReport). If
//! the process exits before it returns, or is killed during the shutdown, the job is recovered like
//! after a crash, but the attempt does not count. After ten such attempts of a job further ones
//! count, so that a job that never ends by itself is not repeated forever.
//!
//! With a maximum of one attempt a closure runs at most once, unless a process stalls for longer
//! than its lease. A future that a shutdown has dropped starts again.
//!
//! A closure that was cancelled and returns `Ok` has succeeded.
//!
//! # Sequences and limits
//!
//! ```no_run
//! # use serde::{Deserialize, Serialize};
//! # use tower_offload_tasks::jobs::{Job, Jobs};
//! # #[derive(Serialize, Deserialize)] struct Sync { customer: u64 }
//! # impl Job for Sync { const KIND: &'static str = "sync"; }
//! # async fn sync(jobs: &Jobs) -> Result<(), Box<dyn std::error::Error>> {
//! // One at a time for each customer, in this order, and at most 3 calls of the API at once.
//! let job = jobs.enqueue(Sync { customer: 7 }).sequence("customer:7").at_most(3, "api");
//! let accepted = job.await?;
//! # Ok(())
//! # }
//! ```
//!
//! Jobs of one [`sequence`](Enqueue::sequence) run one at a time in the order of their commits.
//! [`at_most`](Enqueue::at_most) limits the jobs of a key that run at once, in all processes
//! together. Triggers in the database enforce both, for workers of every language, and without
//! timers or leases: a job waits until the transaction that ends another one promotes it. After a
//! crash the next job waits until the interrupted one is recovered and has ended.
//!
//! Each key costs a few more statements per job, when a transaction commits. The commits of
//! transactions that have jobs of the same key follow one another.
//!
//! # Steps, successors and schedules
//!
//! The [`Context`] of a worker divides a job into [steps](Context::step), which run once although
//! the job has several attempts, and enqueues the job that [follows](Context::then) in the
//! transaction that ends this one. [`JobsBuilder::every`] enqueues a job at each tick of a
//! [`Schedule`], once across all processes.
//!
//! ```no_run
//! use std::time::Duration;
//! use serde::{Deserialize, Serialize};
//! use tower_offload::ThreadPool;
//! use tower_offload_tasks::{Failure, Tasks, jobs::{Context, Job, Jobs, Schedule}};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Bill { month: String }
//!
//! #[derive(Serialize, Deserialize)]
//! struct Send { invoice: u64 }
//!
//! impl Job for Bill { const KIND: &'static str = "bill"; }
//! impl Job for Send { const KIND: &'static str = "send"; }
//!
//! fn bill(bill: Bill, context: Context) -> Result<(), Failure> {
//!     let sum = context.step("sum", || sum(&bill.month))?;
//!     let invoice = context.step("charge", || charge(sum))?; // a later failure does not charge again
//!     context.then(context.jobs().enqueue(Send { invoice }))?;
//!     Ok(())
//! }
//!
//! # fn sum(_: &str) -> Result<u64, String> { Ok(1) }
//! # fn charge(sum: u64) -> Result<u64, String> { Ok(sum) }
//! # async fn start(tasks: &Tasks) -> Result<Jobs, tower_offload_tasks::jobs::StartError> {
//! Jobs::builder(tasks)
//!     .blocking_worker(ThreadPool::blocking(4), Duration::from_secs(60), bill)
//!     .every("bills", Schedule::cron("0 6 1 * *").time_zone("Europe/Berlin"), |tick| Bill { month: tick.to_string() })
//!     .start()
//!     .await
//! # }
//! ```
//!
//! # Processes
//!
//! A thread cannot be killed, so a closure that loops forever keeps its job and its thread, and one
//! that crashes takes the program and all its other jobs with it. With feature `process`, on Unix,
//! [`process_worker`](JobsBuilder::process_worker) runs each attempt in a process of a
//! [`ProcessPool`](tower_offload::process::ProcessPool). One type is both the job and the work:
//!
#![cfg_attr(feature = "process", doc = "```no_run")]
#![cfg_attr(not(feature = "process"), doc = "```ignore")]
//! use std::time::Duration;
//! use serde::{Deserialize, Serialize};
//! use tower_offload::process::{self, Context, ProcessPool, Work};
//! use tower_offload_tasks::{SqlStore, Tasks, jobs::{Job, Jobs}};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Thumbnail { path: String }
//!
//! impl Work for Thumbnail {
//!     const KIND: &'static str = "thumbnail";
//!     type Output = u64;
//!     type Error = String;
//!
//!     fn run(self, context: &Context) -> Result<u64, String> {
//!         context.progress(0.5, "decoded");
//!         Err(format!("no image: {}", self.path))
//!     }
//! }
//!
//! impl Job for Thumbnail {
//!     const KIND: &'static str = <Self as Work>::KIND;
//!     const MAX_ATTEMPTS: u16 = 3;
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     process::init::<Thumbnail>(); // never returns in a worker process
//!     tokio::runtime::Runtime::new()?.block_on(serve())
//! }
//!
//! async fn serve() -> Result<(), Box<dyn std::error::Error>> {
//!     let tasks = Tasks::new(SqlStore::open("sqlite:jobs.db").await?);
//!     let pool = ProcessPool::builder().max_memory(256 << 20).build()?;
//!     let jobs = Jobs::builder(&tasks)
//!         .process_worker::<Thumbnail>(pool.clone(), Duration::from_secs(30))
//!         .start()
//!         .await?;
//!     jobs.enqueue(Thumbnail { path: "cat.jpeg".to_owned() }).await?;
//!     println!("{}", jobs.shutdown(Duration::from_secs(10)).await);
//!     println!("{:?}", pool.shutdown(Duration::from_secs(1)).await); // after the queue
//!     Ok(())
//! }
//! ```
//!
//! - **Failures.** An attempt fails with the error of the work, or with the class `panic`,
//!   `timeout`, `memory`, `crash` or another one of [this table][classes]. What work returns within
//!   the [grace period][grace] after its timeout is the result of the attempt, as in the pool.
//! - **Cancellation.** The work is asked to stop, and its process is killed after the grace period.
//!   The job is `running` until the process is gone, so that it never runs twice at once. A job
//!   that [runs here](OrEnqueue) is cancelled at once, while its process ends.
//! - **Shutdown.** The work is stopped like by a cancellation, and the job is requeued, unless the
//!   work returns `Ok`, which is its result: return `Err` if it has stopped early. Jobs are
//!   stopped during the last fifth of the timeout, at most the last second: with a longer grace
//!   period they may be reported as still running.
//! - **What does not count as an attempt.** The pool is full or shut down, no process could be
//!   started, or the job still waits for a process: it is `queued` until a process gets it.
//! - **Crash of the program.** Its processes end with it, and the job is recovered as described
//!   above.
//! - **Output and error.** They are sent by the process, so the error cannot be a
//!   [`Failure`](crate::Failure). [`IntoFailure`](crate::IntoFailure) says what its class is.
//!
//! [classes]: crate::Failure#trait-implementations
//! [grace]: tower_offload::process::ProcessPoolBuilder::grace
//!
//! # Operations
//!
//! Operators change jobs by [`Tasks`] or [over HTTP](crate::service#operations), also on the page:
//!
//! | operation | effect |
//! |---|---|
//! | [`Tasks::retry`] | a finished job is queued again, under the same id; it gets another attempt if it has used all |
//! | [`Tasks::cancel`] | see [above](#guarantees) |
//! | [`Tasks::discard`] | a queued job has failed, with class `discarded` |
//! | [`Tasks::reschedule`] | a queued job is due at another time |
//! | [`Tasks::bulk`] | one of the former, except the last one, on all tasks that a filter selects |
//! | [`Jobs::pause_queue`], [`Jobs::resume_queue`] | no process claims jobs of the queue |
//! | [`Jobs::pause_kind`], [`Jobs::resume_kind`] | no process of this crate runs jobs of the kind |
//! | [`Tasks::summary`] | counts, the oldest job, and how long jobs wait and run |
//!
//! Each locks the job before it looks at its state. So of two operators, or of an operator and a
//! worker, only one has an effect, and the other one gets an error with the present state. An
//! attempt that was judged lost while its closure runs on may overlap with a retry, like with any
//! other attempt.
//!
//! # Events and numbers
//!
//! [`Jobs::stats`] counts what happens to jobs. With feature `tracing` it is an event, too, and
//! with feature `metrics` a number for a recorder, by kind and queue. The [table](crate#events-and-numbers) of the
//! crate lists them.
//!
//! # Traces
//!
//! With feature `tracing`, an attempt runs in a span `job`. It has the fields `id`, `river_id`,
//! `kind`, `queue`, `attempt`, `max_attempts`, and once it has ended `end` (`succeeded`, `failed`,
//! `stopped` or `returned`) and the `class` of a failure. It begins when the pool gets the work, so
//! the time that a job waits in the queue is no part of it. A closure and a future run in the span,
//! and so does the function of
//! [`ProcessPoolBuilder::trace_context`](tower_offload::process::ProcessPoolBuilder::trace_context).
//!
//! With a [`Propagator`], which is a few lines for OpenTelemetry, the trace of a request leads to
//! its jobs. The [`TraceContext`] of the span in which a job is enqueued is stored with the job, as
//! `traceparent` and `tracestate` in River's metadata, where River's OpenTelemetry middleware for Go
//! reads and writes it.
//!
//! - The span of the first attempt is a child of that span. An attempt that does not count is
//!   followed by another first one.
//! - The span of a later attempt begins a trace of its own, with a link to that span. A retry hours
//!   later does not stretch the trace of the request, and is sampled by itself.
//! - A trace context of another client that is not valid is ignored. A valid one decides, like the
//!   header of a request, whether the first attempt is sampled.
//!
//! A [task](crate::Tasks::track) of this process has a span `background_task`, which is a child of
//! the current one. River has a span `river_job` of its own around each attempt, which is no parent
//! of these; a filter for the target `riverqueue` removes it.
//!
//! # Limits
//!
//! - **Connections.** On Postgres up to 4 by default and two listeners, in addition to those of the store. On
//!   SQLite up to 4. The connections have session settings, so a proxy must not pool transactions.
//! - **Rights.** [`JobsBuilder::start`] creates River's tables and triggers on them, for which the
//!   database user must own these tables or be allowed to create them. If they are up to date, it
//!   needs no right on the schema: [`migrate`] and `migration_sql` are for a step of the deployment.
//! - **Latency.** A job that this process enqueues is claimed at once, and one of another process
//!   when Postgres notifies River. On SQLite a job of a transaction of the application is claimed
//!   within 100 ms. The end of a job reaches event streams and `Prefer: wait=n` at once, on
//!   Postgres also in other processes. They poll for other changes twice a second, with one query
//!   for all. A trigger notifies them of the transactions that end jobs. Postgres takes a lock of
//!   the whole server while such a transaction commits, so these commits follow one another; a
//!   commit ends many jobs.
//! - **A job that another process recovers.** If a job has waited for a thread, or was claimed more
//!   than a second ago, its process first asks the database whether the job is still its own.
//! - **Clocks.** On Postgres the clock of the server decides when a job is due. A host's clock
//!   decides about the periods of [`Unique::within`], and that of the leader's host about the day
//!   after which River deletes a finished job. On SQLite there is one host.
//! - **A unique job waits for its equals.** If an equal job is part of a transaction of the
//!   application, [`enqueue`](Jobs::enqueue) waits up to 10 s for its end. Other jobs do not wait.
//! - **SQLite has one writer.** A writer waits for another one for up to five seconds. Keep
//!   transactions short, and use [`tx`](Enqueue::tx) to enqueue within one. River does not sync
//!   each of its writes, so after a power failure a job that has finished may run again.
//! - **The queue is bounded only by disk space.** Rate-limit untrusted clients before they enqueue.
//!
//! # When not to use it
//!
//! Each job costs one or two commits. For work that may be lost use a
//! [`Background`](tower_offload::Background), and if the loss must be reported, a [task](crate).
//! [`OrEnqueue`] combines a background with the queue.
#![doc = include_str!("elsewhere.md")]

mod adapter;
mod attempt;
#[cfg(feature = "metrics")]
mod backlog;
mod builder;
mod client;
mod context;
mod database;
mod ended;
mod enqueue;
mod error;
mod events;
mod gate;
mod insert;
mod job;
mod maintenance;
#[cfg(test)]
mod model;
mod numbers;
mod operations;
mod outcome;
mod overflow;
#[cfg(feature = "process")]
mod process;
mod progress;
mod queue;
mod running;
mod schedule;
mod sequence;
mod slots;
mod steps;
mod trace;
mod worker;

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

#[cfg(feature = "tracing")]
#[cfg_attr(docsrs, doc(cfg(feature = "tracing")))]
pub use self::trace::Propagator;
pub use self::{
    builder::JobsBuilder,
    context::Context,
    enqueue::Enqueue,
    error::StartError,
    events::JobsStats,
    insert::Transaction,
    job::{Backoff, Job, Unique},
    overflow::OrEnqueue,
    schedule::{CatchUp, Schedule},
    steps::StepError,
    trace::TraceContext,
};
use self::{client::LeasedClient, database::Database, events::warn, maintenance::write_late_end, queue::Queue};
pub use crate::operation::{BlockedSequence, QueueState, Queues};
use crate::{SqlStore, StoreError, TaskId, Tasks, tasks::Listed};

/// Creates or migrates River's tables and the triggers on them, like [`JobsBuilder::start`] does.
///
/// Use it in a step of the deployment, as the role that owns the tables. The other processes then
/// need no rights on the schema, and can open the store with
/// [`migrate(false)`](crate::SqlStoreBuilder::migrate). With a store that was opened like that, it
/// changes nothing and returns an error that names what is missing.
///
/// ```no_run
/// # async fn deploy() -> Result<(), tower_offload_tasks::StoreError> {
/// use tower_offload_tasks::{SqlStore, jobs};
///
/// let store = SqlStore::open("postgres://owner@localhost/app").await?; // migrates its tables
/// jobs::migrate(&store).await?;
/// store.close().await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Returns an error if a right is missing, if the database fails, or if the tables or the triggers
/// are of a newer version.
///
/// # Panics
///
/// The future panics outside of a Tokio runtime with time enabled.
pub async fn migrate(store: &SqlStore) -> Result<(), StoreError> {
    Database::new(store.engine.clone()).migrate().await
}

/// Returns a script that creates all Postgres tables of tasks and jobs, also River's, and the
/// triggers, or migrates them from any earlier version, in this schema or in the first one of the
/// session's `search_path`.
///
/// Run it with `psql -v ON_ERROR_STOP=1`, as the role that owns the tables, and not in one
/// transaction: a value that a migration of River adds to an enum can be used only after its
/// commit. Running it again has no effect.
///
/// # Errors
///
/// Returns an error if the name of the schema is [not valid](crate::SqlStoreBuilder::schema).
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub fn migration_sql(schema: Option<&str>) -> Result<String, StoreError> {
    let tasks = crate::store::migration_sql(schema)?;
    let schema = crate::store::sql::postgres::schema_name::Schema::new(schema)?;
    Ok(tasks + &database::postgres::install::migration_sql(&schema))
}

/// A queue of durable jobs. Clones share the queue.
///
/// See the [module documentation](crate::jobs). Dropping the last clone has the effect of a
/// [`shutdown`](Self::shutdown) without a grace period.
#[derive(Clone)]
#[must_use = "dropping the last handle stops the queue"]
pub struct Jobs {
    queue: Arc<Queue>,
    /// `None` in the handles of a [`Context`], which do not keep the queue alive.
    _owner: Option<Arc<Owner>>,
}

/// Stops the queue when the last handle is dropped. The background tasks hold the queue itself,
/// which does not keep the handles alive.
struct Owner(Arc<Queue>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
        self.0.clients().iter().for_each(|client| client.stop_and_cancel());
        self.0.end_maintenance();
    }
}

/// Maximum time for stopped jobs to end, within the timeout of a shutdown.
const MAX_STOP_TIME: Duration = Duration::from_secs(1);
/// Maximum timeout: a year, which can be added to the current time.
const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

impl Jobs {
    fn new(queue: Arc<Queue>) -> Self {
        Self { _owner: Some(Arc::new(Owner(queue.clone()))), queue }
    }

    /// Creates a handle that does not keep the queue alive.
    fn without_owner(queue: Arc<Queue>) -> Self {
        Self { queue, _owner: None }
    }

    fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// Returns the tasks that hold the records of the jobs.
    pub fn tasks(&self) -> &Tasks {
        &self.queue().environment.tasks
    }

    /// Returns the number of jobs that are running in this process.
    pub fn running(&self) -> usize {
        self.queue().environment.running.len()
    }

    /// Returns the current counters.
    pub fn stats(&self) -> JobsStats {
        let queue::Environment { counters, running, ended, .. } = &*self.queue().environment;
        JobsStats {
            running: running.len(),
            clients: self.queue().clients().len(),
            waiting: running.waiting(),
            unwritten: running.unwritten().len(),
            skipped_callbacks: ended.skipped(),
            ..counters.stats()
        }
    }

    /// Returns `true` once [`shutdown`](Self::shutdown) was called.
    pub fn is_closed(&self) -> bool {
        self.queue().is_closed()
    }

    /// Claims no more jobs. Jobs whose work has not started are handed back, running ones continue,
    /// and jobs can still be enqueued: other processes run them, or this program when it starts
    /// again.
    ///
    /// Call it as soon as the process is asked to end: a job that is claimed while the server ends
    /// would only be interrupted. [`stop_claiming_on`](Self::stop_claiming_on) does that.
    /// [`shutdown`](Self::shutdown) then waits for the running jobs. Calling it again has no
    /// effect.
    pub fn stop_claiming(&self) {
        self.queue().stop_claiming();
    }

    /// Returns the signal of a server's graceful shutdown, which also
    /// [stops claiming jobs](Self::stop_claiming). The signal holds a handle of the queue.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// use tower_offload::{Background, axum::{serve, shutdown_signal}};
    /// # async fn run(jobs: tower_offload_tasks::jobs::Jobs, background: Background) -> std::io::Result<()> {
    /// # let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    /// # let (app, grace) = (axum::Router::new(), Duration::from_secs(20));
    ///
    /// let signal = jobs.stop_claiming_on(jobs.tasks().end_streams_on(shutdown_signal()?));
    /// let server = serve(listener, app).shutdown(signal, grace, &background).await;
    /// println!("{server}; {}", jobs.shutdown(server.remaining()).await);
    /// println!("{}", jobs.tasks().shutdown(server.remaining()).await);
    /// # Ok(())
    /// # }
    /// ```
    pub fn stop_claiming_on<F: Future>(&self, signal: F) -> impl Future<Output = F::Output> + use<F> {
        let jobs = self.clone();
        async move {
            let output = signal.await;
            jobs.stop_claiming();
            output
        }
    }

    /// Accepts and claims no more jobs, waits up to `timeout` until the running ones have ended,
    /// and requeues the others.
    ///
    /// Jobs are stopped during the last fifth of the timeout, at most the last second: futures are
    /// dropped, and [`Progress::is_cancelled`](crate::Progress::is_cancelled) becomes `true` for
    /// closures. A requeued job starts again here after a restart, or at once in another process,
    /// and the attempt does not count.
    ///
    /// Closures that are still running are reported, and keep the lease until they return. If the
    /// process ends first, or is killed during the shutdown, their jobs start again: on SQLite when
    /// the next process starts, and on Postgres when the lease has expired. Such an attempt does
    /// not count, ten times for a job. It counts if the database does not respond, or if the job
    /// has only one attempt.
    ///
    /// # Panics
    ///
    /// The future panics outside of a Tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, no more jobs are claimed, and running ones
    /// continue.
    pub async fn shutdown(&self, timeout: Duration) -> JobsShutdownReport {
        let queue = self.queue();
        let running = &queue.environment.running;
        queue.close();
        let (ended, returned) = queue.take_totals_at_stop();
        let timeout = timeout.min(MAX_TIMEOUT);
        let end = Instant::now() + timeout;
        let clients = queue.clients();
        let stop_at = end - (timeout / 5).min(MAX_STOP_TIME);
        let river_ended = async {
            match timeout_at(stop_at, all_ended(&clients)).await {
                Ok(ended) => Ok(ended),
                Err(_) => {
                    clients.iter().for_each(|client| client.stop_and_cancel());
                    timeout_at(end, all_ended(&clients)).await
                }
            }
        };
        // At once, because the process may be killed before the timeout elapses.
        let (river, _) = tokio::join!(river_ended, self.note_interrupted(Instant::now()));
        if let Ok(Err(error)) = &river {
            warn("River failed to shut down", error);
        }
        // Also if no client is left: an end may still be without a confirmation.
        let end_leases = self.end_leases(&clients, river.is_ok(), end);
        let (noted, ()) = tokio::join!(self.note_interrupted(end), end_leases);
        queue.end_maintenance();
        if running.has_ended() {
            // A recovery in progress must not change jobs after the shutdown.
            let _ = timeout_at(Instant::now() + MAX_STOP_TIME, queue.maintenance_over()).await;
        }
        let _ = timeout_at(end, queue.environment.ended.called()).await;
        let (ended, returned) = (running.totals().0 - ended, running.totals().1 - returned);
        let still_running: Vec<_> = running.running().into_iter().map(|(_, id)| id).collect();
        let interrupted: Vec<_> = still_running.iter().copied().filter(|id| noted.contains(id)).collect();
        events::still_running(&queue.environment.counters, &still_running, &interrupted);
        JobsShutdownReport { ended, returned, still_running, interrupted, unwritten: running.unwritten() }
    }

    /// Notes that the attempts that are running do not count if the process ends first, until `end`
    /// or for a second. Returns their jobs.
    async fn note_interrupted(&self, end: Instant) -> HashSet<TaskId> {
        let queue::Environment { database, running, .. } = &*self.queue().environment;
        let running = running.running();
        if running.is_empty() {
            return HashSet::new();
        }
        let claims: Vec<_> = running.iter().map(|(claim, _)| claim.clone()).collect();
        let late = || Err(StoreError::unavailable(format!("no response within {MAX_STOP_TIME:?}")));
        let noted = timeout_at(end.max(Instant::now() + MAX_STOP_TIME), database.note_interrupted(&claims)).await;
        let noted = noted.unwrap_or_else(|_| late()).unwrap_or_else(|error| {
            warn("failed to note which jobs the shutdown has interrupted, so these attempts count", &error);
            Vec::new()
        });
        running.into_iter().filter(|(claim, _)| noted.contains(&claim.river_id)).map(|(_, id)| id).collect()
    }

    /// Asks the database which ends are written, writes the others, and ends the leases if no job
    /// is left. River does not report whether it has written the ends of all jobs.
    async fn end_leases(&self, clients: &[Arc<LeasedClient>], has_ended: bool, end: Instant) {
        let queue::Environment { database, running, .. } = &*self.queue().environment;
        let end_leases = async {
            let unwritten = self.queue().late_ends(&self.queue().claims().await?, 0);
            if !unwritten.is_empty() {
                for end in unwritten {
                    write_late_end(self.queue(), end).await?;
                }
                self.queue().late_ends(&self.queue().claims().await?, 0);
            }
            if has_ended && running.is_empty() {
                self.queue().set_ended();
                for client in clients {
                    client.end_lease(database).await?;
                }
            }
            Ok::<_, StoreError>(())
        };
        if let Ok(Err(error)) = timeout_at(end.max(Instant::now() + MAX_STOP_TIME), end_leases).await {
            warn("failed to end the leases of the job queue", &error);
        }
    }
}

/// Waits until all jobs of these clients have ended.
async fn all_ended(clients: &[Arc<LeasedClient>]) -> Result<(), StoreError> {
    let mut all = Ok(());
    for client in clients {
        let ended = client.ended().await;
        all = all.and(ended);
    }
    all
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs")
            .field("running", &self.running())
            .field("is_closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// Result of [`Jobs::shutdown`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "it lists the jobs that are still running"]
#[non_exhaustive]
pub struct JobsShutdownReport {
    /// Number of attempts that ended during the shutdown, which begins when the queue
    /// [stops claiming](Jobs::stop_claiming).
    pub ended: usize,
    /// Number of jobs that were requeued during the shutdown. The attempt does not count.
    pub returned: usize,
    /// Jobs whose closure is still running. If the process ends now, they run again, except those
    /// without an attempt left, which fail.
    pub still_running: Vec<TaskId>,
    /// The jobs of [`still_running`](Self::still_running) of which the attempt does not count if
    /// the process ends now. See [`Jobs::shutdown`].
    pub interrupted: Vec<TaskId>,
    /// Jobs that have ended or were to be requeued, and for which the database did not confirm it
    /// in time. Those that it does not know of are recovered like after a crash, and the attempt
    /// counts.
    pub unwritten: Vec<TaskId>,
}

impl JobsShutdownReport {
    /// Returns `true` if every job has ended or was requeued, and the database has confirmed it.
    pub fn is_clean(&self) -> bool {
        self.unwritten.is_empty() && self.still_running.is_empty()
    }
}

/// Formats the numbers that are not zero, for example as `jobs: 3 ended, 1 requeued`, or as `no job
/// was running`.
impl fmt::Display for JobsShutdownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ended, returned, still_running, interrupted, unwritten } = self;
        let mut separator = "jobs: ";
        for (count, what) in [(*ended, "ended"), (*returned, "requeued")].into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{separator}{count} {what}")?;
            separator = ", ";
        }
        if !still_running.is_empty() {
            let listed = Listed { what: "job", ids: still_running };
            write!(f, "{separator}{} still running ({listed})", still_running.len())?;
            separator = ", ";
            let counted = still_running.len() - interrupted.len().min(still_running.len());
            if counted > 0 {
                write!(f, ", {counted} of them in an attempt that counts")?;
            }
        }
        if !unwritten.is_empty() {
            let listed = Listed { what: "job", ids: unwritten };
            write!(f, "{separator}{} without a confirmed end ({listed})", unwritten.len())?;
            separator = ", ";
        }
        if separator == ", " { Ok(()) } else { f.write_str("no job was running") }
    }
}
