//! SQLite: one file, one process, one connection that writes.

pub(crate) mod connection;
mod lock;
mod schema;
mod sweep;
pub(crate) mod write;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Weak},
};

use sqlx::{Row, SqliteConnection, sqlite::SqlitePool};
use tokio::sync::Mutex;

use self::{
    connection::{Writer, readers},
    sweep::sweep,
    write::write,
};
use crate::{
    StoreError, TaskId, TaskStore, Timestamp,
    store::{
        Epoch, Filter, Found, Lease, Listing, Op, Page, Process, Retention, StoreFuture, Swept, Written,
        sql::{
            found_many, list,
            row::{columns, millis, record, task_id},
            store_error,
        },
    },
    sync,
};

/// A database of this process alone. Each `Tasks` of the process has an epoch.
pub(crate) struct Sqlite {
    pub(crate) readers: SqlitePool,
    /// Locked for each transaction.
    pub(crate) writer: Mutex<Writer>,
    /// The epochs of this process. A reference is dead once the epoch has ended or its owner has
    /// dropped the lease; the entry remains until the records are marked as lost. All other epochs
    /// in the file belong to earlier processes.
    epochs: sync::Mutex<HashMap<Epoch, Weak<()>>>,
}

impl Sqlite {
    pub(super) async fn open(path: &Path) -> Result<Self, StoreError> {
        if path.as_os_str().is_empty() {
            return Err(StoreError::other("the URL has no path after `sqlite:`"));
        }
        if path == ":memory:" {
            return Err(StoreError::other("SQLite databases in memory are not supported: use `MemoryStore`"));
        }
        let writer = Mutex::new(Writer::open(path).await?);
        Ok(Self { readers: readers(path), writer, epochs: sync::Mutex::default() })
    }

    pub(super) async fn close(&self) -> Result<(), StoreError> {
        self.readers.close().await;
        self.writer.lock().await.close().await
    }
}

/// Marks the unfinished records of tasks as lost, except in the epochs of the JSON array `$2`.
const LOSE: &str = "
UPDATE tower_offload_task SET state = 14, reason = 'process_lost', version = version + 1,
    finished_at = max($1, coalesce(started_at, created_at))
WHERE state < 10 AND river_id IS NULL AND epoch NOT IN (SELECT value FROM json_each($2))";
const END: &str = "DELETE FROM tower_offload_process WHERE epoch NOT IN (SELECT value FROM json_each($1))";

/// Ends the epochs that are not among `living`, and returns the number of their records.
async fn end_others(connection: &mut SqliteConnection, living: &str, now: Timestamp) -> Result<u64, sqlx::Error> {
    let lost = sqlx::query(LOSE).bind(millis(now)).bind(living).execute(&mut *connection).await?.rows_affected();
    sqlx::query(END).bind(living).execute(connection).await?;
    Ok(lost)
}

impl Sqlite {
    /// Returns the epochs whose owner exists as a JSON array, and the other epochs of this process.
    fn living_and_dead_epochs(&self) -> (String, Vec<Epoch>) {
        let epochs = sync::lock(&self.epochs);
        let (living, dead): (Vec<_>, Vec<_>) = epochs.iter().partition(|(_, owner)| owner.strong_count() > 0);
        let living: Vec<_> = living.iter().map(|(epoch, _)| i64::from(**epoch).to_string()).collect();
        (format!("[{}]", living.join(",")), dead.into_iter().map(|(epoch, _)| *epoch).collect())
    }

    fn forget_epochs(&self, dead: &[Epoch]) {
        sync::lock(&self.epochs).retain(|epoch, _| !dead.contains(epoch));
    }
}

const IS_CURRENT: &str = "SELECT 1 FROM tower_offload_process WHERE epoch = $1";

impl TaskStore for Sqlite {
    fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease> {
        const INSERT: &str = "INSERT INTO tower_offload_process (name, started_at) VALUES ($1, $2) RETURNING epoch";
        Box::pin(async move {
            let mut writer = self.writer.lock().await;
            let (living, dead) = self.living_and_dead_epochs();
            let begin = writer.transaction(async |connection| {
                end_others(connection, &living, process.started_at).await?;
                let name = process.name.replace('\0', "\u{fffd}");
                let insert = sqlx::query_scalar::<_, i64>(INSERT).bind(name).bind(millis(process.started_at));
                insert.fetch_one(connection).await
            });
            let (epoch, owner) = (Epoch::from(begin.await?), Arc::new(()));
            self.forget_epochs(&dead);
            sync::lock(&self.epochs).insert(epoch, Arc::downgrade(&owner));
            Ok(Lease::exclusive(epoch).guard(owner))
        })
    }

