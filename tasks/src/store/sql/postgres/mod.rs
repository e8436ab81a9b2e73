//! Postgres: one database, many processes, and the server's clock for their leases.

pub(crate) mod columns;
pub(crate) mod connection;
pub(crate) mod lease;
pub(crate) mod migrate;
mod pool;
mod schema;
pub(crate) mod schema_name;
mod server;
mod session;
mod sweep;
mod url;
mod write;

use std::time::Duration;

use sqlx::{PgConnection, Row};

use self::{
    connection::{Connections, Role},
    lease::{BEGIN, END, RENEW, end_expired, lose_batch},
    sweep::sweep,
    write::{lock_writes, write},
};
use crate::{
    StoreError, TaskId, TaskStore, Timestamp,
    lease::RENEWALS,
    store::{
        Epoch, Filter, Found, Lease, Listing, Op, Page, Process, Retention, StoreFuture, Summary, Swept, Written,
        sql::{
            builder::{Settings, Source},
            found_many,
            list::{Dialect, ListQuery, queries},
            listing,
            row::{id_of, integer, millis, read_columns, record, task_id},
            summary::{COUNTED, SAMPLED, SAMPLES, counts, summary},
        },
    },
};

/// A database that many processes use. Each has a row with its lease.
pub(crate) struct Postgres {
    pub(crate) connections: Connections,
    /// Duration of leases, at least a millisecond and at most [`MAX_LEASE`].
    pub(crate) lease: Duration,
    /// `false` if a job queue must not change the schema either.
    #[cfg_attr(not(feature = "river"), allow(dead_code, reason = "for job queues"))]
    pub(crate) migrates: bool,
}

const DIALECT: Dialect = Dialect { position: "strpos", collation: " COLLATE \"C\"" };
/// Maximum duration of a lease: a year, which Postgres can add to the current time.
const MAX_LEASE: Duration = Duration::from_secs(365 * 24 * 3600);

impl Postgres {
    pub(super) async fn open(source: Source, settings: Settings) -> Result<Self, StoreError> {
        let lease = settings.lease.clamp(Duration::from_millis(1), MAX_LEASE);
        let connections = Connections::open(source, &settings, lease).await?;
        connections.migrate(settings.migrate).await?;
        Ok(Self { connections, lease, migrates: settings.migrate })
    }

    pub(super) async fn close(&self) -> Result<(), StoreError> {
        self.connections.close().await;
        Ok(())
    }

    /// Marks the records of epochs that have ended as lost.
    async fn lose_records(&self) -> Result<u64, StoreError> {
        let mut total = 0;
        loop {
            let batch =
                self.connections.transaction(Role::Maintenance, async |connection| lose_batch(connection).await);
            let (lost, has_more) = batch.await?;
            total += lost;
            if !has_more {
                return Ok(total);
            }
        }
    }

    pub(crate) fn lease_millis(&self) -> i64 {
        integer(u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX))
    }
}

impl TaskStore for Postgres {
    fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease> {
        Box::pin(async move {
            let name = process.name.replace('\0', "\u{fffd}");
            let begin = sqlx::query_scalar::<_, i64>(BEGIN).bind(name).bind(millis(process.started_at));
            let begin = begin.bind(self.lease_millis());
            let epoch =
                self.connections.read(Role::Lease, async |connection| begin.fetch_one(connection).await).await?;
            Ok(Lease::renewed_every(Epoch::from(epoch), self.lease / RENEWALS))
        })
    }

