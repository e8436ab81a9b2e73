//! Measures the cost of accepting a task, for each store, and of enqueueing and processing a
//! durable job.
// Benchmarks measure real time, so the ban on the standard library's clock does not apply.
#![allow(clippy::disallowed_types)]

mod accept;
mod database;
mod jobs;
mod load;
mod report;

use std::{env, fmt, process::ExitCode, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::runtime;
use tower_offload_benches::{BoxError, Options, Row, Unit, child, interleave};
use tower_offload_tasks::{MemoryStore, store::SqlStore};

use self::database::Fresh;

/// Number of worker threads of the runtime.
const THREADS: usize = 2;

/// Numbers of clients that call at once. A single client pays for a whole commit; many clients can
/// share one.
const CLIENTS: [usize; 2] = [1, 64];

/// The maximum number of jobs that an engine runs at once: the default of a `Background`.
const WORKERS: usize = 64;

/// Timeout of a run. A run that takes longer has lost a task.
const TIMEOUT: Duration = Duration::from_secs(180);

/// The event that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Measure {
    /// Tasks that were accepted.
    Accept,
    /// Durable jobs that were enqueued.
    Enqueue,
    /// Durable jobs that were completed.
    Drain,
    /// Durable jobs that were completed, two at once.
    DrainTwo,
    /// The time from the enqueueing of a durable job to the begin of its work. The queue is empty.
    Begin,
    /// The time from the end of the work of a durable job to its follower.
    Follow,
}

impl Measure {
    fn is_drain(self) -> bool {
        matches!(self, Self::Drain | Self::DrainTwo)
    }

    /// Returns `true` if only this crate's queue takes part.
    fn is_own(self) -> bool {
        matches!(self, Self::DrainTwo | Self::Begin | Self::Follow)
    }
}

/// The store of the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Store {
    Memory,
    Sqlite,
    Postgres,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Scene {
    measure: Measure,
    clients: usize,
    store: Store,
}

/// The figures of one run.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Sample {
    per_second: f64,
    /// A drain has no latencies.
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    /// Calls that were rejected because there was no room. They do not count in the rate.
    refused: u64,
    /// Rate of tasks whose final record is stored, measured until all final records are stored.
    settled_per_second: Option<f64>,
    /// The time to evict one record.
    evict_us: Option<f64>,
}

/// The lengths of the parts of one run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Phases {
    warm_up: Duration,
    measure: Duration,
    /// The maximum number of calls of all clients, so that a run writes a bounded amount.
    max_calls: usize,
    /// The number of jobs to drain.
    jobs: usize,
}

/// The run that a child process performs.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    variant: String,
    scene: Scene,
    phases: Phases,
    database: String,
}

