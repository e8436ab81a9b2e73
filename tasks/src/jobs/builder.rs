use std::{
    any::type_name,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use serde::Serialize;
use tokio::sync::mpsc;
use tower_offload::Pool;
#[cfg(feature = "process")]
use tower_offload::process::{ProcessPool, Work};

#[cfg(feature = "tracing")]
use super::Propagator;
use super::{
    Backoff, Context, Job, Jobs, Schedule, StartError,
    client::Plan,
    context::State,
    database::Database,
    ended::{Callback, EndedJobs},
    events::{self, Counters},
    maintenance::{self, INSERT_CHANNEL_CAPACITY, InsertReceivers},
    operations::PausedKinds,
    queue::{Environment, InsertSenders, Queue},
    running::RunningJobs,
    schedule::{self, run::ScheduledJob},
    slots::AllSlots,
    trace::Tracing,
    worker::Worker,
};
use crate::{IntoFailure, Record, SqlStore, Tasks, Timestamp};

impl Jobs {
    /// Returns a builder for a job queue in the database of `tasks`. The records of its jobs are
    /// records of these tasks.
    pub fn builder(tasks: &Tasks) -> JobsBuilder {
        JobsBuilder {
            tasks: tasks.clone(),
            plan: Plan::default(),
            concurrency: DEFAULT_CONCURRENCY,
            tracing: Tracing::default(),
            state: State::default(),
            schedules: Vec::new(),
            error: None,
            on_end: None,
        }
    }
}

/// Configures [`Jobs`]. Returned by [`Jobs::builder`].
#[must_use = "a builder does nothing until `start` is called"]
pub struct JobsBuilder {
    tasks: Tasks,
    plan: Plan,
    concurrency: usize,
    tracing: Tracing,
    state: State,
    schedules: Vec<ScheduledJob>,
    /// The first option that is not valid.
    error: Option<String>,
    on_end: Option<Callback>,
}

const DEFAULT_CONCURRENCY: usize = 32;

impl JobsBuilder {
    /// Adds a worker for the jobs of type `J`, which runs a closure on a pool.
    ///
    /// An attempt that exceeds `timeout`, measured from the start of the closure, has failed. A
    /// closure cannot be stopped, so [`is_cancelled`](crate::Progress::is_cancelled) becomes
    /// `true`, and no other attempt of the job starts in this process until the closure returns.
    /// Poll it between the parts of the work, or divide the work into [steps](Context::step).
    pub fn blocking_worker<J, P, F, T, E>(mut self, pool: P, timeout: Duration, work: F) -> Self
    where
        J: Job,
        P: Pool,
        F: Fn(J, Context) -> Result<T, E> + Send + Sync + 'static,
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
        F: Fn(J, Context) -> A + Send + Sync + 'static,
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
        if !pool.can_run::<W>() {
            self.error.get_or_insert_with(|| {
                let kind = <W as Work>::KIND;
                format!("work of kind {kind:?} is not passed to `process::init`, so each of its jobs would fail: pass its type")
            });
        }
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

    /// Enqueues a job at each tick of a schedule, once across all processes with this schedule.
    ///
    /// `job` gets the tick, which is earlier than the current time if the tick was
    /// [made up](super::CatchUp). `name` identifies the schedule in the database, so every program
    /// that shares it must have another name for another schedule. It has 1 to 100 bytes without
    /// control characters, and is part of River's metadata of each job (`river:periodic_job_id`).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use serde::{Deserialize, Serialize};
    /// # use tower_offload_tasks::{Tasks, jobs::{Job, Jobs, JobsBuilder, Schedule}};
    /// #[derive(Serialize, Deserialize)]
    /// struct Report { day: String }
    ///
    /// # impl Job for Report { const KIND: &'static str = "report"; }
    /// # #[derive(Serialize, Deserialize)]
    /// # struct Poll;
    /// # impl Job for Poll { const KIND: &'static str = "poll"; }
    /// fn with_schedules(builder: JobsBuilder) -> JobsBuilder {
    ///     let nightly = Schedule::cron("0 3 * * *").time_zone("Europe/Berlin");
    ///     builder
    ///         .every("nightly report", nightly, |tick| Report { day: tick.to_string() })
    ///         .every("poll", Duration::from_secs(300), |_| Poll)
    /// }
    /// ```
    ///
    /// The clock of the database decides when it ticks. The first start of a schedule only records
    /// the time, so its first tick is later. A tick and its job are committed together: a crash
    /// neither loses a tick nor repeats one. If the clock is set back, no tick is repeated, so
    /// there is none until it shows the time of the latest tick again, and a warning is logged.
    ///
    /// If `job` panics, or its arguments cannot be stored, the tick is skipped and a warning
    /// logged. Another expression or interval under the same name continues after the latest tick.
    /// A schedule that no program has any longer does not tick.
    /// [`stop_claiming`](Jobs::stop_claiming) does not stop it, but [`shutdown`](Jobs::shutdown)
    /// does.
    pub fn every<J, F>(mut self, name: impl Into<String>, schedule: impl Into<Schedule>, job: F) -> Self
    where
        J: Job,
        F: Fn(Timestamp) -> J + Send + Sync + 'static,
    {
        let scheduled = ScheduledJob::new(name.into(), schedule.into(), job);
        let is_new = self.schedules.iter().all(|other| other.name != scheduled.name);
        let name = &scheduled.name;
        let twice = || format!("schedule {name:?} is added twice: give each a name of its own");
        let is_valid = scheduled.validate::<J>().and_then(|()| is_new.then_some(()).ok_or_else(twice));
        if let Err(error) = is_valid {
            self.error.get_or_insert(error);
        }
        self.schedules.push(scheduled);
        self
    }

    /// Adds a value for the workers, such as a client of another service. [`Context::state`]
    /// returns it. There is at most one value of each type.
    pub fn state<S: Send + Sync + 'static>(mut self, value: S) -> Self {
        if !self.state.add(value) {
            let name = type_name::<S>();
            self.error.get_or_insert_with(|| {
                format!("the job queue has two states of type `{name}`: remove one, or wrap it in a type of its own")
            });
        }
        self
    }

    /// Sets the delay before the next attempt of a job that failed. Default: [`Backoff::default`].
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.plan.backoff = backoff;
        self
    }

    /// Sets the propagator of trace contexts. Default: none, so each attempt begins a trace.
    ///
    /// With one, a job is stored with the trace context of the span in which it is enqueued. The
    /// span of its first attempt is a child of that span, and those of later attempts are linked to
    /// it. See [traces](crate::jobs#traces).
    #[cfg(feature = "tracing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tracing")))]
    pub fn propagator(self, propagator: impl Propagator) -> Self {
        Self { tracing: Tracing::new(propagator), ..self }
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
        let Self { tasks, mut plan, concurrency, tracing, state, schedules, error, on_end } = self;
        if let Some(error) = error {
            return Err(StartError::invalid(error));
        }
        let store = tasks.store::<SqlStore>().cloned().ok_or(StartError::NO_DATABASE)?;
        plan.validate(concurrency).map_err(StartError::invalid)?;
        if plan.kinds().is_empty() {
            events::no_workers();
        }
        tasks.start().await?;
        let database = Database::new(store.engine.clone());
        let poll_interval = database.poll_interval();
        let (ended, caller) = EndedJobs::new(on_end);
        let environment = Environment {
            queue: Weak::new(),
            state,
            tasks,
            database,
            running: RunningJobs::default(),
            progress: Arc::default(),
            slots: AllSlots::new(plan.queues(), poll_interval),
            counters: Counters::new(&plan),
            ended,
            backoff: plan.backoff,
            paused: PausedKinds::default(),
            tracing,
        };
        let (plain, plain_requests) = mpsc::channel(INSERT_CHANNEL_CAPACITY);
        let (unique, unique_requests) = mpsc::channel(INSERT_CHANNEL_CAPACITY);
        let queue = Queue::new(environment, plan, InsertSenders { plain, unique }, store);
        if !queue.register() {
            return Err(StartError::ALREADY_STARTED);
        }
        let jobs = Jobs::new(queue.clone()); // stops everything if this future is dropped
        if let Some(caller) = caller {
            tokio::spawn(caller.run(queue.environment.tasks.writer().clone()));
        }
        queue.start_client().await?;
        maintenance::spawn(&queue, InsertReceivers { plain: plain_requests, unique: unique_requests });
        if !schedules.is_empty() {
            tokio::spawn(schedule::run::run(queue, schedules));
        }
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
