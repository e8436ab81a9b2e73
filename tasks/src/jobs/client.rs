use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, HashMap},
    future::pending,
    sync::Arc,
    time::Duration,
};

use riverqueue::{
    Client, ClientBuilder, Error, Event, EventKind, EventReceiver, EventRecvError, JobRow, RetryPolicy, RunHandle,
    Stopper, WorkError, Workers, jiff::Timestamp,
};
use tokio::{
    sync::{Mutex, watch},
    time::{sleep, timeout},
};

use super::{
    Backoff, Job,
    adapter::Adapter,
    database::Database,
    error::river_error,
    events::{self, warn},
    insert::{Arguments, Unwrap, task_id},
    queue::{Environment, Phase},
    running::Claim,
    worker::Worker,
};
use crate::{StoreError, TaskId, lease::RENEWALS};

/// The options of a queue, and its workers.
#[derive(Default)]
pub(super) struct Plan {
    kinds: Vec<&'static str>,
    /// The default queue of each kind.
    default_queues: BTreeMap<&'static str, &'static str>,
    /// Maximum number of concurrent jobs of each queue.
    queues: BTreeMap<String, Concurrency>,
    workers: Vec<AddWorker>,
    /// The same workers by the type of their job, for jobs that run without River.
    by_type: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
    pub(super) backoff: Backoff,
    /// The first option that is not valid.
    error: Option<String>,
}

#[derive(Debug, Clone, Copy)]
enum Concurrency {
    Fixed(usize),
    /// The default, or the number of threads of the workers if that is lower.
    UpTo(Option<usize>),
}

/// Adds a worker to a River client.
type AddWorker =
    Box<dyn Fn(&mut Workers, &Arc<Environment>, &watch::Receiver<Phase>) -> Result<(), Error> + Send + Sync>;

/// The maximum concurrency of a queue that River accepts.
pub(super) const MAX_CONCURRENCY: usize = 10_000;

impl Plan {
    pub(super) fn add_worker<J: Job>(&mut self, worker: Worker<J>) {
        self.kinds.push(J::KIND);
        self.default_queues.insert(J::KIND, J::QUEUE);
        let threads = worker.max_threads;
        match self.queues.entry(J::QUEUE.to_owned()).or_insert(Concurrency::UpTo(Some(0))) {
            Concurrency::Fixed(_) => {}
            // Workers on the same pool are counted twice.
            Concurrency::UpTo(sum) => *sum = sum.zip(threads).map(|(sum, threads)| sum.saturating_add(threads)),
        }
        if worker.timeout.is_zero() {
            self.error.get_or_insert_with(|| {
                format!("the worker of job kind {:?} has a timeout of zero: every attempt would fail", J::KIND)
            });
        }
        if let Err(error) = validate_max_attempts(J::KIND, J::MAX_ATTEMPTS) {
            self.error.get_or_insert(error);
        }
        self.by_type.insert(TypeId::of::<J>(), Box::new(worker.clone()));
        self.workers.push(Box::new(move |workers, environment, phase| {
            let (environment, phase) = (environment.clone(), phase.clone());
            workers.add::<Arguments<J>, _>(Adapter { worker: worker.clone(), environment, phase }).map(drop)
        }));
    }

    pub(super) fn add_queue(&mut self, name: String, concurrency: usize) {
        self.queues.insert(name, Concurrency::Fixed(concurrency));
    }

