use std::{fmt, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::sync::mpsc;
use tower_offload::Pool;

use super::{
    Backoff, Durable, Job, StartError, group,
    river::{Database, Plan, Steady, keep_client, keep_lease, keep_records},
    shared::{Lanes, Shared},
    worker::Worker,
};
use crate::{IntoFailure, Progress, SqlStore, Tasks, sync::Mutex};

/// Configures [`Durable`]. Made by [`Durable::builder`].
#[must_use = "a builder does nothing until `start`"]
pub struct Builder {
    tasks: Tasks,
    plan: Plan,
    kinds: Vec<&'static str>,
    concurrency: usize,
}

/// Half of what the blocking pool has threads for.
const DEFAULT_CONCURRENCY: usize = 32;

impl Builder {
    pub(super) fn new(tasks: Tasks) -> Self {
        Self { tasks, plan: Plan::default(), kinds: Vec::new(), concurrency: DEFAULT_CONCURRENCY }
    }

    /// Jobs of one kind are done by a closure on a pool, each attempt within `timeout` of its beginning.
    ///
    /// When that has passed [`Progress::is_cancelled`] turns true, and the attempt has failed: but a closure cannot be ended, so no other attempt
    /// begins in this process until it has ended by itself. Ask between two steps.
    pub fn sync_worker<J, P, F, T, E>(mut self, pool: P, timeout: Duration, work: F) -> Self
    where
        J: Job,
        P: Pool,
        F: Fn(J, Progress) -> Result<T, E> + Send + Sync + 'static,
        T: Serialize,
        E: IntoFailure,
    {
        self.add(Worker::of_closure(pool, timeout, work));
        self
    }

    /// Jobs of one kind are done by a future, each attempt within `timeout`; after that it is dropped.
    pub fn async_worker<J, F, A, T, E>(mut self, timeout: Duration, work: F) -> Self
    where
        J: Job,
        F: Fn(J, Progress) -> A + Send + Sync + 'static,
        A: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize,
        E: IntoFailure,
    {
        self.add(Worker::of_future(timeout, work));
        self
    }

    fn add<J: Job>(&mut self, worker: Worker<J>) {
        self.kinds.push(J::KIND);
        self.plan.add(worker);
    }

    /// Also takes jobs of this queue, at most so many at the same time, 1 to 10 000. For a queue that jobs are [sent to](super::Enqueue::queue) other than
    /// by their kind, or that should have another [concurrency](Self::concurrency).
    pub fn queue(mut self, name: impl Into<String>, concurrency: usize) -> Self {
        self.plan.queues.insert(name.into(), Some(concurrency));
        self
    }

    /// How many jobs of one queue this process takes at the same time, 1 to 10 000. Default 32.
    ///
    /// Those of a sync worker then wait for a thread of its pool, and no other process can have them: where processes share the work this should
    /// be no more than the pool has threads.
    pub fn concurrency(self, concurrency: usize) -> Self {
        Self { concurrency, ..self }
    }

    /// How long a job waits after an attempt that failed. Default: [`Backoff::default`].
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.plan.backoff = backoff;
        self
    }

    /// Opens the queue beside the records, takes back what processes that are gone have left, and begins to work.
    ///
    /// Without workers nothing is worked here, and jobs can be enqueued for other processes.
    ///
    /// # Errors
    ///
    /// If the records are in no [`SqlStore`](crate::SqlStore), if there are two workers for one kind, if these tasks have durable jobs
    /// already, or if the database fails or is of another version.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, jobs may have begun; they are handed back.
    pub async fn start(self) -> Result<Durable, StartError> {
        let Self { tasks, mut plan, mut kinds, concurrency } = self;
        let store = tasks.store::<SqlStore>().cloned().ok_or(StartError::MEMORY)?;
        kinds.sort_unstable();
        if let Some(pair) = kinds.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(StartError::invalid(format!("two workers are for jobs of the kind {:?}", pair[0])));
        }
        plan.check(&kinds, concurrency).map_err(StartError::invalid)?;
        tasks.start().await?;
        let ((plain, of_plain), (unique, of_unique)) =
            (mpsc::channel(group::MAX_WAITING), mpsc::channel(group::MAX_WAITING));
        let shared = Arc::new(Shared::new(tasks, Database::new(store.engine.clone()), plan, Lanes { plain, unique }));
        let steady = Steady::new(shared.database.lease().unwrap_or_default());
        let steady = Arc::new(Mutex::new(steady));
        if !shared.register_cancel_hook(&store) {
            return Err(StartError::TAKEN);
        }
        let durable = Durable::new(shared.clone()); // from here on dropping ends what has begun
        shared.launch().await?;
        tokio::spawn(group::run(of_plain, Arc::downgrade(&shared)));
        tokio::spawn(group::run(of_unique, Arc::downgrade(&shared)));
        tokio::spawn(keep_lease(shared.clone(), steady.clone()));
        tokio::spawn(keep_client(shared.clone()));
        tokio::spawn(keep_records(shared, steady));
        Ok(durable)
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("kinds", &self.kinds)
            .field("queues", &self.plan.queues)
            .field("concurrency", &self.concurrency)
            .field("backoff", &self.plan.backoff)
            .finish_non_exhaustive()
    }
}
