use std::{fmt, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::sync::mpsc;
use tower_offload::Pool;
#[cfg(feature = "process")]
use tower_offload::process::{ProcessPool, Work};

use super::{
    Backoff, Job, Jobs, StartError,
    client::Plan,
    database::Database,
    ended::{Callback, EndedJobs},
    events::{self, Counters},
    maintenance::{self, INSERT_CHANNEL_CAPACITY, InsertReceivers},
    queue::{Environment, InsertSenders, Queue},
    running::RunningJobs,
    slots::AllSlots,
    worker::Worker,
};
use crate::{IntoFailure, Progress, Record, SqlStore, Tasks};

impl Jobs {
    /// Returns a builder for a job queue in the database of `tasks`. The records of its jobs are
    /// records of these tasks.
    pub fn builder(tasks: &Tasks) -> JobsBuilder {
        JobsBuilder { tasks: tasks.clone(), plan: Plan::default(), concurrency: DEFAULT_CONCURRENCY, on_end: None }
    }
}

/// Configures [`Jobs`]. Returned by [`Jobs::builder`].
#[must_use = "a builder does nothing until `start` is called"]
pub struct JobsBuilder {
    tasks: Tasks,
    plan: Plan,
    concurrency: usize,
    on_end: Option<Callback>,
}

const DEFAULT_CONCURRENCY: usize = 32;

impl JobsBuilder {
    /// Adds a worker for the jobs of type `J`, which runs a closure on a pool.
    ///
    /// An attempt that exceeds `timeout`, measured from the start of the closure, has failed. A
    /// closure cannot be stopped, so [`Progress::is_cancelled`] becomes `true`, and no other
    /// attempt of the job starts in this process until the closure returns. Poll it between the
    /// steps of the work.
    pub fn blocking_worker<J, P, F, T, E>(mut self, pool: P, timeout: Duration, work: F) -> Self
    where
        J: Job,
        P: Pool,
        F: Fn(J, Progress) -> Result<T, E> + Send + Sync + 'static,
        T: Serialize,
        E: IntoFailure,
    {
        self.plan.add_worker(Worker::blocking(pool, timeout, work));
        self
    }

    /// Adds a worker for the jobs of type `J`, which runs a future on the current runtime.
    ///
    /// An attempt that exceeds `timeout` has failed, and its future is dropped.
    pub fn worker<J, F, A, T, E>(mut self, timeout: Duration, work: F) -> Self
    where
        J: Job,
        F: Fn(J, Progress) -> A + Send + Sync + 'static,
        A: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize,
        E: IntoFailure,
    {
        self.plan.add_worker(Worker::future(timeout, work));
        self
    }

    /// Adds a worker for the jobs of type `W`, each of which runs in a process of the pool. See
    /// [processes](crate::jobs#processes).
    ///
    /// At `timeout`, measured from when a process gets the job, the work is asked to stop, and its
    /// process is killed after the
    /// [grace period](tower_offload::process::ProcessPoolBuilder::grace) of the pool.
    #[cfg(feature = "process")]
    #[cfg_attr(docsrs, doc(cfg(feature = "process")))]
    pub fn process_worker<W>(mut self, pool: ProcessPool, timeout: Duration) -> Self
    where
        W: Job + Work,
        W::Error: IntoFailure,
    {
        self.plan.add_worker(Worker::<W>::process(pool, timeout));
        self
    }

    /// Adds a queue, with a limit of 1 to 10 000 concurrent jobs in this process. Its name has 1 to
    /// 64 lower-case letters and digits, with single `-`, `_` or `|` between them.
    ///
    /// The [`Job::QUEUE`] of each worker is added automatically. Use this for a queue that jobs are
    /// [sent to](super::Enqueue::queue) explicitly, or for another
    /// [concurrency](Self::concurrency).
    pub fn queue(mut self, name: impl Into<String>, concurrency: usize) -> Self {
        self.plan.add_queue(name.into(), concurrency);
        self
    }

    /// Sets the maximum number of concurrent jobs in this process, 1 to 10 000, for each queue
    /// without a limit of its own. Default: 32.
    ///
    /// A process claims no more jobs than can begin: as many as the pool of their worker has
    /// threads, and a few more if jobs take less than 5 ms. Other processes can run the rest.
    pub fn concurrency(self, concurrency: usize) -> Self {
        Self { concurrency, ..self }
    }

    /// Sets the delay before the next attempt of a job that failed. Default: [`Backoff::default`].
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.plan.backoff = backoff;
        self
    }

    /// Calls `callback` with the final record of each job that this process has ended: its last
    /// attempt here, a job without an attempt left that this process has recovered, and a queued
    /// job that this process has cancelled.
    ///
    /// The callback is called after the commit, usually within milliseconds, once for an end. It
    /// runs on a thread that may block (`spawn_blocking`), one call at a time. A slow one delays
    /// the next calls, and neither the jobs nor their status. If 1024 jobs wait for it, further
    /// ones are skipped and [counted](super::JobsStats::skipped_callbacks). A panic is an event of
    /// level `WARN`. [`Jobs::shutdown`] waits for the callbacks until its timeout.
    ///
    /// It is not called if the process ends between the commit and the call, nor for what others
    /// do: a job that another process or program has ended or deleted. What must happen for each
    /// job is a job of its own, enqueued by the work.
    ///
    /// The default is no callback. Calling it again replaces the callback.
    pub fn on_end(self, callback: impl Fn(&Record) + Send + Sync + 'static) -> Self {
        Self { on_end: Some(Arc::new(callback)), ..self }
    }

    /// Creates or migrates River's tables, recovers jobs of crashed processes, and starts the
    /// workers.
    ///
    /// If the tables are up to date, no right on the schema is needed. See
    /// [`SqlStoreBuilder::migrate`](crate::SqlStoreBuilder::migrate).
    ///
    /// Without workers, jobs can be enqueued for other processes. An event of level `INFO` says so.
    ///
    /// # Errors
    ///
    /// Returns an error if the store of the tasks is not an [`SqlStore`], if an option is not
    /// valid, if two workers have the same kind, if another queue is running on the same store, or
    /// if the database fails or has a newer schema of River.
    ///
    /// # Panics
    ///
    /// The future panics outside of a Tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, jobs may have started. They are requeued.
    pub async fn start(self) -> Result<Jobs, StartError> {
        let Self { tasks, mut plan, concurrency, on_end } = self;
        let store = tasks.store::<SqlStore>().cloned().ok_or(StartError::NO_DATABASE)?;
        plan.validate(concurrency).map_err(StartError::invalid)?;
        crate::metrics::register_jobs(plan.kinds().iter().copied());
        if plan.kinds().is_empty() {
            events::no_workers();
        }
        tasks.start().await?;
        let database = Database::new(store.engine.clone());
        let poll_interval = database.poll_interval();
        let (ended, caller) = EndedJobs::new(on_end);
        let environment = Environment {
            tasks,
            database,
            running: RunningJobs::default(),
            progress: Arc::default(),
            slots: AllSlots::new(plan.queues(), poll_interval),
            counters: Counters::default(),
            ended,
            backoff: plan.backoff,
        };
        let (plain, plain_requests) = mpsc::channel(INSERT_CHANNEL_CAPACITY);
        let (unique, unique_requests) = mpsc::channel(INSERT_CHANNEL_CAPACITY);
        let queue = Arc::new(Queue::new(environment, plan, InsertSenders { plain, unique }, store));
        if !queue.register() {
            return Err(StartError::ALREADY_STARTED);
        }
        let jobs = Jobs::new(queue.clone()); // stops everything if this future is dropped
        if let Some(caller) = caller {
            tokio::spawn(caller.run(queue.environment.tasks.writer().clone()));
        }
        queue.start_client().await?;
        maintenance::spawn(&queue, InsertReceivers { plain: plain_requests, unique: unique_requests });
        Ok(jobs)
    }
}

impl fmt::Debug for JobsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobsBuilder")
            .field("kinds", &self.plan.kinds())
            .field("queues", &self.plan.queues().map(|(name, _)| name).collect::<Vec<_>>())
            .field("concurrency", &self.concurrency)
            .field("backoff", &self.plan.backoff)
            .finish_non_exhaustive()
    }
}
