//! The job queues.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use riverqueue::{Client, JobArgs, QUEUE_DEFAULT, QueueConfig, WorkOutcome, Workers};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Mutex, Semaphore},
    time::sleep,
};
use tower_offload_benches::BoxError;
use tower_offload_tasks::{
    SqlStore, Tasks,
    jobs::{self, Job},
};

use crate::{
    Measure, Order, Sample, WORKERS,
    database::Pool,
    load::{self, Answer, Call},
};

/// The number of jobs that are enqueued at once before a drain.
const BATCH: usize = 500;

/// Longer than a job or a shutdown takes.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A queue that is measured. Clones are handles of the same queue.
pub(crate) trait Queue: Clone + Send + Sync + 'static {
    /// Enqueues one job, which does nothing. Returns when it is in the database.
    fn enqueue(&self) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Enqueues many jobs in any fast way.
    fn fill(&self, jobs: usize) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Returns the time from the start of the workers until the database says that all jobs are
    /// completed.
    fn drain(&self, jobs: usize) -> impl Future<Output = Result<Duration, BoxError>> + Send;
}

pub(crate) async fn measure(queue: impl Queue, order: &Order) -> Result<Sample, BoxError> {
    if order.scene.measure == Measure::Enqueue {
        return load::measure(&Enqueue(queue), order).await;
    }
    queue.fill(order.phases.jobs).await?;
    let elapsed = queue.drain(order.phases.jobs).await?;
    Ok(Sample { per_second: order.phases.jobs as f64 / elapsed.as_secs_f64(), ..Sample::default() })
}

/// The clients of a queue.
#[derive(Debug, Clone)]
struct Enqueue<Q>(Q);

impl<Q: Queue> Call for Enqueue<Q> {
    async fn call(&self) -> Result<Answer, BoxError> {
        self.0.enqueue().await.map(|()| Answer::Done)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Nothing {}

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

    /// Waits until all jobs are completed in River's table. The database is asked only after all
    /// jobs have run, so that asking slows only the last milliseconds of the drain.
    async fn wait(&self, jobs: usize, pool: &Pool) -> Result<(), BoxError> {
        const COMPLETED: &str = "SELECT count(*) FROM river_job WHERE state = 'completed'";
        self.permits.acquire_many(u32::try_from(jobs)?).await?.forget();
        while pool.count(COMPLETED).await? < jobs {
            sleep(Duration::from_millis(2)).await;
        }
        match self.count.load(Relaxed) {
            count if count == jobs => Ok(()),
            count => Err(format!("{jobs} jobs ran {count} times").into()),
        }
    }
}

/// Plain River.
#[derive(Debug, Clone)]
pub(crate) struct River {
    client: Client,
    pool: Pool,
    completed: Completed,
}

impl JobArgs for Nothing {
    const KIND: &'static str = "nothing";
}

impl River {
    pub(crate) async fn new(pool: Pool, fetch_cooldown: Duration) -> Result<Self, BoxError> {
        let completed = Completed::new();
        let counter = completed.clone();
        let mut workers = Workers::new();
        workers.add_fn(move |_, _: riverqueue::Job<Nothing>| {
            counter.add();
            async { Ok::<_, Infallible>(WorkOutcome::Complete) }
        })?;
        let queue = QueueConfig::new(WORKERS).with_fetch_cooldown(fetch_cooldown);
        let client = pool.river().await?.id("bench").workers(workers).queue(QUEUE_DEFAULT, queue).build()?;
        Ok(Self { client, pool, completed })
    }
}

impl Queue for River {
    async fn enqueue(&self) -> Result<(), BoxError> {
        self.client.insert(Nothing {}).await?;
        Ok(())
    }

    async fn fill(&self, jobs: usize) -> Result<(), BoxError> {
        for first in (0..jobs).step_by(BATCH) {
            self.client.insert_many((first..jobs).take(BATCH).map(|_| Nothing {})).await?;
        }
        Ok(())
    }

    async fn drain(&self, jobs: usize) -> Result<Duration, BoxError> {
        let begin = Instant::now();
        let mut running = self.client.start()?;
        self.completed.wait(jobs, &self.pool).await?;
        let elapsed = begin.elapsed();
        running.stop().await?;
        Ok(elapsed)
    }
}

/// This crate's queue. One instance without workers enqueues the jobs, and another one drains them.
#[derive(Debug, Clone)]
pub(crate) struct Durable {
    tasks: Tasks,
    enqueuer: Arc<Mutex<Option<jobs::Durable>>>,
    /// Present unless the queue is drained, because the enqueuer must end before a drain.
    handle: Option<jobs::Durable>,
    pool: Pool,
    completed: Completed,
}

impl Job for Nothing {
    const KIND: &'static str = "nothing";
}

impl Durable {
    pub(crate) async fn new(url: &str, pool: Pool, measure: Measure) -> Result<Self, BoxError> {
        let tasks = Tasks::new(SqlStore::open(url).await?);
        let enqueuer = jobs::Durable::builder(&tasks).start().await?;
        let handle = (measure != Measure::Drain).then(|| enqueuer.clone());
        Ok(Self { tasks, enqueuer: Arc::new(Mutex::new(Some(enqueuer))), handle, pool, completed: Completed::new() })
    }
}

impl Queue for Durable {
    async fn enqueue(&self) -> Result<(), BoxError> {
        let handle = self.handle.as_ref().ok_or("the queue is to be drained")?;
        let _accepted = handle.enqueue(Nothing {}).await?;
        Ok(())
    }

    async fn fill(&self, jobs: usize) -> Result<(), BoxError> {
        let enqueuer = self.enqueuer.lock().await.take().ok_or("the queue was filled before")?;
        for first in (0..jobs).step_by(BATCH) {
            let batch = (first..jobs).take(BATCH).map(|_| async { enqueuer.enqueue(Nothing {}).await.map(drop) });
            join_all(batch).await.into_iter().collect::<Result<(), _>>()?;
        }
        let _ = enqueuer.drain(TIMEOUT).await;
        Ok(())
    }

    /// Includes the time to open its connections, which River has open before.
    async fn drain(&self, jobs: usize) -> Result<Duration, BoxError> {
        let (begin, queue) = loop {
            let (begin, completed) = (Instant::now(), self.completed.clone());
            let builder = jobs::Durable::builder(&self.tasks).concurrency(WORKERS);
            let builder = builder.async_worker(TIMEOUT, move |_: Nothing, _| {
                completed.add();
                async { Ok::<_, Infallible>(()) }
            });
            match builder.start().await {
                Ok(queue) => break (begin, queue),
                // The enqueuer is still ending.
                Err(error) if error.is_invalid() => sleep(Duration::from_millis(1)).await,
                Err(error) => return Err(error.into()),
            }
        };
        self.completed.wait(jobs, &self.pool).await?;
        let elapsed = begin.elapsed();
        let _ = queue.drain(TIMEOUT).await;
        Ok(elapsed)
    }
}
