//! The job queues. The jobs do nothing.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use riverqueue::{JobArgs, QUEUE_DEFAULT, QueueConfig, WorkOutcome, Workers};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, mpsc},
    time::sleep,
};
use tower_offload_benches::BoxError;
use tower_offload_tasks::{
    SqlStore, Tasks,
    jobs::{Job, Jobs},
};

use crate::{
    Measure, Order, Sample, Store, WORKERS,
    database::Pool,
    load::{self, Outcome, Tally},
};

/// The number of jobs that are enqueued at once before a drain.
const BATCH: usize = 500;

/// Time between two jobs whose delays are measured, so that the queue is idle.
const PAUSE: Duration = Duration::from_millis(5);

/// Longer than a job or a shutdown takes.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize, Deserialize)]
struct Nothing {}

impl JobArgs for Nothing {
    const KIND: &'static str = "nothing";
}

impl Job for Nothing {
    const KIND: &'static str = "nothing";
}

/// Measures plain River.
pub(crate) async fn river(url: &str, fetch_cooldown: Duration, order: &Order) -> Result<Sample, BoxError> {
    // River's documentation recommends 5 connections for SQLite; 10 are the default of sqlx.
    let connections = if order.scene.store == Store::Sqlite { 5 } else { 10 };
    let pool = Pool::open(url, connections).await?;
    let completed = Completed::new();
    let counter = completed.clone();
    let mut workers = Workers::new();
    workers.add_fn(move |_, _: riverqueue::Job<Nothing>| {
        counter.add();
        async { Ok::<_, Infallible>(WorkOutcome::Complete) }
    })?;
    let queue = QueueConfig::new(WORKERS).with_fetch_cooldown(fetch_cooldown);
    let client = pool.river().await?.id("bench").workers(workers).queue(QUEUE_DEFAULT, queue).build()?;
    if order.scene.measure == Measure::Enqueue {
        let call = move || {
            let client = client.clone();
            async move {
                client.insert(Nothing {}).await?;
                Ok(Outcome::Done)
            }
        };
        return load::measure(&call, order).await;
    }
    let jobs = order.phases.jobs;
    for first in (0..jobs).step_by(BATCH) {
        client.insert_many((first..jobs).take(BATCH).map(|_| Nothing {})).await?;
    }
    let begin = Instant::now();
    let mut running = client.start()?;
    let sample = completed.wait(jobs, begin, &pool).await?;
    running.stop().await?;
    Ok(sample)
}

/// Measures this crate's queue. One instance without workers enqueues the jobs, and another one
/// drains them.
pub(crate) async fn durable(url: &str, order: &Order) -> Result<Sample, BoxError> {
    let pool = Pool::open(url, 1).await?;
    let tasks = Tasks::new(SqlStore::open(url).await?);
    let enqueuer = Jobs::builder(&tasks).start().await?;
    if order.scene.measure == Measure::Enqueue {
        let call = move || {
            let enqueuer = enqueuer.clone();
            async move {
                let _accepted = enqueuer.enqueue(Nothing {}).await?;
                Ok(Outcome::Done)
            }
        };
        return load::measure(&call, order).await;
    }
    if matches!(order.scene.measure, Measure::Begin | Measure::Follow) {
        let _ = enqueuer.shutdown(TIMEOUT).await;
        drop(enqueuer);
        return delays(&tasks, order).await;
    }
    let concurrency = if order.scene.measure == Measure::DrainTwo { 2 } else { WORKERS };
    let jobs = order.phases.jobs;
    for first in (0..jobs).step_by(BATCH) {
        let batch = (first..jobs).take(BATCH).map(|_| async { enqueuer.enqueue(Nothing {}).await.map(drop) });
        join_all(batch).await.into_iter().collect::<Result<(), _>>()?;
    }
    let _ = enqueuer.shutdown(TIMEOUT).await;
    drop(enqueuer);
    let completed = Completed::new();
    // Unlike the drain of plain River, this one includes the time to open the connections.
    let (begin, queue) = loop {
        let (begin, counter) = (Instant::now(), completed.clone());
        let builder = Jobs::builder(&tasks).concurrency(concurrency).worker(TIMEOUT, move |_: Nothing, _| {
            counter.add();
            async { Ok::<_, Infallible>(()) }
        });
        match builder.start().await {
            Ok(queue) => break (begin, queue),
            // The instance that enqueued the jobs is still shutting down.
            Err(error) if error.is_invalid() => sleep(Duration::from_millis(1)).await,
            Err(error) => return Err(error.into()),
        }
    };
    let sample = completed.wait(jobs, begin, &pool).await?;
    let _ = queue.shutdown(TIMEOUT).await;
    Ok(sample)
}

/// Measures how long one job at a time waits for its begin, or its follower for its end.
async fn delays(tasks: &Tasks, order: &Order) -> Result<Sample, BoxError> {
    let (begins, mut begun) = mpsc::unbounded_channel();
    let queue = loop {
        let begins = begins.clone();
        let builder = Jobs::builder(tasks).worker(TIMEOUT, move |_: Nothing, _| {
            let _ = begins.send(Instant::now());
            async { Ok::<_, Infallible>(()) }
        });
        match builder.start().await {
            Ok(queue) => break queue,
            // The instance that created the tables is still shutting down.
            Err(error) if error.is_invalid() => sleep(Duration::from_millis(1)).await,
            Err(error) => return Err(error.into()),
        }
    };
    let mut tally = Tally::new()?;
    let until = Instant::now() + order.phases.warm_up + order.phases.measure;
    let warm_until = Instant::now() + order.phases.warm_up;
    while Instant::now() < until {
        let enqueued = Instant::now();
        let id = queue.enqueue(Nothing {}).await?.id();
        let mut subscription = tasks.subscribe(id).await?.ok_or("the job is unknown")?;
        let begin = begun.recv().await.ok_or("the queue has ended")?;
        while subscription.changed().await?.is_some() {}
        if enqueued >= warm_until {
            let is_begin = order.scene.measure == Measure::Begin;
            tally.add(if is_begin { begin.duration_since(enqueued) } else { begin.elapsed() });
        }
        sleep(PAUSE).await;
    }
    tally.elapsed = order.phases.measure;
    let _ = queue.shutdown(TIMEOUT).await;
    Ok(tally.sample())
}

/// Counts jobs as they run.
#[derive(Debug, Clone)]
struct Completed {
    count: Arc<AtomicUsize>,
    permits: Arc<Semaphore>,
}

impl Completed {
    fn new() -> Self {
        Self { count: Arc::default(), permits: Arc::new(Semaphore::new(0)) }
    }

    fn add(&self) {
        self.count.fetch_add(1, Relaxed);
        self.permits.add_permits(1);
    }

    /// Waits until all jobs are completed in River's table, and returns the rate since `begin`.
    ///
    /// Queries the database only after all jobs have run, so that the queries slow down only the
    /// last milliseconds of the drain.
    async fn wait(&self, jobs: usize, begin: Instant, pool: &Pool) -> Result<Sample, BoxError> {
        const COMPLETED: &str = "SELECT count(*) FROM river_job WHERE state = 'completed'";
        self.permits.acquire_many(u32::try_from(jobs)?).await?.forget();
        while pool.count(COMPLETED).await? < jobs {
            sleep(Duration::from_millis(2)).await;
        }
        let per_second = jobs as f64 / begin.elapsed().as_secs_f64();
        match self.count.load(Relaxed) {
            count if count == jobs => Ok(Sample { per_second, ..Sample::default() }),
            count => Err(format!("{jobs} jobs ran {count} times").into()),
        }
    }
}
