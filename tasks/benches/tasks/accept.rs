//! The ways to accept a task.

use std::{
    convert::Infallible,
    time::{Duration, Instant, SystemTime},
};

use tower_offload::Background;
use tower_offload_benches::BoxError;
use tower_offload_tasks::{
    Record, Retention, TaskId, TaskStore, Tasks, Timestamp,
    store::{Epoch, Op, Process, SqlStore, Written},
};

use crate::{
    Order, Sample,
    database::Pool,
    load::{self, Answer, Call, closed_loop},
};

const NAME: &str = "bench";

/// Longer than all tasks take, so that none is left.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

/// Measures tracked tasks: a record is written, then the task runs, then its end is written.
pub(crate) async fn tracked<S: TaskStore + Clone>(store: S, order: &Order) -> Result<Sample, BoxError> {
    // All with their defaults.
    let tracked = Tracked { tasks: Tasks::new(store.clone()), background: Background::default() };
    let Tracked { tasks, background } = &tracked;
    tasks.start().await?;
    closed_loop(&tracked, order, order.phases.warm_up).await?;
    while tasks.stats().open > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let begin = Instant::now();
    let tally: load::Tally = closed_loop(&tracked, order, order.phases.measure).await?;
    background.shutdown(SHUTDOWN_TIMEOUT).await;
    if !tasks.drain(SHUTDOWN_TIMEOUT).await.is_clean() {
        return Err("the end of some accepted tasks was not written".into());
    }
    let settled_per_second = Some(tally.done as f64 / begin.elapsed().as_secs_f64());
    Ok(Sample { settled_per_second, evict_us: evict(&store).await?, ..tally.sample() })
}

/// Returns the time to evict one record, in microseconds, or `None` if there are no records to
/// evict.
///
/// The tasks sweep the store every 10 s, which is not part of a run.
async fn evict(store: &impl TaskStore) -> Result<Option<f64>, BoxError> {
    let (begin, mut evicted) = (Instant::now(), 0);
    loop {
        let swept = store.sweep(now(), &Retention::default()).await?;
        evicted += swept.evicted;
        if !swept.more {
            let elapsed = begin.elapsed().as_secs_f64() * 1e6;
            return Ok((evicted > 0).then(|| elapsed / evicted as f64));
        }
    }
}

#[derive(Debug, Clone)]
struct Tracked {
    tasks: Tasks,
    background: Background,
}

impl Call for Tracked {
    async fn call(&self) -> Result<Answer, BoxError> {
        match self.tasks.track(NAME).run(&self.background, |_| Ok::<_, Infallible>(())).await {
            Ok(_) => Ok(Answer::Done),
            Err(error) if error.is_full() => Ok(Answer::Refused),
            Err(error) => Err(error.into()),
        }
    }
}

/// Writes the record of a task that never runs, by the store alone.
#[derive(Debug, Clone)]
pub(crate) struct GroupCommit {
    store: SqlStore,
    epoch: Epoch,
}

impl GroupCommit {
    pub(crate) async fn new(url: &str) -> Result<Self, BoxError> {
        let store = SqlStore::open(url).await?;
        let lease = store.begin(&Process::new(NAME, now())).await?;
        Ok(Self { store, epoch: lease.epoch })
    }
}

impl Call for GroupCommit {
    async fn call(&self) -> Result<Answer, BoxError> {
        let record = Record::new(random_id()?, NAME, now());
        match self.store.write(self.epoch, &[Op::Accept(Box::new(record))]).await?[..] {
            [Written::Done] => Ok(Answer::Done),
            ref written => Err(format!("the store returned {written:?}").into()),
        }
    }
}

/// Writes the same record into the same table, each in a transaction of its own.
#[derive(Debug, Clone)]
pub(crate) struct CommitEach(Pool);

impl CommitEach {
    pub(crate) async fn new(url: &str, connections: u32) -> Result<Self, BoxError> {
        SqlStore::open(url).await?.close().await?; // creates the tables
        Ok(Self(Pool::open(url, connections).await?))
    }
}

const INSERT: &str = "
INSERT INTO tower_offload_task (id, epoch, name, state, attempt, max_attempts, version, created_at)
VALUES ($1, 1, $2, 0, 0, 1, 1, $3)";

impl Call for CommitEach {
    async fn call(&self) -> Result<Answer, BoxError> {
        let (id, created_at) = (*random_id()?.as_bytes(), i64::try_from(now().as_millis())?);
        match &self.0 {
            Pool::Sqlite(pool) => {
                _ = sqlx::query(INSERT).bind(&id[..]).bind(NAME).bind(created_at).execute(pool).await?
            }
            Pool::Postgres(pool) => {
                _ = sqlx::query(INSERT).bind(&id[..]).bind(NAME).bind(created_at).execute(pool).await?
            }
        }
        Ok(Answer::Done)
    }
}

/// Returns an id with the layout of the crate's own: the time, then random bytes.
fn random_id() -> Result<TaskId, BoxError> {
    let mut bytes = [0; TaskId::BYTES];
    let (time, random) = bytes.split_at_mut(6);
    time.copy_from_slice(&now().as_millis().to_be_bytes()[2..]);
    getrandom::fill(random)?;
    Ok(TaskId::from_bytes(bytes))
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