/// One way to accept a task or to enqueue a job.
#[derive(Debug, Clone, Copy)]
struct Variant {
    name: &'static str,
    store: Store,
    engine: Engine,
    /// The variant whose rate is the divisor of the ratio.
    base: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum Engine {
    /// A tracked task, which runs and ends.
    Tasks,
    /// The store alone, with all waiting records in one transaction.
    GroupCommit,
    /// An `INSERT` of the record in a transaction of its own.
    CommitEach { connections: u32 },
    /// This crate's job queue: a job and its record in one transaction.
    Durable,
    /// Plain River.
    River { fetch_cooldown: Duration },
}

const fn variant(name: &'static str, store: Store, engine: Engine, base: &'static str) -> Variant {
    Variant { name, store, engine, base }
}

const RIVER: Engine = Engine::River { fetch_cooldown: riverqueue::FETCH_COOLDOWN_DEFAULT };

/// River that fetches without a pause. By default it fetches ten times per second, at most one job
/// per idle worker, and a drain of jobs that do nothing would measure only that limit.
const EAGER_RIVER: Engine = Engine::River { fetch_cooldown: riverqueue::FETCH_COOLDOWN_MIN };

const VARIANTS: &[Variant] = &[
    variant("tasks/memory", Store::Memory, Engine::Tasks, "tasks/memory"),
    variant("tasks/sqlite", Store::Sqlite, Engine::Tasks, "commit-each/sqlite"),
    variant("group-commit/sqlite", Store::Sqlite, Engine::GroupCommit, "commit-each/sqlite"),
    // With one connection there is no contention for the lock of the file.
    variant("commit-each/sqlite", Store::Sqlite, Engine::CommitEach { connections: 1 }, "commit-each/sqlite"),
    // The number of connections that River's documentation recommends for SQLite.
    variant("commit-each/sqlite/5", Store::Sqlite, Engine::CommitEach { connections: 5 }, "commit-each/sqlite"),
    variant("tasks/postgres", Store::Postgres, Engine::Tasks, "commit-each/postgres"),
    variant("group-commit/postgres", Store::Postgres, Engine::GroupCommit, "commit-each/postgres"),
    // The default number of connections of sqlx. The server commits together what they commit at
    // once.
    variant("commit-each/postgres", Store::Postgres, Engine::CommitEach { connections: 10 }, "commit-each/postgres"),
    variant("durable/sqlite", Store::Sqlite, Engine::Durable, "river/sqlite"),
    variant("river/sqlite", Store::Sqlite, RIVER, "river/sqlite"),
    variant("river/sqlite/1ms", Store::Sqlite, EAGER_RIVER, "river/sqlite"),
    variant("durable/postgres", Store::Postgres, Engine::Durable, "river/postgres"),
    variant("river/postgres", Store::Postgres, RIVER, "river/postgres"),
    variant("river/postgres/1ms", Store::Postgres, EAGER_RIVER, "river/postgres"),
];

fn main() -> ExitCode {
    let options = Options::parse(
        "tasks",
        "Measures accepted tasks per second in memory, on SQLite and on Postgres, and durable jobs enqueued and worked off. \
         Postgres needs a server that DATABASE_URL names; each run creates and drops a database there",
    );
    let server = env::var("DATABASE_URL").ok();
    let rows = || {
        if server.is_none() {
            eprintln!("tasks: skips all rows of Postgres, because DATABASE_URL names no server");
        }
        let scenes = Scene::all().into_iter().filter(|scene| scene.store != Store::Postgres || server.is_some());
        let rows = scenes.flat_map(|scene| {
            let variants = VARIANTS.iter().filter(move |variant| variant.takes_part_in(scene));
            variants.map(move |variant| Row::new(variant.name, scene))
        });
        rows.collect()
    };
    options.run("tasks", rows, run, |rows| {
        let (ms, rounds) = (Duration::from_millis, if options.quick { 2 } else { 5 });
        let phases = if options.quick {
            Phases { warm_up: ms(50), measure: ms(500), max_calls: 200_000, jobs: 500 }
        } else {
            Phases { warm_up: ms(200), measure: ms(3000), max_calls: 1_000_000, jobs: 5000 }
        };
        interleave(rows, rounds, Unit::Row, |scene, variants| {
            let database = Fresh::new(scene.store, server.as_deref())?;
            let (variant, database) = (variants[0].to_owned(), database.name().to_owned());
            Ok(vec![child::run(&Order { variant, scene: *scene, phases, database }, TIMEOUT)?])
        })?;
        Ok(report::text(rows, rounds, phases))
    })
}

/// Runs one variant in one scene, in a child process.
fn run(order: Order) -> Result<Sample, BoxError> {
    let variant = VARIANTS.iter().find(|it| it.name == order.variant).ok_or("there is no such variant")?;
    let url = database::url(variant.store, &order.database)?;
    let runtime = runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    runtime.block_on(async {
        match variant.engine {
            Engine::Tasks if variant.store == Store::Memory => accept::tracked(MemoryStore::new(), &order).await,
            Engine::Tasks => accept::tracked(SqlStore::open(&url).await?, &order).await,
            Engine::GroupCommit => accept::group_commit(&url, &order).await,
            Engine::CommitEach { connections } => accept::commit_each(&url, connections, &order).await,
            Engine::Durable => jobs::durable(&url, &order).await,
            Engine::River { fetch_cooldown } => jobs::river(&url, fetch_cooldown, &order).await,
        }
    })
}

impl Scene {
    fn all() -> Vec<Self> {
        let mut scenes = Vec::new();
        for (measure, clients) in [
            (Measure::Accept, &CLIENTS[..]),
            (Measure::Enqueue, &CLIENTS),
            (Measure::Drain, &[1]),
            (Measure::DrainTwo, &[1]),
            (Measure::Begin, &[1]),
            (Measure::Follow, &[1]),
        ] {
            for clients in clients.iter().copied() {
                let stores = [Store::Memory, Store::Sqlite, Store::Postgres];
                scenes.extend(stores.map(|store| Self { measure, clients, store }));
            }
        }
        scenes
    }
}

impl Variant {
    fn takes_part_in(&self, scene: Scene) -> bool {
        let takes_part = match self.engine {
            Engine::Tasks | Engine::GroupCommit | Engine::CommitEach { .. } => scene.measure == Measure::Accept,
            // The fetch interval of River does not affect clients that enqueue.
            Engine::River { .. } if scene.measure.is_own() => false,
            Engine::River { .. } if self.name != self.base => scene.measure == Measure::Drain,
            Engine::Durable | Engine::River { .. } => scene.measure != Measure::Accept,
        };
        takes_part && self.store == scene.store
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (measure, store) = (format!("{:?}", self.measure), format!("{:?}", self.store));
        write!(f, "{}, {}, {} client(s)", measure.to_lowercase(), store.to_lowercase(), self.clients)
    }
}
