//! Engines that keep jobs in a database and work them off.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use riverqueue::{Client, JobArgs, QUEUE_DEFAULT, QueueConfig, WorkOutcome, Workers};
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, time::sleep};

use crate::{
    BoxError,
    database::Pool,
    load::{Answer, Call},
};

/// One that is measured. A handle: clones are the same engine.
pub(crate) trait Engine: Clone + Send + Sync + 'static {
    /// One job, which does nothing. It is in the database when this returns.
    fn enqueue(&self) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// So many, in whatever way is quick: to be drained, and not measured.
    fn fill(&self, jobs: usize) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// How long it takes, from the start of its workers until the database says of so many that they are completed.
    fn drain(&self, jobs: usize) -> impl Future<Output = Result<Duration, BoxError>> + Send;
}

/// How many jobs an engine may run at once: as many as a `Background` does by default.
pub(crate) const WORKERS: usize = 64;

/// An engine's clients.
#[derive(Debug, Clone)]
pub(crate) struct Enqueue<E>(pub(crate) E);

impl<E: Engine> Call for Enqueue<E> {
    async fn call(&self) -> Result<Answer, BoxError> {
        self.0.enqueue().await.map(|()| Answer::Done)
    }
}

/// Counts jobs as they run. The database is asked only when all have, so that asking takes nothing from the drain but its last
/// milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct Ran {
    count: Arc<AtomicUsize>,
    news: Arc<Semaphore>,
}

impl Ran {
    pub(crate) fn new() -> Self {
        Self { count: Arc::default(), news: Arc::new(Semaphore::new(0)) }
    }

    pub(crate) fn once(&self) {
        self.count.fetch_add(1, Relaxed);
        self.news.add_permits(1);
    }

    /// Until so many are completed in River's table.
    pub(crate) async fn until_completed(&self, jobs: usize, pool: &Pool) -> Result<(), BoxError> {
        const COMPLETED: &str = "SELECT count(*) FROM river_job WHERE state = 'completed'";
        self.news.acquire_many(u32::try_from(jobs)?).await?.forget();
        while pool.count(COMPLETED).await? < jobs {
            sleep(Duration::from_millis(2)).await;
        }
        match self.count.load(Relaxed) {
            count if count == jobs => Ok(()),
            count => Err(format!("{jobs} jobs ran {count} times").into()),
        }
    }
}

/// River without anything of ours.
#[derive(Debug, Clone)]
pub(crate) struct River {
    client: Client,
    pool: Pool,
    ran: Ran,
}

#[derive(Debug, Serialize, Deserialize)]
struct Nothing {}

impl JobArgs for Nothing {
    const KIND: &'static str = "nothing";
}

impl River {
    pub(crate) async fn new(pool: Pool, fetch_cooldown: Duration) -> Result<Self, BoxError> {
        let ran = Ran::new();
        let counts = ran.clone();
        let mut workers = Workers::new();
        workers.add_fn(move |_, _: riverqueue::Job<Nothing>| {
            counts.once();
            async { Ok::<_, Infallible>(WorkOutcome::Complete) }
        })?;
        let queue = QueueConfig::new(WORKERS).with_fetch_cooldown(fetch_cooldown);
        let client = pool.river().await?.id("bench").workers(workers).queue(QUEUE_DEFAULT, queue).build()?;
        Ok(Self { client, pool, ran })
    }
}

impl Engine for River {
    async fn enqueue(&self) -> Result<(), BoxError> {
        self.client.insert(Nothing {}).await?;
        Ok(())
    }

    async fn fill(&self, jobs: usize) -> Result<(), BoxError> {
        const AT_ONCE: usize = 500;
        for first in (0..jobs).step_by(AT_ONCE) {
            let some = (first..jobs).take(AT_ONCE).map(|_| Nothing {});
            self.client.insert_many(some).await?;
        }
        Ok(())
    }

    async fn drain(&self, jobs: usize) -> Result<Duration, BoxError> {
        let begin = Instant::now();
        let mut running = self.client.start()?;
        self.ran.until_completed(jobs, &self.pool).await?;
        let elapsed = begin.elapsed();
        running.stop().await?;
        Ok(elapsed)
    }
}
