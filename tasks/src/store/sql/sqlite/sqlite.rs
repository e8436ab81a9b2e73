use std::path::Path;

use sqlx::{Row, SqliteConnection, sqlite::SqlitePool};
#[cfg(feature = "river")]
use sqlx::{Transaction, sqlite::SqliteConnectOptions};
use tokio::sync::Mutex;

#[cfg(feature = "river")]
use super::connection::options;
use super::{
    connection::{Writer, readers},
    sweep::sweep,
    write::write,
};
use crate::{
    StoreError, TaskId, Timestamp,
    store::{
        Epoch, Filter, Found, Lease, Listing, Page, Process, Retention, StoreFuture, Swept, Written,
        sql::{
            database::Database,
            error::store_error,
            group::Batch,
            query,
            row::{columns, millis, record, task_id},
        },
    },
};

/// A database of this process alone: who holds the lock has the only epoch.
pub(crate) struct Sqlite {
    readers: SqlitePool,
    pub(super) writer: Mutex<Writer>,
}

impl Sqlite {
    pub(in crate::store::sql) async fn open(path: &Path) -> Result<Self, StoreError> {
        if path.as_os_str().is_empty() {
            return Err(StoreError::other("there is no path behind `sqlite:`"));
        }
        if path == ":memory:" {
            let hint = "SQLite's databases in memory are not for a store of tasks: use MemoryStore";
            return Err(StoreError::other(hint));
        }
        let writer = Mutex::new(Writer::open(path).await?);
        Ok(Self { readers: readers(path), writer })
    }

    /// All or nothing of what `change` does, between the writes of records. The error within is the caller's.
    #[cfg(feature = "river")]
    pub(crate) async fn transact<T, E: From<sqlx::Error>>(
        &self,
        change: impl AsyncFnOnce(&mut Transaction<'_, sqlx::Sqlite>) -> Result<T, E>,
    ) -> Result<Result<T, E>, StoreError> {
        self.writer.lock().await.begin(change).await
    }

    /// To read without holding up who writes.
    #[cfg(feature = "river")]
    pub(crate) fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// How to open the file once more, to write.
    #[cfg(feature = "river")]
    pub(crate) async fn options(&self) -> SqliteConnectOptions {
        options(&self.writer.lock().await.path)
    }
}

/// Of every epoch: there is no other process.
const LOSE: &str = "
UPDATE tower_offload_task SET state = 14, reason = 'process_lost', version = version + 1,
    finished_at = max($1, coalesce(started_at, created_at)) WHERE state < 10 AND river_id IS NULL";

async fn lose_all(connection: &mut SqliteConnection, now: Timestamp) -> Result<(), sqlx::Error> {
    sqlx::query(LOSE).bind(millis(now)).execute(&mut *connection).await?;
    sqlx::query("DELETE FROM tower_offload_process").execute(connection).await?;
    Ok(())
}

impl Database for Sqlite {
    fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease> {
        Box::pin(async move {
            let mut writer = self.writer.lock().await;
            let begin = writer.transaction(async |connection| {
                lose_all(connection, process.started_at).await?;
                let name = process.name.replace('\0', "\u{fffd}");
                let insert = "INSERT INTO tower_offload_process (name, started_at) VALUES ($1, $2) RETURNING epoch";
                let insert = sqlx::query_scalar(insert).bind(name).bind(millis(process.started_at));
                insert.fetch_one(connection).await
            });
            Ok(Lease::exclusive(Epoch::from_number(begin.await?)))
        })
    }

    fn renew(&self, epoch: Epoch) -> StoreFuture<'_, bool> {
        Box::pin(async move {
            let query = sqlx::query("SELECT 1 FROM tower_offload_process WHERE epoch = $1").bind(epoch.as_number());
            Ok(query.fetch_optional(&self.readers).await.map_err(store_error)?.is_some())
        })
    }

    fn end(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let mut writer = self.writer.lock().await;
            let end = writer.transaction(async |connection| {
                let query = sqlx::query("SELECT 1 FROM tower_offload_process WHERE epoch = $1").bind(epoch.as_number());
                match query.fetch_optional(&mut *connection).await? {
                    Some(_) => lose_all(connection, now).await,
                    None => Ok(()),
                }
            });
            end.await
        })
    }

    fn write<'a>(&'a self, batches: &'a [Batch]) -> StoreFuture<'a, Vec<Vec<Written>>> {
        Box::pin(async move {
            let mut writer = self.writer.lock().await;
            let all = writer.transaction(async |connection| {
                let mut written = Vec::with_capacity(batches.len());
                for batch in batches {
                    written.push(write(connection, batch).await?);
                }
                Ok(written)
            });
            all.await
        })
    }

    fn get(&self, id: TaskId) -> StoreFuture<'_, Found> {
        const RECORD: &str = concat!("SELECT ", columns!(), " FROM tower_offload_task WHERE id = $1");
        Box::pin(async move {
            // One transaction, so one state of the database: a record that is evicted in between would be neither here nor there.
            let mut reading = self.readers.begin().await.map_err(store_error)?;
            let found = sqlx::query(RECORD).bind(&id.as_bytes()[..]).fetch_optional(&mut *reading).await;
            if let Some(row) = found.map_err(store_error)? {
                return Ok(Found::Record(Box::new(record(&row)?)));
            }
            let tombstone = sqlx::query("SELECT owner FROM tower_offload_tombstone WHERE id = $1");
            let tombstone = tombstone.bind(&id.as_bytes()[..]).fetch_optional(&mut *reading).await;
            Ok(match tombstone.map_err(store_error)? {
                Some(row) => Found::Evicted { owner: row.try_get(0).map_err(store_error)? },
                None => Found::Unknown,
            })
        })
    }

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        Box::pin(async move {
            let Some(mut query) = query::list(filter, page) else { return Ok(Listing::default()) };
            let rows = query.build().fetch_all(&self.readers).await.map_err(store_error)?;
            Ok(Listing::new(rows.iter().map(record).collect::<Result<_, _>>()?, page))
        })
    }

    fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>> {
        Box::pin(async move {
            let query =
                "SELECT id FROM tower_offload_task WHERE epoch = $1 AND state < 10 AND cancel_requested_at IS NOT NULL";
            let ids = sqlx::query_scalar(query).bind(epoch.as_number()).fetch_all(&self.readers).await;
            ids.map_err(store_error)?.into_iter().map(task_id).collect()
        })
    }

    fn sweep<'a>(&'a self, now: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept> {
        Box::pin(async move {
            let mut writer = self.writer.lock().await;
            writer.transaction(async |connection| sweep(connection, now, retention).await).await
        })
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            self.readers.close().await;
            self.writer.lock().await.close().await
        })
    }
}
