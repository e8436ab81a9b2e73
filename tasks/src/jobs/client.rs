use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, HashMap},
    future::pending,
    sync::Arc,
    time::Duration,
};

use riverqueue::{
    Client, ClientBuilder, DefaultRetryPolicy, Error, JobRow, QueueConfig, RetryPolicy, RunHandle, Stopper, WorkError,
    Workers, jiff::Timestamp,
};
use tokio::{
    sync::Mutex,
    time::{sleep, timeout},
};

use super::{
    Backoff, Job,
    adapter::{Adapter, Environment},
    database::Database,
    error::river_error,
    insert::Arguments,
    worker::Worker,
};
use crate::{StoreError, TaskId, lease::RENEWALS};

/// The options of a queue, and its workers.
#[derive(Default)]
pub(super) struct Plan {
    kinds: Vec<&'static str>,
    /// Maximum number of concurrent jobs of each queue, if it is not the default.
    queues: BTreeMap<String, Option<usize>>,
    workers: Vec<AddWorker>,
    /// The same workers by the type of their job, for jobs that run without River.
    by_type: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
    pub(super) backoff: Backoff,
}

/// Adds a worker to a River client.
type AddWorker = Box<dyn Fn(&mut Workers, &Arc<Environment>) -> Result<(), Error> + Send + Sync>;

/// The maximum concurrency of a queue that River accepts.
const MAX_CONCURRENCY: usize = 10_000;

impl Plan {
    pub(super) fn add_worker<J: Job>(&mut self, worker: Worker<J>) {
        self.kinds.push(J::KIND);
        self.queues.entry(J::QUEUE.to_owned()).or_default();
        self.by_type.insert(TypeId::of::<J>(), Box::new(worker.clone()));
        self.workers.push(Box::new(move |workers, environment| {
            let adapter = Adapter { worker: worker.clone(), environment: environment.clone() };
            workers.add::<Arguments<J>, _>(adapter).map(drop)
        }));
    }

    pub(super) fn add_queue(&mut self, name: String, concurrency: usize) {
        self.queues.insert(name, Some(concurrency));
    }

    /// Sets the concurrency of the other queues. Returns an error for options that River would
    /// reject.
    pub(super) fn validate(&mut self, default_concurrency: usize) -> Result<(), String> {
        self.kinds.sort_unstable();
        if let Some(pair) = self.kinds.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("job kind {:?} has two workers", pair[0]));
        }
        if let Some(kind) = self.kinds.iter().find(|kind| !is_name(kind, "-_./:", 128)) {
            return Err(format!("invalid job kind {kind:?}: see `Job::KIND`"));
        }
        for (name, concurrency) in &mut self.queues {
            let concurrency = *concurrency.get_or_insert(default_concurrency);
            if !is_name(name, "-_", 64) {
                return Err(format!(
                    "invalid queue name {name:?}: use 1 to 64 letters and digits, and `-` or `_` between them"
                ));
            }
            if !(1..=MAX_CONCURRENCY).contains(&concurrency) {
                return Err(format!("concurrency must be between 1 and {MAX_CONCURRENCY}, got {concurrency}"));
            }
        }
        Ok(())
    }

    pub(super) fn worker<J: Job>(&self) -> Option<&Worker<J>> {
        self.by_type.get(&TypeId::of::<J>())?.downcast_ref()
    }

    pub(super) fn kinds(&self) -> &[&'static str] {
        &self.kinds
    }

    pub(super) fn queues(&self) -> &BTreeMap<String, Option<usize>> {
        &self.queues
    }
}

/// Returns `true` if River accepts the name: letters and digits, with `separators` between them.
fn is_name(name: &str, separators: &str, max_len: usize) -> bool {
    let is_end = |end: Option<char>| end.is_some_and(|end| end.is_ascii_alphanumeric());
    let is_allowed = |character: char| character.is_ascii_alphanumeric() || separators.contains(character);
    name.len() <= max_len && is_end(name.chars().next()) && is_end(name.chars().last()) && name.chars().all(is_allowed)
}

/// A River client with a lease. A process that loses its lease replaces its client; updates of the
/// old one have no effect.
pub(super) struct LeasedClient {
    pub(super) river: Client,
    id: String,
    /// Handle of the running client. `None` if the client has no workers, and once it has ended.
    run: Mutex<Option<RunHandle>>,
    /// `None` if the client has no workers.
    stopper: Option<Stopper>,
}

/// Maximum time until River listens for jobs and knows its queues.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Threshold after which River considers a running job stuck and starts it again. It must never
/// elapse, because the adapter always returns when the work ends.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Minimum time between two claims. Jobs that finish in between share the next claim. With River's
/// default of 100 ms a client runs a few hundred short jobs per second, with 10 ms about 2200. With
/// 1 ms each claim is for only one or two jobs.
const FETCH_COOLDOWN: Duration = Duration::from_millis(2);

