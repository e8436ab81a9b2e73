//! This crate's queue, as an engine.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex, time::sleep};
use tower_offload::{
    durable::{Builder, Durable, Job},
    tasks::{SqlStore, Tasks},
};

use crate::{
    BoxError,
    database::Pool,
    durable::{Engine, Ran, WORKERS},
};

/// Jobs are enqueued by one without workers, and worked by another one.
#[derive(Debug, Clone)]
pub(crate) struct Ours {
    tasks: Tasks,
    enqueuer: Arc<Mutex<Option<Durable>>>,
    handle: Option<Durable>,
    pool: Pool,
    ran: Ran,
}

#[derive(Debug, Serialize, Deserialize)]
struct Nothing {}

impl Job for Nothing {
    const KIND: &'static str = "nothing";
}

const PATIENCE: Duration = Duration::from_secs(30);

impl Ours {
    pub(crate) async fn new(url: &str, pool: Pool, is_to_drain: bool) -> Result<Self, BoxError> {
        let tasks = Tasks::new(SqlStore::open(url).await?);
        let durable = Durable::builder(&tasks).start().await?;
        let handle = (!is_to_drain).then(|| durable.clone());
        Ok(Self { tasks, enqueuer: Arc::new(Mutex::new(Some(durable))), handle, pool, ran: Ran::new() })
    }

    fn workers(&self) -> Builder {
        let ran = self.ran.clone();
        Durable::builder(&self.tasks).concurrency(WORKERS).async_worker(PATIENCE, move |_: Nothing, _| {
            ran.once();
            async { Ok::<_, Infallible>(()) }
        })
    }
}

impl Engine for Ours {
    async fn enqueue(&self) -> Result<(), BoxError> {
        let durable = self.handle.as_ref().ok_or("this one is to drain")?;
        let _accepted = durable.enqueue(Nothing {}).await?;
        Ok(())
    }

    async fn fill(&self, jobs: usize) -> Result<(), BoxError> {
        const AT_ONCE: usize = 500;
        let enqueuer = self.enqueuer.lock().await.take().ok_or("it was filled before")?;
        for first in (0..jobs).step_by(AT_ONCE) {
            let some = (first..jobs).take(AT_ONCE).map(|_| async { enqueuer.enqueue(Nothing {}).await.map(drop) });
            join_all(some).await.into_iter().collect::<Result<(), _>>()?;
        }
        let _ = enqueuer.drain(PATIENCE).await;
        Ok(())
    }

    /// With that its connections are made, which River has before.
    async fn drain(&self, jobs: usize) -> Result<Duration, BoxError> {
        let (begin, durable) = loop {
            let begin = Instant::now();
            match self.workers().start().await {
                Ok(durable) => break (begin, durable),
                Err(error) if error.is_invalid() => sleep(Duration::from_millis(1)).await, // the enqueuer is not quite gone
                Err(error) => return Err(error.into()),
            }
        };
        self.ran.until_completed(jobs, &self.pool).await?;
        let elapsed = begin.elapsed();
        let _ = durable.drain(PATIENCE).await;
        Ok(elapsed)
    }
}
