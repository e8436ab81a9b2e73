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
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, timeout_at},
};

use self::{
    connection::{BUSY_TIMEOUT, Writer, readers},
    sweep::sweep,
    write::write,
};
use crate::{
    StoreError, TaskId, TaskStore, Timestamp,
    store::{
        Epoch, Filter, Found, Lease, Listing, Op, Page, Process, Retention, StoreFuture, Summary, Swept, Written,
        sql::{
            builder::Settings,
            found_many,
            list::{Dialect, ListQuery, queries},
            listing,
            row::{id_of, millis, read_columns, record, task_id},
            store_error,
            summary::{COUNTED, SAMPLED, SAMPLES, counts, summary},
        },
    },
    sync,
};

/// A database of this process alone. Each `Tasks` of the process has an epoch.
pub(crate) struct Sqlite {
    pub(crate) readers: SqlitePool,
    /// Locked for each transaction.
    writer: Mutex<Writer>,
    /// The epochs of this process. A reference is dead once the epoch has ended or its owner has
    /// dropped the lease; the entry remains until the records are marked as lost. All other epochs
    /// in the file belong to earlier processes.
    epochs: sync::Mutex<HashMap<Epoch, Weak<()>>>,
    /// `false` if a job queue must not change the schema either.
    #[cfg_attr(not(feature = "river"), allow(dead_code, reason = "for job queues"))]
    pub(crate) migrates: bool,
    /// Maximum number of connections of a job queue.
    #[cfg_attr(not(feature = "river"), allow(dead_code, reason = "for job queues"))]
    pub(crate) job_connections: u32,
}

/// River's documentation recommends a few, since one of them writes at a time.
const JOB_CONNECTIONS: u32 = 4;

impl Sqlite {
    pub(super) async fn open(path: &Path, create: bool, settings: &Settings) -> Result<Self, StoreError> {
        if path.as_os_str().is_empty() {
            return Err(StoreError::other("the URL has no path after `sqlite:`"));
        }
        if path == ":memory:" {
            return Err(StoreError::other("SQLite databases in memory are not supported: use `MemoryStore`"));
        }
        let writer = Mutex::new(Writer::open(path, create, settings.migrate).await?);
        Ok(Self {
            readers: readers(path, settings.read_connections),
            writer,
            epochs: sync::Mutex::default(),
            migrates: settings.migrate,
            job_connections: settings.job_connections.unwrap_or(JOB_CONNECTIONS),
        })
    }

    pub(super) async fn close(&self) -> Result<(), StoreError> {
        self.readers.close().await;
        self.writer.lock().await.close().await
    }

    /// Locks the writer for a transaction. The time that this takes shortens the time that the
    /// transaction may wait for other connections.
    pub(crate) async fn lock_writer(&self) -> Result<MutexGuard<'_, Writer>, StoreError> {
        let deadline = Instant::now() + BUSY_TIMEOUT;
        let Ok(mut writer) = timeout_at(deadline, self.writer.lock()).await else {
            return Err(StoreError::unavailable(format!(
                "other transactions of this process have used the file for {BUSY_TIMEOUT:?}: keep the transactions of other \
                 connections short, because they hold up these"
            )));
        };
        writer.deadline = deadline;
        Ok(writer)
    }
}

const DIALECT: Dialect = Dialect { position: "instr", collation: "" };

/// Reads the parameters of a URL. Returns `true` if the file is created if it does not exist.
pub(super) fn creates_file(parameters: &str) -> Result<bool, StoreError> {
    let mut create = true;
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        create = match parameter {
            "mode=rwc" => true,
            "mode=rw" => false,
            "mode=memory" => {
                return Err(StoreError::other("`mode=memory` is not supported: use `MemoryStore`"));
            }
            "mode=ro" => {
                return Err(StoreError::other(
                    "`mode=ro` is not supported, because the store writes: use `rw` or `rwc`",
                ));
            }
            _ => {
                let name = parameter.split('=').next().unwrap_or_default();
                return Err(StoreError::other(format!(
                    "the parameter `{name}` in the URL is not supported: remove it, or use `mode=rw` or `mode=rwc`"
                )));
            }
        };
    }
    Ok(create)
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
            let mut writer = self.lock_writer().await?;
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
            let mut writer = self.lock_writer().await?;
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
            let mut writer = self.lock_writer().await?;
            writer.transaction(async |connection| write(connection, epoch, batch).await).await
        })
    }

    fn get(&self, id: TaskId) -> StoreFuture<'_, Found> {
        const RECORD: &str = concat!("SELECT ", read_columns!(), " FROM tower_offload_task WHERE id = $1");
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
            read_columns!(),
            " FROM tower_offload_task WHERE id IN (SELECT unhex(value) FROM json_each($1))"
        );
        Box::pin(async move {
            let hex = |id: &TaskId| id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let hex: Vec<_> = ids.iter().map(hex).collect();
            let hex = serde_json::to_string(&hex).map_err(StoreError::other)?;
            let rows = sqlx::query(RECORDS).bind(hex).fetch_all(&self.readers).await.map_err(store_error)?;
            Ok(found_many(ids, rows.iter().map(record)))
        })
    }

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        Box::pin(async move {
            let Some(ListQuery { mut records, end }) = queries(filter, page, &DIALECT) else {
                return Ok(Listing::default());
            };
            let rows = records.build().fetch_all(&self.readers).await.map_err(store_error)?;
            let end = match end {
                Some(mut end) if rows.len() <= page.clamped().limit => {
                    end.build_query_scalar().fetch_optional(&self.readers).await.map_err(store_error)?
                }
                _ => None,
            };
            listing(rows.iter().map(|row| (id_of(row), record(row))), page, end)
        })
    }

    fn summary(&self, now: Timestamp) -> StoreFuture<'_, Summary> {
        const COUNTS: &str = counts!("max");
        Box::pin(async move {
            let counts = sqlx::query(COUNTS).bind(millis(now)).bind(COUNTED).fetch_all(&self.readers);
            let counts = counts.await.map_err(store_error)?;
            let samples = sqlx::query(SAMPLES).bind(COUNTED).bind(SAMPLED).fetch_all(&self.readers);
            summary(&counts, &samples.await.map_err(store_error)?, now)
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
            let mut writer = self.lock_writer().await?;
            writer.transaction(async |connection| sweep(connection, now, retention).await).await
        })
    }
}

#[cfg(test)]
mod tests;
