use std::time::Duration;

use sqlx::Row;
#[cfg(feature = "river")]
use sqlx::{PgConnection, Transaction, postgres::PgConnectOptions};

use super::{
    connection::{Connections, is_conflict},
    sweep::{lose, lose_expired, sweep},
    write::write,
};
use crate::{
    StoreError, TaskId, Timestamp,
    store::{
        Epoch, Filter, Found, Lease, Listing, Page, Process, Retention, StoreFuture, Swept, Written,
        sql::{
            database::{Database, integer},
            error::store_error,
            group::Batch,
            query,
            row::{columns, millis, record, task_id},
        },
    },
};

/// A database that several processes use: each has a row with its lease, and whoever sweeps ends those whose lease ran out.
pub(crate) struct Postgres {
    connections: Connections,
    lease: Duration,
}

impl Postgres {
    pub(in crate::store::sql) async fn open(url: &str, lease: Duration) -> Result<Self, StoreError> {
        Ok(Self { connections: Connections::open(url).await?, lease })
    }

    /// All or nothing of what `change` does. The error within is the caller's.
    #[cfg(feature = "river")]
    pub(crate) async fn transact<T, E: From<sqlx::Error>>(
        &self,
        change: impl AsyncFnOnce(&mut Transaction<'_, sqlx::Postgres>) -> Result<T, E>,
    ) -> Result<Result<T, E>, StoreError> {
        self.connections.begin(change).await
    }

    /// One statement, in no transaction.
    #[cfg(feature = "river")]
    pub(crate) async fn run<T>(
        &self,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        self.connections.read(statement).await
    }

    /// How to reach the server once more.
    #[cfg(feature = "river")]
    pub(crate) fn options(&self) -> PgConnectOptions {
        self.connections.options()
    }

    /// After how long without a word a process is given up.
    #[cfg(feature = "river")]
    pub(crate) fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_millis().unsigned_abs())
    }

    pub(crate) fn lease_millis(&self) -> i64 {
        integer(u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)).clamp(1, MAX_LEASE_MILLIS)
    }
}

/// A lease is renewed each third of it: two renewals may fail.
pub(crate) const RENEWALS: u32 = 3;
/// How often the server may end a write because of another one before that is an error.
const ATTEMPTS: usize = 3;
/// A year: far more than makes sense, and Postgres can still add it to the time.
const MAX_LEASE_MILLIS: i64 = 365 * 24 * 3600 * 1000;

impl Database for Postgres {
    fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease> {
        const BEGIN: &str = "
INSERT INTO tower_offload_process (name, started_at, expires_at)
VALUES ($1, $2, clock_timestamp() + $3 * interval '1 millisecond') RETURNING epoch";
        Box::pin(async move {
            let name = process.name.replace('\0', "\u{fffd}");
            let begin = self.connections.transaction(async |connection| {
                lose_expired(connection).await?;
                let begin = sqlx::query_scalar(BEGIN).bind(&name).bind(millis(process.started_at));
                begin.bind(self.lease_millis()).fetch_one(connection).await
            });
            Ok(Lease::renewed_every(Epoch::from_number(begin.await?), self.lease / RENEWALS))
        })
    }

    /// One that has run out lives again if nobody has seen it yet: as long as its row is there nothing of it is lost.
    fn renew(&self, epoch: Epoch) -> StoreFuture<'_, bool> {
        const RENEW: &str = "
UPDATE tower_offload_process SET expires_at = clock_timestamp() + $2 * interval '1 millisecond' WHERE epoch = $1";
        Box::pin(async move {
            let renew = self.connections.transaction(async |connection| {
                sqlx::query(RENEW).bind(epoch.as_number()).bind(self.lease_millis()).execute(connection).await
            });
            Ok(renew.await?.rows_affected() > 0)
        })
    }

    fn end(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let end = self.connections.transaction(async |connection| {
                let query = "SELECT 1 FROM tower_offload_process WHERE epoch = $1 FOR UPDATE";
                match sqlx::query(query).bind(epoch.as_number()).fetch_optional(&mut *connection).await? {
                    Some(_) => lose(connection, vec![epoch.as_number()], Some(now)).await,
                    None => Ok(0),
                }
            });
            end.await.map(|_| ())
        })
    }

    fn write<'a>(&'a self, batches: &'a [Batch]) -> StoreFuture<'a, Vec<Vec<Written>>> {
        Box::pin(async move {
            for _ in 1..ATTEMPTS {
                match self.connections.attempt(async |connection| write(connection, batches).await).await? {
                    Err(error) if is_conflict(&error) => {}
                    done => return done.map_err(store_error),
                }
            }
            self.connections.transaction(async |connection| write(connection, batches).await).await
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
                // Evicted in between is all right: the tombstone came in the same transaction.
                let tombstone = sqlx::query(TOMBSTONE).bind(id).fetch_optional(connection).await?;
                Ok(Ok(match tombstone {
                    Some(row) => Found::Evicted { owner: row.try_get(0)? },
                    None => Found::Unknown,
                }))
            });
            read.await?
        })
    }

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        Box::pin(async move {
            let Some(mut query) = query::list(filter, page) else { return Ok(Listing::default()) };
            let read = self.connections.read(async |connection| query.build().fetch_all(connection).await);
            Ok(Listing::new(read.await?.iter().map(record).collect::<Result<_, _>>()?, page))
        })
    }

    fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>> {
        const REQUESTS: &str =
            "SELECT id FROM tower_offload_task WHERE epoch = $1 AND state < 10 AND cancel_requested_at IS NOT NULL";
        Box::pin(async move {
            let read = self.connections.read(async |connection| {
                sqlx::query_scalar(REQUESTS).bind(epoch.as_number()).fetch_all(connection).await
            });
            read.await?.into_iter().map(task_id).collect()
        })
    }

    fn sweep<'a>(&'a self, now: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept> {
        Box::pin(async move {
            self.connections.transaction(async |connection| sweep(connection, now, retention).await).await
        })
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            self.connections.close().await;
            Ok(())
        })
    }
}
