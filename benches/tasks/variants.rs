//! The ways that are compared, as data.

use std::time::Duration;

use crate::plan::{CLIENTS, Measure, Store};

/// One way to accept a task, or to keep a job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) store: Store,
    pub(crate) way: Way,
    /// What its rate is divided by, in the same round.
    pub(crate) base: &'static str,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    /// An insert of the record in a transaction of its own, on so many connections.
    CommitEach { connections: u32 },
    /// This crate's queue on River: a job and its record in one transaction.
    Durable,
    /// The store alone, with whatever waits in one transaction.
    GroupCommit,
    /// River as it is.
    River { fetch_cooldown: Duration },
    /// A tracked task, which runs and ends.
    Tasks,
}

const COMMIT_EACH_SQLITE: &str = "commit-each/sqlite";
const COMMIT_EACH_POSTGRES: &str = "commit-each/postgres";
const RIVER_SQLITE: &str = "river/sqlite";
const RIVER_POSTGRES: &str = "river/postgres";

pub(crate) const VARIANTS: &[Variant] = &[
    Variant { name: "tasks/memory", store: Store::Memory, way: Way::Tasks, base: "tasks/memory" },
    Variant { name: "tasks/sqlite", store: Store::Sqlite, way: Way::Tasks, base: COMMIT_EACH_SQLITE },
    Variant { name: "group-commit/sqlite", store: Store::Sqlite, way: Way::GroupCommit, base: COMMIT_EACH_SQLITE },
    // Nobody waits for the lock of the file, since only one connection wants it.
    Variant {
        name: COMMIT_EACH_SQLITE,
        store: Store::Sqlite,
        way: Way::CommitEach { connections: 1 },
        base: COMMIT_EACH_SQLITE,
    },
    // As River's documentation has it.
    Variant {
        name: "commit-each/sqlite/5",
        store: Store::Sqlite,
        way: Way::CommitEach { connections: 5 },
        base: COMMIT_EACH_SQLITE,
    },
    Variant { name: "tasks/postgres", store: Store::Postgres, way: Way::Tasks, base: COMMIT_EACH_POSTGRES },
    Variant {
        name: "group-commit/postgres",
        store: Store::Postgres,
        way: Way::GroupCommit,
        base: COMMIT_EACH_POSTGRES,
    },
    // As many as sqlx has if one does not say. The server commits together what they want to commit at once.
    Variant {
        name: COMMIT_EACH_POSTGRES,
        store: Store::Postgres,
        way: Way::CommitEach { connections: 10 },
        base: COMMIT_EACH_POSTGRES,
    },
    Variant { name: "durable/sqlite", store: Store::Sqlite, way: Way::Durable, base: RIVER_SQLITE },
    Variant { name: RIVER_SQLITE, store: Store::Sqlite, way: RIVER, base: RIVER_SQLITE },
    Variant { name: "river/sqlite/1ms", store: Store::Sqlite, way: EAGER_RIVER, base: RIVER_SQLITE },
    Variant { name: "durable/postgres", store: Store::Postgres, way: Way::Durable, base: RIVER_POSTGRES },
    Variant { name: RIVER_POSTGRES, store: Store::Postgres, way: RIVER, base: RIVER_POSTGRES },
    Variant { name: "river/postgres/1ms", store: Store::Postgres, way: EAGER_RIVER, base: RIVER_POSTGRES },
];

const RIVER: Way = Way::River { fetch_cooldown: riverqueue::FETCH_COOLDOWN_DEFAULT };
/// By default it fetches ten times a second, as many as it has workers free, and that is what a drain of jobs without work measures.
const EAGER_RIVER: Way = Way::River { fetch_cooldown: riverqueue::FETCH_COOLDOWN_MIN };

pub(crate) fn named(name: &str) -> Option<&'static Variant> {
    VARIANTS.iter().find(|variant| variant.name == name)
}

impl Variant {
    /// What of it is measured, and with how many clients.
    pub(crate) fn scenes(&self) -> Vec<(Measure, usize)> {
        let measure = match self.way {
            Way::CommitEach { .. } | Way::GroupCommit | Way::Tasks => Measure::Accept,
            // How often it fetches is nothing to who enqueues.
            Way::River { .. } if self.name != self.base => return vec![(Measure::Drain, 1)],
            Way::Durable | Way::River { .. } => Measure::Enqueue,
        };
        let mut scenes: Vec<_> = CLIENTS.map(|clients| (measure, clients)).to_vec();
        if measure == Measure::Enqueue {
            scenes.push((Measure::Drain, 1));
        }
        scenes
    }
}
