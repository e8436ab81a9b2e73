//! One run: a variant with so many clients, in a process of its own. Both sides of it.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::runtime;
use tower_offload::tasks::{MemoryStore, TaskStore, store::SqlStore};

use crate::{
    BoxError,
    accept::{CommitEach, GroupCommit, Tracked},
    alarm, child,
    database::Pool,
    durable::{Engine, Enqueue, River},
    fresh::{self, Fresh},
    load::{Call, Tally, closed_loop},
    ours::Ours,
    plan::{Measure, Phases, Store, THREADS},
    rows::Sample,
    variants::{self, Variant, Way},
};

/// A run that takes longer has lost a task.
const PATIENCE_SECONDS: u32 = 180;

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    variant: String,
    measure: Measure,
    clients: usize,
    phases: Phases,
    database: String,
}

/// The parent's side. It sleeps meanwhile.
pub(crate) fn run(
    variant: &Variant,
    (measure, clients): (Measure, usize),
    phases: Phases,
    server: Option<&str>,
) -> Result<Sample, BoxError> {
    let fresh = Fresh::new(variant.store, server)?;
    let (database, name) = (fresh.name().to_owned(), variant.name.to_owned());
    let order = Order { variant: name, measure, clients, phases, database };
    child::run(&order, format_args!("{} with {clients} client(s): {measure}", variant.name))
}

/// The child's side.
pub(crate) fn obey(order: &str) -> Result<(), BoxError> {
    let order: Order = serde_json::from_str(order)?;
    alarm::end_after(PATIENCE_SECONDS);
    let runtime = runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let sample = runtime.block_on(measure(&order))?;
    child::answer(&sample)
}

async fn measure(order: &Order) -> Result<Sample, BoxError> {
    let variant = variants::named(&order.variant).ok_or_else(|| format!("there is no variant `{}`", order.variant))?;
    let url = fresh::url(variant.store, &order.database)?;
    match variant.way {
        Way::CommitEach { connections } => accept(&CommitEach::new(&url, connections).await?, order).await,
        Way::Durable => {
            let pool = Pool::open(&url, 1).await?;
            durable(Ours::new(&url, pool, order.measure == Measure::Drain).await?, order).await
        }
        Way::GroupCommit => accept(&GroupCommit::new(&url).await?, order).await,
        Way::River { fetch_cooldown } => {
            let pool = Pool::open(&url, connections_of_river(variant.store)).await?;
            durable(River::new(pool, fetch_cooldown).await?, order).await
        }
        Way::Tasks if variant.store == Store::Memory => tracked(MemoryStore::new(), order).await,
        Way::Tasks => tracked(SqlStore::open(&url).await?, order).await,
    }
}

/// As its documentation has it for SQLite; for Postgres it says nothing, and that is what sqlx does then.
fn connections_of_river(store: Store) -> u32 {
    if store == Store::Sqlite { 5 } else { 10 }
}

async fn accept(call: &impl Call, order: &Order) -> Result<Sample, BoxError> {
    closed_loop(call, order.clients, order.phases.warm_up, &order.phases).await?;
    let tally = closed_loop(call, order.clients, order.phases.measure, &order.phases).await?;
    Ok(sample(&tally))
}

async fn tracked<S: TaskStore + Clone>(store: S, order: &Order) -> Result<Sample, BoxError> {
    let tracked = Tracked::new(store).await?;
    closed_loop(&tracked, order.clients, order.phases.warm_up, &order.phases).await?;
    tracked.until_idle().await;
    let begin = Instant::now();
    let tally = closed_loop(&tracked, order.clients, order.phases.measure, &order.phases).await?;
    tracked.settle().await?;
    let settled_per_second = Some(tally.done as f64 / begin.elapsed().as_secs_f64());
    Ok(Sample { settled_per_second, evict_us: tracked.evict().await?, ..sample(&tally) })
}

async fn durable(engine: impl Engine, order: &Order) -> Result<Sample, BoxError> {
    match order.measure {
        Measure::Drain => {
            engine.fill(order.phases.jobs).await?;
            let elapsed = engine.drain(order.phases.jobs).await?;
            Ok(Sample { per_second: order.phases.jobs as f64 / elapsed.as_secs_f64(), ..Sample::default() })
        }
        Measure::Accept | Measure::Enqueue => accept(&Enqueue(engine), order).await,
    }
}

fn sample(tally: &Tally) -> Sample {
    Sample {
        per_second: tally.per_second(),
        p50_us: Some(tally.quantile_us(0.5)),
        p99_us: Some(tally.quantile_us(0.99)),
        refused: tally.refused,
        ..Sample::default()
    }
}
