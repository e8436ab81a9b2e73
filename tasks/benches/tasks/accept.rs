//! The ways to accept a task.

use std::{
    convert::Infallible,
    time::{Duration, Instant, SystemTime},
};

use tower_offload::Background;
use tower_offload_benches::BoxError;
use tower_offload_tasks::{
    Record, Retention, TaskId, TaskStore, Tasks, Timestamp,
    store::{Op, Process, SqlStore, Written},
};

use crate::{
    Order, Sample,
    database::Pool,
    load::{self, Outcome, closed_loop},
};

const NAME: &str = "bench";

/// Timeout of the shutdown, longer than all tasks take.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

/// Measures tracked tasks: a record is written, then the task runs, then its end is written.
pub(crate) async fn tracked<S: TaskStore + Clone>(store: S, order: &Order) -> Result<Sample, BoxError> {
    // Both have their default options.
    let (tasks, background) = (Tasks::new(store.clone()), Background::default());
    tasks.start().await?;
    let call = || {
        let (tasks, background) = (tasks.clone(), background.clone());
        move || {
            let (tasks, background) = (tasks.clone(), background.clone());
            async move {
                match tasks.track(NAME).spawn_blocking(&background, |_| Ok::<_, Infallible>(())).await {
                    Ok(_) => Ok(Outcome::Done),
                    Err(error) if error.is_full() => Ok(Outcome::Refused),
                    Err(error) => Err(error.into()),
                }
            }
        }
    };
    closed_loop(&call(), order, order.phases.warm_up).await?;
    while tasks.stats().open > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let begin = Instant::now();
    let tally = closed_loop(&call(), order, order.phases.measure).await?;
    background.shutdown(SHUTDOWN_TIMEOUT).await;
    if !tasks.shutdown(SHUTDOWN_TIMEOUT).await.is_clean() {
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

/// Measures the store alone: the record of a task that never runs.
pub(crate) async fn group_commit(url: &str, order: &Order) -> Result<Sample, BoxError> {
    let store = SqlStore::open(url).await?;
    let epoch = store.begin(&Process::new(NAME, now())).await?.epoch;
    let call = move || {
        let store = store.clone();
        async move {
            let record = Record::new(random_id()?, NAME, now());
            match store.write(epoch, &[Op::Accept(Box::new(record))]).await?[..] {
                [Written::Done] => Ok(Outcome::Done),
                ref written => Err(format!("the store returned {written:?}").into()),
            }
        }
    };
    load::measure(&call, order).await
}

const INSERT: &str = "
INSERT INTO tower_offload_task (id, epoch, name, state, attempt, max_attempts, version, created_at)
VALUES ($1, 1, $2, 0, 0, 1, 1, $3)";

/// Measures the same record in the same table, each in a transaction of its own.
pub(crate) async fn commit_each(url: &str, connections: u32, order: &Order) -> Result<Sample, BoxError> {
    SqlStore::open(url).await?.close().await?; // creates the tables
    let pool = Pool::open(url, connections).await?;
    let call = move || {
        let pool = pool.clone();
        async move {
            let (id, created_at) = (*random_id()?.as_bytes(), i64::try_from(now().as_millis())?);
            match &pool {
                Pool::Sqlite(pool) => {
                    sqlx::query(INSERT).bind(&id[..]).bind(NAME).bind(created_at).execute(pool).await?;
                }
                Pool::Postgres(pool) => {
                    sqlx::query(INSERT).bind(&id[..]).bind(NAME).bind(created_at).execute(pool).await?;
                }
            }
            Ok(Outcome::Done)
        }
    };
    load::measure(&call, order).await
}

/// Returns an id with the same layout as the ids of the crate: the time, then random bytes.
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