    /// Sets the concurrency of the other queues. Returns an error for options that River would
    /// reject.
    pub(super) fn validate(&mut self, default_concurrency: usize) -> Result<(), String> {
        self.kinds.sort_unstable();
        if let Some(pair) = self.kinds.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!(
                "job kind {:?} has two workers: remove one, or change the `Job::KIND` of one",
                pair[0]
            ));
        }
        self.kinds.iter().try_for_each(|kind| validate_kind(kind))?;
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let in_range = |concurrency: usize| {
            let message = || format!("concurrency must be between 1 and {MAX_CONCURRENCY}, got {concurrency}");
            (1..=MAX_CONCURRENCY).contains(&concurrency).then_some(concurrency).ok_or_else(message)
        };
        for (name, concurrency) in &mut self.queues {
            validate_queue(name)?;
            *concurrency = Concurrency::Fixed(match *concurrency {
                Concurrency::Fixed(concurrency) => in_range(concurrency)?,
                Concurrency::UpTo(Some(threads)) => in_range(default_concurrency)?.min(threads.max(1)),
                Concurrency::UpTo(None) => in_range(default_concurrency)?,
            });
        }
        Ok(())
    }

    pub(super) fn worker<J: Job>(&self) -> Option<&Worker<J>> {
        self.by_type.get(&TypeId::of::<J>())?.downcast_ref()
    }

    pub(super) fn kinds(&self) -> &[&'static str] {
        &self.kinds
    }

    /// Returns the kinds with their default queues.
    pub(super) fn kinds_with_queues(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.default_queues.iter().map(|(kind, queue)| (*kind, *queue))
    }

    /// Returns the queues with their concurrency.
    pub(super) fn queues(&self) -> impl Iterator<Item = (String, usize)> {
        self.queues.iter().map(|(name, concurrency)| match *concurrency {
            Concurrency::Fixed(concurrency) => (name.clone(), concurrency),
            Concurrency::UpTo(_) => (name.clone(), MAX_CONCURRENCY), // not validated yet
        })
    }
}

/// Checks the kind of a job by River's rule, which every River client applies.
pub(super) fn validate_kind(kind: &str) -> Result<(), String> {
    let is_allowed = |character: char| character.is_ascii_alphanumeric() || "_-[]<>/.·:+".contains(character);
    let is_first = |first: char| first.is_ascii_alphanumeric() || first == '_';
    if kind.len() < MIN_KIND_LEN {
        return Err(format!("job kind {kind:?} is shorter than {MIN_KIND_LEN} bytes: choose a longer `Job::KIND`"));
    }
    if kind.len() > MAX_KIND_LEN {
        return Err(format!(
            "job kind {kind:?} has {} bytes, at most {MAX_KIND_LEN} are allowed: choose a shorter `Job::KIND`",
            kind.len()
        ));
    }
    if kind.starts_with(is_first) && kind.chars().all(is_allowed) {
        return Ok(());
    }
    Err(format!(
        "job kind {kind:?} is not valid: `Job::KIND` must start with a letter, a digit or `_`, \
         and consist of letters, digits and `_-[]<>/.·:+`"
    ))
}

const MIN_KIND_LEN: usize = 2;
const MAX_KIND_LEN: usize = 127;

pub(super) fn validate_max_attempts(kind: &str, attempts: u16) -> Result<(), String> {
    let message = || {
        format!(
            "the maximum number of attempts of job kind {kind:?} must be between 1 and {MAX_ATTEMPTS}, got {attempts}: \
             change `Job::MAX_ATTEMPTS`, or pass another number to `Enqueue::max_attempts`"
        )
    };
    (1..=MAX_ATTEMPTS).contains(&attempts).then_some(()).ok_or_else(message)
}

/// The largest number of attempts that River's table can store.
const MAX_ATTEMPTS: u16 = i16::MAX.unsigned_abs();

/// Checks the name of a queue by River's rule, which every River client applies.
pub(super) fn validate_queue(name: &str) -> Result<(), String> {
    let is_word = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit();
    let mut words = name.split(['_', '|', '-']);
    if name.len() <= MAX_QUEUE_LEN && words.all(|word| !word.is_empty() && word.chars().all(is_word)) {
        return Ok(());
    }
    Err(format!(
        "queue name {name:?} is not valid: use 1 to {MAX_QUEUE_LEN} lower-case letters and digits, \
         and single `-`, `_` or `|` between them"
    ))
}

const MAX_QUEUE_LEN: usize = 64;

/// A River client with a lease. A process that loses its lease replaces its client; updates of the
/// old one have no effect.
pub(super) struct LeasedClient {
    pub(super) river: Client,
    id: Arc<str>,
    /// Handle of the running client. `None` if the client has no workers, and once it has ended.
    run: Mutex<Option<RunHandle>>,
    /// `None` if the client has no workers.
    stopper: Option<Stopper>,
}

