//! The ways to have a task accepted.

use std::{
    convert::Infallible,
    time::{Duration, Instant, SystemTime},
};

use tower_offload::{
    Background,
    tasks::{
        Record, Retention, TaskId, TaskStore, Tasks, Timestamp,
        store::{Epoch, Op, Process, SqlStore, Written},
    },
};

use crate::{
    BoxError,
    database::Pool,
    load::{Answer, Call},
};

/// What is promised: a record, then work that runs, and its end in the record.
#[derive(Debug, Clone)]
pub(crate) struct Tracked<S> {
    store: S,
    tasks: Tasks,
    background: Background,
}

/// Longer than it takes, so that nothing is left.
const PATIENCE: Duration = Duration::from_secs(60);

impl<S: TaskStore + Clone> Tracked<S> {
    /// Store, tasks and background with their defaults.
    pub(crate) async fn new(store: S) -> Result<Self, BoxError> {
        let tasks = Tasks::new(store.clone());
        tasks.start().await?;
        Ok(Self { store, tasks, background: Background::default() })
    }

    /// Until every task that was accepted has run, and its end is written.
    pub(crate) async fn settle(&self) -> Result<(), BoxError> {
        self.background.drain(PATIENCE).await;
        let report = self.tasks.drain(PATIENCE).await;
        if report.is_clean() { Ok(()) } else { Err("tasks were accepted whose end was not written".into()) }
    }

    /// Without closing anything.
    pub(crate) async fn until_idle(&self) {
        while self.tasks.stats().open > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// What it takes a record to go, in microseconds: tasks have the store do that every 10 s, which is no part of a run. `None` if
    /// none had to.
    pub(crate) async fn evict(&self) -> Result<Option<f64>, BoxError> {
        let (begin, mut evicted) = (Instant::now(), 0);
        loop {
            let swept = self.store.sweep(now(), &Retention::default()).await?;
            evicted += swept.evicted;
            if !swept.more {
                let elapsed = begin.elapsed().as_secs_f64() * 1e6;
                return Ok((evicted > 0).then(|| elapsed / evicted as f64));
            }
        }
    }
}

impl<S: TaskStore + Clone> Call for Tracked<S> {
    async fn call(&self) -> Result<Answer, BoxError> {
        match self.tasks.track(NAME).run(&self.background, |_| Ok::<_, Infallible>(())).await {
            Ok(_) => Ok(Answer::Done),
            Err(refused) if refused.is_full() => Ok(Answer::Refused),
            Err(refused) => Err(refused.into()),
        }
    }
}

const NAME: &str = "bench";

/// The store alone: the record of a task that never runs.
#[derive(Debug, Clone)]
pub(crate) struct GroupCommit {
    store: SqlStore,
    epoch: Epoch,
}

impl GroupCommit {
    pub(crate) async fn new(url: &str) -> Result<Self, BoxError> {
        let store = SqlStore::open(url).await?;
        let lease = store.begin(&Process::new("bench", now())).await?;
        Ok(Self { store, epoch: lease.epoch })
    }
}

impl Call for GroupCommit {
    async fn call(&self) -> Result<Answer, BoxError> {
        let record = Record::new(random_id()?, NAME, now());
        match self.store.write(self.epoch, &[Op::Accept(Box::new(record))]).await?[..] {
            [Written::Done] => Ok(Answer::Done),
            ref written => Err(format!("the store said {written:?}").into()),
        }
    }
}

/// The same record into the same table, each by a transaction of its own.
#[derive(Debug, Clone)]
pub(crate) struct CommitEach(Pool);

impl CommitEach {
    pub(crate) async fn new(url: &str, connections: u32) -> Result<Self, BoxError> {
        SqlStore::open(url).await?.close().await?; // makes the tables
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
            Pool::Postgres(pool) => {
                sqlx::query(INSERT).bind(&id[..]).bind(NAME).bind(created_at).execute(pool).await?;
            }
            Pool::Sqlite(pool) => {
                sqlx::query(INSERT).bind(&id[..]).bind(NAME).bind(created_at).execute(pool).await?;
            }
        }
        Ok(Answer::Done)
    }
}

/// As one of the crate is: by time, then at random.
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
