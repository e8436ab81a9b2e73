use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, HashMap},
    sync::Weak,
    time::Duration,
};

use riverqueue::{
    Client as River, ClientBuilder, DefaultRetryPolicy, JobRow, QueueConfig, RetryPolicy, RunHandle, Stopper,
    WorkError, Workers,
    jiff::Timestamp,
    migrate::SqliteMigrator,
    sqlx::{
        self,
        postgres::PgPoolOptions,
        sqlite::{SqlitePoolOptions, SqliteSynchronous},
    },
};
use tokio::{
    sync::Mutex,
    time::{sleep, timeout},
};

use super::{Database, adapter::Adapter, arguments::Arguments, database::failure};
use crate::{
    StoreError, TaskId,
    jobs::{Backoff, Job, shared::Shared, worker::Worker},
    store::sql::{Engine, postgres::RENEWALS, sqlite::connection::write_options, store_error},
};

/// One client of River's, from its start to its end. A process that has lost its lease goes on with another one: what the first one still
/// says is not heard.
pub(in crate::jobs) struct Client {
    pub(in crate::jobs) river: River,
    id: String,
    /// `None` if there are no workers, and once it has ended.
    run: Mutex<Option<RunHandle>>,
    stopper: Option<Stopper>,
}

/// What it works, and how.
#[derive(Default)]
pub(in crate::jobs) struct Plan {
    pub(in crate::jobs) queues: BTreeMap<String, Option<usize>>,
    workers: Vec<Add>,
    /// The same workers by the type of their jobs, for jobs that are done without River.
    here: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
    pub(in crate::jobs) backoff: Backoff,
}

/// Adds the worker of one kind.
type Add = Box<dyn Fn(&mut Workers, &Weak<Shared>) -> Result<(), riverqueue::Error> + Send + Sync>;

impl Plan {
    pub(in crate::jobs) fn add<J: Job>(&mut self, worker: Worker<J>) {
        self.queues.entry(J::QUEUE.to_owned()).or_default();
        self.here.insert(TypeId::of::<J>(), Box::new(worker.clone()));
        self.workers.push(Box::new(move |workers, shared| {
            let adapter = Adapter { worker: worker.clone(), shared: shared.clone() };
            workers.add::<Arguments<J>, _>(adapter).map(drop)
        }));
    }

    /// Why River would not have it, if so; with the concurrency of queues that have none of their own.
    pub(in crate::jobs) fn check(&mut self, kinds: &[&str], concurrency: usize) -> Result<(), String> {
        if let Some(kind) = kinds.iter().find(|kind| !is_name(kind, "-_./:", 128)) {
            return Err(format!("{kind:?} is no name for a kind of jobs: see `Job::KIND`"));
        }
        for (name, of_queue) in &mut self.queues {
            let concurrency = *of_queue.get_or_insert(concurrency);
            if !is_name(name, "-_", 64) {
                return Err(format!(
                    "{name:?} is no name for a queue: it is up to 64 letters, digits, and - or _ between them"
                ));
            }
            if !(1..=MOST_AT_ONCE).contains(&concurrency) {
                return Err(format!(
                    "{concurrency} jobs at the same time are none or too many: it is 1 to {MOST_AT_ONCE}"
                ));
            }
        }
        Ok(())
    }

    pub(in crate::jobs) fn worker<J: Job>(&self) -> Option<&Worker<J>> {
        self.here.get(&TypeId::of::<J>())?.downcast_ref()
    }
}

/// As River has names: these between letters and digits.
fn is_name(name: &str, between: &str, at_most: usize) -> bool {
    let ends_well = |end: Option<char>| end.is_some_and(|end| end.is_ascii_alphanumeric());
    let is_allowed = |character: char| character.is_ascii_alphanumeric() || between.contains(character);
    name.len() <= at_most
        && ends_well(name.chars().next())
        && ends_well(name.chars().last())
        && name.chars().all(is_allowed)
}

const MOST_AT_ONCE: usize = 10_000;
/// For its claims, completions and its listener. Records are written by connections of the store.
const CONNECTIONS: u32 = 4;
/// To listen for jobs, and to find its queues: two ways to the database and back.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// A worker of ours always ends by itself, and until then its job must not be handed out once more.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// After a claim the next one comes no sooner: as many short jobs as finish meanwhile share one. River's own 100 ms would bound a drain to some
/// hundreds a second, 10 ms to 2200, and at 1 ms a claim is for a job or two.
const FETCH_COOLDOWN: Duration = Duration::from_millis(2);

impl Client {
    /// Connects, brings the tables up to date, takes back what processes that are gone have left, and begins to work.
    pub(in crate::jobs) async fn launch(
        database: &Database,
        plan: &Plan,
        name: &str,
        shared: &Weak<Shared>,
    ) -> Result<Self, StoreError> {
        let id = format!("to-{}", TaskId::generate(crate::Timestamp::default()).map_err(StoreError::other)?);
        let builder = connect(database, &id, plan).await?;
        let river = configure(builder, &id, plan, shared).and_then(ClientBuilder::build).map_err(failure)?;
        if plan.workers.is_empty() {
            return Ok(Self { river, id, run: Mutex::new(None), stopper: None });
        }
        database.begin_client(&id, name).await?;
        let mut run = river.start().map_err(failure)?;
        // Its jobs may run by now.
        tokio::select! {
            ready = timeout(START_TIMEOUT, run.wait_ready()) => {
                let late = |_| StoreError::unavailable(format!("River was not ready after {START_TIMEOUT:?}"));
                ready.map_err(late)?.map_err(failure)?;
            }
            () = renew(database, &id) => {}
        }
        let stopper = run.stopper();
        Ok(Self { river, id, run: Mutex::new(Some(run)), stopper: Some(stopper) })
    }