/// Maximum time until River listens for jobs and knows its queues.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time for which an error of the start waits until the client has ended.
const MAX_ABANDON_TIME: Duration = Duration::from_secs(1);
/// Threshold after which River considers a running job stuck and starts it again. It must never
/// elapse, because the adapter always returns when the work ends.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Minimum time between two notifications of a queue, and between two claims of a queue.
const FETCH_COOLDOWN: Duration = Duration::from_millis(2);

impl LeasedClient {
    /// Connects a client, migrates the schema, recovers the jobs of crashed processes on SQLite,
    /// and starts the workers.
    pub(super) async fn start(
        environment: &Arc<Environment>,
        plan: &Plan,
        phase: &watch::Receiver<Phase>,
    ) -> Result<Self, StoreError> {
        let database = &environment.database;
        // The prefix marks the clients of this crate for the fence trigger.
        let id = format!("to-{}", TaskId::generate(crate::Timestamp::default()).map_err(StoreError::other)?);
        let configure = |builder| configure(builder, &id, plan, environment, phase).and_then(ClientBuilder::build);
        let river = database.connect(&id, environment, configure).await?;
        let mut client = Self { river, id: id.into(), run: Mutex::new(None), stopper: None };
        if plan.workers.is_empty() {
            return Ok(client);
        }
        match client.start_workers(environment).await {
            Ok(()) => Ok(client),
            Err(error) => {
                let abandoned = tokio::spawn(client.abandon(environment.clone()));
                let _ = timeout(MAX_ABANDON_TIME, abandoned).await; // it continues afterwards
                Err(error)
            }
        }
    }

    /// Begins the lease and starts the workers. On error some of them may have started.
    async fn start_workers(&mut self, environment: &Arc<Environment>) -> Result<(), StoreError> {
        let database = &environment.database;
        database.begin_lease(&self.id, &environment.tasks.writer().process).await?;
        let events = self.river.subscribe(&EVENTS).map_err(river_error)?;
        tokio::spawn(settle(events, environment.clone()));
        let run = self.run.get_mut().insert(self.river.start().map_err(river_error)?);
        self.stopper = Some(run.stopper());
        // Jobs may be running from here on, so the lease must not expire.
        tokio::select! {
            ready = timeout(START_TIMEOUT, run.wait_ready()) => {
                let late = |_| StoreError::unavailable(format!("River was not ready within {START_TIMEOUT:?}"));
                ready.map_err(late)?.map_err(river_error)
            }
            () = renew_lease(database, &self.id) => Ok(()),
        }
    }

    /// Stops a client that has not started, requeues the jobs that it has claimed, and then closes
    /// its connections and ends its lease.
    async fn abandon(self, environment: Arc<Environment>) {
        let database = &environment.database;
        self.stop_and_cancel();
        tokio::select! {
            _ = self.ended() => {} // the caller has an error already
            () = renew_lease(database, &self.id) => {}
        }
        self.close_connections().await;
        if let Err(error) = database.end_lease(&self.id).await {
            warn("failed to end the lease of a River client that did not start", &error);
        }
    }

    /// Returns the id of the client in the database, or `None` if it has no workers and therefore
    /// no lease.
    pub(super) fn id(&self) -> Option<&Arc<str>> {
        self.stopper.as_ref().map(|_| &self.id)
    }

    /// Cancels a job for which cancellation is requested. Returns `false` if it has finished, was
    /// deleted, or was retried since the request was read: it does not change then. Also if another
    /// transaction has locked it, and the next poll finds the request.
    pub(super) async fn cancel(&self, database: &Database, river_id: i64) -> Result<bool, StoreError> {
        let mut attempts = 1;
        loop {
            match database.cancel_if_requested(&self.river, river_id).await? {
                Ok(is_requested) => return Ok(is_requested),
                Err(Error::NotFound(_)) => return Ok(false),
                Err(Error::Database(error)) if database.is_conflict(&error) && attempts < MAX_CANCEL_ATTEMPTS => {
                    attempts += 1;
                }
                Err(error) => return Err(river_error(error)),
            }
        }
    }