    fn renew(&self, epoch: Epoch) -> StoreFuture<'_, bool> {
        Box::pin(async move {
            let renew = sqlx::query(RENEW).bind(i64::from(epoch)).bind(self.lease_millis());
            let renewed =
                self.connections.read(Role::Lease, async |connection| renew.execute(connection).await).await?;
            Ok(renewed.rows_affected() > 0)
        })
    }

    fn end(&self, epoch: Epoch, _: Timestamp) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let end = sqlx::query(END).bind(i64::from(epoch));
            let ended = self.connections.read(Role::Lease, async |connection| end.execute(connection).await).await?;
            if ended.rows_affected() > 0 {
                self.lose_records().await?;
            }
            Ok(())
        })
    }

    fn mark_lost(&self, epoch: Epoch, _: Timestamp) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            let (own, lease) = (i64::from(epoch), self.lease_millis());
            let end = self
                .connections
                .transaction(Role::Maintenance, async |connection| end_expired(connection, own, lease).await);
            end.await?;
            self.lose_records().await
        })
    }

    fn write<'a>(&'a self, epoch: Epoch, batch: &'a [Op]) -> StoreFuture<'a, Vec<Written>> {
        Box::pin(async move {
            let change = async |connection: &mut PgConnection| write(connection, epoch, batch).await;
            self.connections.transaction_after(&lock_writes(epoch), Role::Write, change).await
        })
    }

    fn get(&self, id: TaskId) -> StoreFuture<'_, Found> {
        // One statement, because clients may ask for any number of unknown ids.
        const GET: &str = concat!(
            "SELECT ",
            read_columns!(),
            ", tombstone IS NOT NULL AS is_evicted, last_owner FROM (VALUES ($1::bytea)) AS input(wanted) \
             LEFT JOIN tower_offload_task ON id = wanted \
             LEFT JOIN (SELECT id AS tombstone, owner AS last_owner FROM tower_offload_tombstone) AS evicted ON tombstone = wanted"
        );
        Box::pin(async move {
            let read = self.connections.read(Role::Read, async |connection| {
                let row = sqlx::query(GET).bind(&id.as_bytes()[..]).fetch_one(connection).await?;
                if row.try_get::<Option<&[u8]>, _>(0)?.is_some() {
                    return Ok(record(&row).map(|record| Found::Record(Box::new(record))));
                }
                let is_evicted = row.try_get("is_evicted")?;
                Ok(Ok(if is_evicted { Found::Evicted { owner: row.try_get("last_owner")? } } else { Found::Unknown }))
            });
            read.await?
        })
    }

    fn get_many<'a>(&'a self, ids: &'a [TaskId]) -> StoreFuture<'a, Vec<Found>> {
        const RECORDS: &str = concat!("SELECT ", read_columns!(), " FROM tower_offload_task WHERE id = ANY($1)");
        Box::pin(async move {
            let bytes: Vec<_> = ids.iter().map(|id| &id.as_bytes()[..]).collect();
            // Not of the role of reads: any number of clients may wait for its connections.
            let read = self.connections.read(Role::Maintenance, async |connection| {
                sqlx::query(RECORDS).bind(bytes).fetch_all(connection).await
            });
            Ok(found_many(ids, read.await?.iter().map(record)))
        })
    }

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        Box::pin(async move {
            let Some(ListQuery { mut records, end }) = queries(filter, page, &DIALECT) else {
                return Ok(Listing::default());
            };
            let read = self.connections.read(Role::Read, async |connection| {
                let rows = records.build().fetch_all(&mut *connection).await?;
                let end = match end {
                    Some(mut end) if rows.len() <= page.clamped().limit => {
                        end.build_query_scalar().fetch_optional(connection).await?
                    }
                    _ => None,
                };
                Ok((rows, end))
            });
            let (rows, end) = read.await?;
            listing(rows.iter().map(|row| (id_of(row), record(row))), page, end)
        })
    }

    fn summary(&self, _: Timestamp) -> StoreFuture<'_, Summary> {
        const NOW: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
        const COUNTS: &str = counts!("greatest");
        Box::pin(async move {
            // It can take seconds, and the role of maintenance also inserts jobs. One summary at a time
            // leaves two connections to the clients.
            let read = self.connections.read(Role::Read, async |connection| {
                let now: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *connection).await?;
                let counts = sqlx::query(COUNTS).bind(now).bind(COUNTED).fetch_all(&mut *connection).await?;
                let samples = sqlx::query(SAMPLES).bind(COUNTED).bind(SAMPLED).fetch_all(connection).await?;
                Ok((now, counts, samples))
            });
            let (now, counts, samples) = read.await?;
            summary(&counts, &samples, Timestamp::from_millis(u64::try_from(now).unwrap_or_default()))
        })
    }

    fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>> {
        const REQUESTS: &str =
            "SELECT id FROM tower_offload_task WHERE epoch = $1 AND state < 10 AND cancel_requested_at IS NOT NULL";
        Box::pin(async move {
            let read = self.connections.read(Role::Maintenance, async |connection| {
                sqlx::query_scalar(REQUESTS).bind(i64::from(epoch)).fetch_all(connection).await
            });
            read.await?.into_iter().map(task_id).collect()
        })
    }

    fn sweep<'a>(&'a self, _: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept> {
        Box::pin(async move {
            self.connections.transaction(Role::Maintenance, async |connection| sweep(connection, retention).await).await
        })
    }
}