    /// As the database knows it.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// As [`id`](Self::id); `None` if it works nothing, and so has no lease.
    pub(super) fn leased_id(&self) -> Option<&str> {
        self.stopper.as_ref().map(|_| &*self.id)
    }

    /// Asks to cancel a job. One that is gone, or over, stays so.
    pub(in crate::jobs) async fn cancel(&self, river_id: i64) -> Result<(), StoreError> {
        match self.river.jobs().cancel(river_id).await {
            Ok(_) | Err(riverqueue::Error::NotFound(_)) => Ok(()),
            Err(error) => Err(failure(error)),
        }
    }

    /// Gives the lease back. `false`, and it is kept until it runs out, if jobs stand there as running: how they ended could not be written.
    pub(in crate::jobs) async fn leave(&self, database: &Database) -> Result<bool, StoreError> {
        let Some(id) = self.leased_id() else { return Ok(true) };
        let is_written = database.claims(id).await?.is_empty();
        if is_written {
            database.end_client(id).await?;
        }
        Ok(is_written)
    }

    /// Takes no more jobs.
    pub(in crate::jobs) fn stop(&self) {
        if let Some(stopper) = &self.stopper {
            stopper.stop();
        }
    }

    /// Also asks those that run to end, and hands them back.
    pub(in crate::jobs) fn stop_and_cancel(&self) {
        if let Some(stopper) = &self.stopper {
            stopper.stop_and_cancel();
        }
    }

    /// Returns when everything has ended and is written.
    pub(in crate::jobs) async fn ended(&self) -> Result<(), StoreError> {
        let mut run = self.run.lock().await;
        let ended = match &mut *run {
            Some(run) => run.wait().await,
            None => return Ok(()),
        };
        *run = None;
        ended.map_err(failure)
    }
}

/// Who writes, for the fence; and as the store does, a process that hangs within a transaction must not keep what it has locked.
const PREPARE: &str = "
SELECT set_config('tower_offload.client', $1, false), set_config('idle_in_transaction_session_timeout', '5s', false)";

/// Renews the lease, for as long as it is polled.
async fn renew(database: &Database, id: &str) {
    let Some(lease) = database.lease() else { return std::future::pending().await };
    loop {
        sleep(lease / RENEWALS).await;
        let _ = database.renew_client(id).await; // whoever waits for the start is told of it then
    }
}

async fn connect(database: &Database, id: &str, plan: &Plan) -> Result<ClientBuilder, StoreError> {
    match &database.engine {
        Engine::Postgres(postgres) => {
            let client = id.to_owned();
            let pool = PgPoolOptions::new().max_connections(2 * CONNECTIONS).after_connect(move |connection, _| {
                let client = client.clone();
                Box::pin(async move { sqlx::query(PREPARE).bind(client).execute(connection).await.map(drop) })
            });
            let pool =
                pool.connect_with((*postgres.connections.pool.connect_options()).clone()).await.map_err(store_error)?;
            database.migrate(&pool).await?;
            Ok(River::builder(pool))
        }
        Engine::Sqlite(sqlite) => {
            // A power cut may lose what River wrote last, so that a job is done twice, but not that there is one.
            let options = write_options(&sqlite.writer.lock().await.path).synchronous(SqliteSynchronous::Normal);
            let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS).idle_timeout(None).max_lifetime(None);
            let pool = pool.connect_with(options).await.map_err(store_error)?;
            SqliteMigrator::new(pool.clone()).migrate_up().await.map_err(StoreError::other)?;
            database.install().await?;
            database.recover(true, plan.backoff).await?;
            Ok(River::builder(pool))
        }
    }
}

fn configure(
    builder: ClientBuilder,
    id: &str,
    plan: &Plan,
    shared: &Weak<Shared>,
) -> Result<ClientBuilder, riverqueue::Error> {
    let mut builder = builder
        .id(id)
        .without_job_timeout()
        .job_stuck_threshold(NEVER)
        .fetch_cooldown(FETCH_COOLDOWN)
        // Some kinds are worked elsewhere, perhaps in another language.
        .allow_unregistered_job_kinds()
        .fetch_only_known_kinds(true)
        .retry_policy(Retry(plan.backoff));
    if plan.workers.is_empty() {
        return Ok(builder);
    }
    let mut workers = Workers::new();
    for add in &plan.workers {
        add(&mut workers, shared)?;
    }
    for (name, concurrency) in &plan.queues {
        builder = builder.queue(name, QueueConfig::new(concurrency.unwrap_or(MOST_AT_ONCE)));
    }
    Ok(builder.workers(workers))
}

struct Retry(Backoff);

impl RetryPolicy for Retry {
    fn next_retry(&self, job: &JobRow, error: &WorkError, now: Timestamp) -> Duration {
        let failures = u32::try_from(job.errors.len()).unwrap_or(u32::MAX).saturating_add(1);
        self.0.delay(failures).unwrap_or_else(|| DefaultRetryPolicy::default().next_retry(job, error, now))
    }
}
