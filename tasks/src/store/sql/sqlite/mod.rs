//! SQLite: one file, one process, one connection that writes.

pub(crate) mod connection;
mod lock;
mod schema;
mod sweep;
pub(crate) mod write;

use std::path::Path;

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
};

/// A database of this process alone. The process that has locked the file has the only epoch.
pub(crate) struct Sqlite {
    pub(crate) readers: SqlitePool,
    /// Locked for each transaction.
    pub(crate) writer: Mutex<Writer>,
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
        Ok(Self { readers: readers(path), writer })
    }

    pub(super) async fn close(&self) -> Result<(), StoreError> {
        self.readers.close().await;
        self.writer.lock().await.close().await
    }
}

/// Marks the unfinished records of all epochs as lost, because no other process uses the file.
/// Records of jobs are kept.
const LOSE: &str = "
UPDATE tower_offload_task SET state = 14, reason = 'process_lost', version = version + 1,
    finished_at = max($1, coalesce(started_at, created_at)) WHERE state < 10 AND river_id IS NULL";

/// Marks the unfinished records as lost and ends all epochs.
async fn lose_all(connection: &mut SqliteConnection, now: Timestamp) -> Result<(), sqlx::Error> {
    sqlx::query(LOSE).bind(millis(now)).execute(&mut *connection).await?;
    sqlx::query("DELETE FROM tower_offload_process").execute(connection).await?;
    Ok(())
}

const IS_CURRENT: &str = "SELECT 1 FROM tower_offload_process WHERE epoch = $1";

impl TaskStore for Sqlite {
    fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease> {
        const INSERT: &str = "INSERT INTO tower_offload_process (name, started_at) VALUES ($1, $2) RETURNING epoch";
        Box::pin(async move {
            let mut writer = self.writer.lock().await;
            let begin = writer.transaction(async |connection| {
                lose_all(connection, process.started_at).await?;
                let name = process.name.replace('\0', "\u{fffd}");
                let insert = sqlx::query_scalar::<_, i64>(INSERT).bind(name).bind(millis(process.started_at));
                insert.fetch_one(connection).await
            });
            Ok(Lease::exclusive(Epoch::from(begin.await?)))
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
            let mut writer = self.writer.lock().await;
            let end = writer.transaction(async |connection| {
                let query = sqlx::query(IS_CURRENT).bind(i64::from(epoch));
                match query.fetch_optional(&mut *connection).await? {
                    Some(_) => lose_all(connection, now).await,
                    None => Ok(()),
                }
            });
            end.await
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