    /// Ends the lease.
    pub(super) async fn end_lease(&self, database: &Database) -> Result<(), StoreError> {
        match self.id() {
            Some(id) => database.end_lease(id).await,
            None => Ok(()),
        }
    }

    /// Closes the connections of a client that has ended and was replaced. Otherwise the store
    /// holds them on Postgres, to direct them to another server. On SQLite they are closed with the
    /// client.
    pub(super) async fn close_connections(&self) {
        #[cfg(feature = "postgres")]
        if let Some(database) = self.river.database().as_postgres() {
            database.pool().close().await;
        }
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

/// Number of attempts to cancel a job, if other transactions change it at the same time.
const MAX_CANCEL_ATTEMPTS: usize = 10;

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
    phase: &watch::Receiver<Phase>,
) -> Result<ClientBuilder, Error> {
    let mut builder = builder
        .id(id)
        .without_job_timeout()
        .job_stuck_threshold(NEVER)
        .fetch_cooldown(FETCH_COOLDOWN)
        // Other processes may work jobs of other kinds in the same queues.
        .allow_unregistered_job_kinds()
        .fetch_only_known_kinds(true)
        .retry_policy(BackoffPolicy(plan.backoff))
        .insert_middleware(Unwrap);
    if plan.workers.is_empty() {
        return Ok(builder);
    }
    let mut workers = Workers::new();
    for add in &plan.workers {
        add(&mut workers, environment, phase)?;
    }
    for slots in environment.slots.iter() {
        builder = builder.queue(&slots.queue, slots.config());
    }
    Ok(builder.workers(workers))
}

struct BackoffPolicy(Backoff);

impl RetryPolicy for BackoffPolicy {
    fn next_retry(&self, job: &JobRow, error: &WorkError, now: Timestamp) -> Duration {
        self.0.retry_delay(job, error, now)
    }
}

const EVENTS: [EventKind; 5] = [
    EventKind::JobCompleted,
    EventKind::JobFailed,
    EventKind::JobCancelled,
    EventKind::JobSnoozed,
    EventKind::JobInterrupted,
];

/// Counts and reports the ends that River has written, and notifies the followers of the jobs.
async fn settle(mut written: EventReceiver, environment: Arc<Environment>) {
    loop {
        let event = match written.recv().await {
            Ok(Event::Job(event)) => event,
            Ok(_) => continue,
            Err(EventRecvError::Closed) => return,
            // The checks of the claims find the jobs whose events were dropped.
            Err(_) => {
                environment.tasks.followers().look();
                continue;
            }
        };
        let end = environment.running.written_by_river(&Claim::of_row(&event.job));
        let id = end.as_ref().map(|end| end.id).or_else(|| task_id(&event.job));
        environment.counters.count(event.kind, &event.job, end.as_ref());
        events::ended(event.kind, &event.job, end.as_ref());
        if let Some(id) = id {
            environment.tasks.followers().changed(id);
            environment.ended.send_if_final(id, event.job.state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{validate_kind, validate_queue};

    #[test]
    fn kinds_are_checked_by_rivers_rule() {
        for kind in ["ab", "_a", "mail/send", "a·b", &"x".repeat(127)] {
            assert_eq!(validate_kind(kind), Ok(()), "{kind}");
        }
        for kind in ["", "a", "-ab", "a b", "\u{e9}\u{e9}", &"x".repeat(128)] {
            assert!(validate_kind(kind).is_err_and(|error| error.contains("job kind")), "{kind}");
        }
    }

    #[test]
    fn queue_names_are_checked_by_rivers_rule() {
        for name in ["a", "0", "mail-out", "a|b_c", &"x".repeat(64)] {
            assert_eq!(validate_queue(name), Ok(()), "{name}");
        }
        for name in ["", "Mail", "a b", "-a", "a-", "a--b", "a.b", &"x".repeat(65)] {
            assert!(validate_queue(name).is_err_and(|error| error.contains("queue name")), "{name}");
        }
    }
}
