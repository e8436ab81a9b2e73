//! Postgres: one database, many processes, and the server's clock for their leases.

pub(crate) mod columns;
pub(crate) mod connection;
mod schema;
mod sweep;
mod write;

use std::time::Duration;

use sqlx::Row;

use self::{
    connection::{Connections, is_conflict},
    sweep::{lose, lose_expired, sweep},
    write::write,
};
use crate::{
    StoreError, TaskId, TaskStore, Timestamp,
    store::{
        Epoch, Filter, Found, Lease, Listing, Op, Page, Process, Retention, StoreFuture, Swept, Written,
        sql::{
            found_many, list,
            row::{columns, integer, millis, record, task_id},
            store_error,
        },
    },
};

/// A database that many processes use. Each has a row with its lease, and every sweep ends the
/// epochs whose lease has expired.
pub(crate) struct Postgres {
    pub(crate) connections: Connections,
    /// Duration of leases, at least a millisecond and at most [`MAX_LEASE`].
    pub(crate) lease: Duration,
}

/// Number of renewals within a lease. Two of them may fail.
pub(crate) const RENEWALS: u32 = 3;
/// Number of attempts at a write that the server rolls back because of a conflict.
const MAX_ATTEMPTS: usize = 3;
/// Maximum duration of a lease: a year, which Postgres can add to the current time.
const MAX_LEASE: Duration = Duration::from_secs(365 * 24 * 3600);

impl Postgres {
    pub(super) async fn open(url: &str, lease: Duration) -> Result<Self, StoreError> {
        let lease = lease.clamp(Duration::from_millis(1), MAX_LEASE);
        Ok(Self { connections: Connections::open(url).await?, lease })
    }

    pub(super) async fn close(&self) -> Result<(), StoreError> {
        self.connections.pool.close().await;
        Ok(())
    }

    pub(crate) fn lease_millis(&self) -> i64 {
        integer(u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX))
    }
}

impl TaskStore for Postgres {
    fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease> {
        const BEGIN: &str = "
INSERT INTO tower_offload_process (name, started_at, expires_at)
VALUES ($1, $2, clock_timestamp() + $3 * interval '1 millisecond') RETURNING epoch";
        Box::pin(async move {
            let name = process.name.replace('\0', "\u{fffd}");
            let begin = self.connections.transaction(async |connection| {
                lose_expired(connection).await?;
                let begin = sqlx::query_scalar::<_, i64>(BEGIN).bind(&name).bind(millis(process.started_at));
                begin.bind(self.lease_millis()).fetch_one(connection).await
            });
            Ok(Lease::renewed_every(Epoch::from(begin.await?), self.lease / RENEWALS))
        })
    }

    /// Renews the lease even after it has expired, unless another process has ended the epoch:
    /// while its row exists, none of its records is lost.
    fn renew(&self, epoch: Epoch) -> StoreFuture<'_, bool> {
        const RENEW: &str = "
UPDATE tower_offload_process SET expires_at = clock_timestamp() + $2 * interval '1 millisecond' WHERE epoch = $1";
        Box::pin(async move {
            let renew = self.connections.transaction(async |connection| {
                sqlx::query(RENEW).bind(i64::from(epoch)).bind(self.lease_millis()).execute(connection).await
            });
            Ok(renew.await?.rows_affected() > 0)
        })
    }

    fn end(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, ()> {
        const LOCK: &str = "SELECT 1 FROM tower_offload_process WHERE epoch = $1 FOR UPDATE";
        Box::pin(async move {
            let end = self.connections.transaction(async |connection| {
                let lock = sqlx::query(LOCK).bind(i64::from(epoch));
                match lock.fetch_optional(&mut *connection).await? {
                    Some(_) => lose(connection, vec![i64::from(epoch)], Some(now)).await,
                    None => Ok(0),
                }
            });
            end.await.map(|_| ())
        })
    }

    fn write<'a>(&'a self, epoch: Epoch, batch: &'a [Op]) -> StoreFuture<'a, Vec<Written>> {
        Box::pin(async move {
            for _ in 1..MAX_ATTEMPTS {
                match self.connections.attempt(async |connection| write(connection, epoch, batch).await).await? {
                    Err(error) if is_conflict(&error) => {}
                    result => return result.map_err(store_error),
                }
            }
            self.connections.transaction(async |connection| write(connection, epoch, batch).await).await
        })
    }

    fn get(&self, id: TaskId) -> StoreFuture<'_, Found> {
        const RECORD: &str = concat!("SELECT ", columns!(), " FROM tower_offload_task WHERE id = $1");
        const TOMBSTONE: &str = "SELECT owner FROM tower_offload_tombstone WHERE id = $1";
        Box::pin(async move {
            let id = &id.as_bytes()[..];
            let read = self.connections.read(async |connection| {
                if let Some(row) = sqlx::query(RECORD).bind(id).fetch_optional(&mut *connection).await? {
                    return Ok(record(&row).map(|record| Found::Record(Box::new(record))));
                }
                // A record that is evicted between the two queries has its tombstone by now.
                let tombstone = sqlx::query(TOMBSTONE).bind(id).fetch_optional(connection).await?;
                Ok(Ok(match tombstone {
                    Some(row) => Found::Evicted { owner: row.try_get(0)? },
                    None => Found::Unknown,
                }))
            });
            read.await?
        })
    }

    fn get_many<'a>(&'a self, ids: &'a [TaskId]) -> StoreFuture<'a, Vec<Found>> {
        const RECORDS: &str = concat!("SELECT ", columns!(), " FROM tower_offload_task WHERE id = ANY($1)");
        Box::pin(async move {
            let bytes: Vec<_> = ids.iter().map(|id| &id.as_bytes()[..]).collect();
            let read =
                self.connections.read(async |connection| sqlx::query(RECORDS).bind(bytes).fetch_all(connection).await);
            found_many(ids, read.await?.iter().map(record))
        })
    }

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        Box::pin(async move {
            let Some(mut query) = list::query(filter, page) else { return Ok(Listing::default()) };
            let read = self.connections.read(async |connection| query.build().fetch_all(connection).await);
            Ok(Listing::new(read.await?.iter().map(record).collect::<Result<_, _>>()?, page))
        })
    }

    fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>> {
        const REQUESTS: &str =
            "SELECT id FROM tower_offload_task WHERE epoch = $1 AND state < 10 AND cancel_requested_at IS NOT NULL";
        Box::pin(async move {
            let read = self.connections.read(async |connection| {
                sqlx::query_scalar(REQUESTS).bind(i64::from(epoch)).fetch_all(connection).await
            });
            read.await?.into_iter().map(task_id).collect()
        })
    }

    fn sweep<'a>(&'a self, now: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept> {
        Box::pin(async move {
            self.connections.transaction(async |connection| sweep(connection, now, retention).await).await
        })
    }
}