    fn renew(&self, epoch: Epoch) -> StoreFuture<'_, bool> {
        Box::pin(async move {
            let query = sqlx::query(IS_CURRENT).bind(i64::from(epoch));
            Ok(query.fetch_optional(&self.readers).await.map_err(store_error)?.is_some())
        })
    }

    fn end(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            if let Some(owner) = sync::lock(&self.epochs).get_mut(&epoch) {
                *owner = Weak::new();
            }
            self.mark_lost(epoch, now).await.map(drop)
        })
    }

    fn mark_lost(&self, _: Epoch, now: Timestamp) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            let mut writer = self.writer.lock().await;
            let (living, dead) = self.living_and_dead_epochs();
            if dead.is_empty() {
                return Ok(0); // `begin` has ended the epochs of earlier processes
            }
            let lost = writer.transaction(async |connection| end_others(connection, &living, now).await).await?;
            self.forget_epochs(&dead);
            Ok(lost)
        })
    }

    fn write<'a>(&'a self, epoch: Epoch, batch: &'a [Op]) -> StoreFuture<'a, Vec<Written>> {
        Box::pin(async move {
            let mut writer = self.writer.lock().await;
            writer.transaction(async |connection| write(connection, epoch, batch).await).await
        })
    }

    fn get(&self, id: TaskId) -> StoreFuture<'_, Found> {
        const RECORD: &str = concat!("SELECT ", columns!(), " FROM tower_offload_task WHERE id = $1");
        const TOMBSTONE: &str = "SELECT owner FROM tower_offload_tombstone WHERE id = $1";
        Box::pin(async move {
            let id = &id.as_bytes()[..];
            // One transaction, so that a record cannot be evicted between the two queries.
            let mut reading = self.readers.begin().await.map_err(store_error)?;
            let row = sqlx::query(RECORD).bind(id).fetch_optional(&mut *reading).await;
            if let Some(row) = row.map_err(store_error)? {
                return Ok(Found::Record(Box::new(record(&row)?)));
            }
            let tombstone = sqlx::query(TOMBSTONE).bind(id).fetch_optional(&mut *reading).await;
            Ok(match tombstone.map_err(store_error)? {
                Some(row) => Found::Evicted { owner: row.try_get(0).map_err(store_error)? },
                None => Found::Unknown,
            })
        })
    }

    fn get_many<'a>(&'a self, ids: &'a [TaskId]) -> StoreFuture<'a, Vec<Found>> {
        const RECORDS: &str = concat!(
            "SELECT ",
            columns!(),
            " FROM tower_offload_task WHERE id IN (SELECT unhex(value) FROM json_each($1))"
        );
        Box::pin(async move {
            let hex = |id: &TaskId| id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let hex: Vec<_> = ids.iter().map(hex).collect();
            let hex = serde_json::to_string(&hex).map_err(StoreError::other)?;
            let rows = sqlx::query(RECORDS).bind(hex).fetch_all(&self.readers).await.map_err(store_error)?;
            found_many(ids, rows.iter().map(record))
        })
    }

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        Box::pin(async move {
            let Some(mut query) = list::query(filter, page) else { return Ok(Listing::default()) };
            let rows = query.build().fetch_all(&self.readers).await.map_err(store_error)?;
            Ok(Listing::new(rows.iter().map(record).collect::<Result<_, _>>()?, page))
        })
    }

    fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>> {
        const REQUESTS: &str =
            "SELECT id FROM tower_offload_task WHERE epoch = $1 AND state < 10 AND cancel_requested_at IS NOT NULL";
        Box::pin(async move {
            let ids = sqlx::query_scalar(REQUESTS).bind(i64::from(epoch)).fetch_all(&self.readers).await;
            ids.map_err(store_error)?.into_iter().map(task_id).collect()
        })
    }

    fn sweep<'a>(&'a self, now: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept> {
        Box::pin(async move {
            let mut writer = self.writer.lock().await;
            writer.transaction(async |connection| sweep(connection, now, retention).await).await
        })
    }
}

#[cfg(test)]
mod tests;