impl LeasedClient {
    /// Connects a client, migrates the schema, recovers the jobs of crashed processes on SQLite,
    /// and starts the workers.
    pub(super) async fn start(environment: &Arc<Environment>, plan: &Plan) -> Result<Self, StoreError> {
        let database = &environment.database;
        // The prefix marks the clients of this crate for the fence trigger.
        let id = format!("to-{}", TaskId::generate(crate::Timestamp::default()).map_err(StoreError::other)?);
        let builder = database.connect(&id, plan.backoff).await?;
        let river = configure(builder, &id, plan, environment).and_then(ClientBuilder::build).map_err(river_error)?;
        if plan.workers.is_empty() {
            return Ok(Self { river, id, run: Mutex::new(None), stopper: None });
        }
        database.begin_lease(&id, &environment.tasks.writer().process).await?;
        let mut run = river.start().map_err(river_error)?;
        // Jobs may be running from here on, so the lease must not expire.
        tokio::select! {
            ready = timeout(START_TIMEOUT, run.wait_ready()) => {
                let late = |_| StoreError::unavailable(format!("River was not ready within {START_TIMEOUT:?}"));
                ready.map_err(late)?.map_err(river_error)?;
            }
            () = renew_lease(database, &id) => {}
        }
        let stopper = run.stopper();
        Ok(Self { river, id, run: Mutex::new(Some(run)), stopper: Some(stopper) })
    }

    /// Returns the id of the client in the database, or `None` if it has no workers and therefore
    /// no lease.
    pub(super) fn id(&self) -> Option<&str> {
        self.stopper.as_ref().map(|_| &*self.id)
    }

    /// Requests cancellation of a job. A job that has finished or was deleted does not change.
    pub(super) async fn cancel(&self, river_id: i64) -> Result<(), StoreError> {
        match self.river.jobs().cancel(river_id).await {
            Ok(_) | Err(Error::NotFound(_)) => Ok(()),
            Err(error) => Err(river_error(error)),
        }
    }

    /// Ends the lease. Returns `false` and keeps the lease if the table still shows running jobs,
    /// because their end could not be written.
    pub(super) async fn end_lease(&self, database: &Database) -> Result<bool, StoreError> {
        let Some(id) = self.id() else { return Ok(true) };
        let is_written = database.claims(id).await?.is_empty();
        if is_written {
            database.end_lease(id).await?;
        }
        Ok(is_written)
    }

    /// Stops claiming jobs.
    pub(super) fn stop(&self) {
        if let Some(stopper) = &self.stopper {
            stopper.stop();
        }
    }

    /// Stops claiming jobs and stops the running ones, which are requeued.
    pub(super) fn stop_and_cancel(&self) {
        if let Some(stopper) = &self.stopper {
            stopper.stop_and_cancel();
        }
    }

    /// Waits until all jobs have ended and River has written their results.
    pub(super) async fn ended(&self) -> Result<(), StoreError> {
        let mut run = self.run.lock().await;
        let ended = match &mut *run {
            Some(run) => run.wait().await,
            None => return Ok(()),
        };
        *run = None;
        ended.map_err(river_error)
    }
}

/// Renews the lease for as long as it is polled.
async fn renew_lease(database: &Database, client: &str) {
    let Some(lease) = database.lease() else { return pending().await };
    loop {
        sleep(lease / RENEWALS).await;
        let _ = database.renew_lease(client).await; // maintenance detects a lost lease later
    }
}

fn configure(
    builder: ClientBuilder,
    id: &str,
    plan: &Plan,
    environment: &Arc<Environment>,
) -> Result<ClientBuilder, Error> {
    let mut builder = builder
        .id(id)
        .without_job_timeout()
        .job_stuck_threshold(NEVER)
        .fetch_cooldown(FETCH_COOLDOWN)
        // Other processes may work jobs of other kinds in the same queues.
        .allow_unregistered_job_kinds()
        .fetch_only_known_kinds(true)
        .retry_policy(BackoffPolicy(plan.backoff));
    if plan.workers.is_empty() {
        return Ok(builder);
    }
    let mut workers = Workers::new();
    for add in &plan.workers {
        add(&mut workers, environment)?;
    }
    for (name, concurrency) in &plan.queues {
        builder = builder.queue(name, QueueConfig::new(concurrency.unwrap_or(MAX_CONCURRENCY)));
    }
    Ok(builder.workers(workers))
}

struct BackoffPolicy(Backoff);

impl RetryPolicy for BackoffPolicy {
    fn next_retry(&self, job: &JobRow, error: &WorkError, now: Timestamp) -> Duration {
        let failures = u32::try_from(job.errors.len()).unwrap_or(u32::MAX).saturating_add(1);
        self.0.delay(failures).unwrap_or_else(|| DefaultRetryPolicy::default().next_retry(job, error, now))
    }
}
