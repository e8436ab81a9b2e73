use std::{sync::Arc, time::Duration};

use riverqueue::{
    Client, ClientBuilder, Error,
    migrate::SqliteMigrator,
    sqlx::{
        self, Row, SqliteConnection,
        sqlite::{Sqlite as SqliteDriver, SqlitePoolOptions, SqliteSynchronous},
    },
};

use super::recovery::{
    EXPLAIN_LOSS, LOST_CLASS, LOST_MESSAGE, LostJob, MAX_IMMEDIATE_DELAY, MAX_RECOVERY_BATCH, WRITE_PROGRESS,
    check_river_version, millis,
};
use crate::{
    Record, StoreError,
    jobs::{
        Backoff,
        error::river_error,
        insert::{Inserted, Prepared, Transaction, batch, record_of, required, sealed},
        progress::ProgressUpdate,
        running::Claim,
    },
    store::sql::{
        row::{Values, columns, read_columns, record},
        sqlite::{Sqlite, connection::write_options, write::bind},
        store_error,
    },
};

type SqliteTransaction<'a> = sqlx::Transaction<'a, SqliteDriver>;

/// Jobs on SQLite. The process that has locked the file is the only one, so there are no leases.
pub(in crate::jobs) struct SqliteJobs(pub(super) Arc<Sqlite>);

/// Maximum number of connections of the River client.
const MAX_CONNECTIONS: u32 = 4;

impl SqliteJobs {
    pub(super) async fn transaction<T, E: From<sqlx::Error>>(
        &self,
        change: impl AsyncFnOnce(&mut SqliteTransaction<'_>) -> Result<T, E>,
    ) -> Result<Result<T, E>, StoreError> {
        self.0.lock_writer().await?.begin(change).await
    }

    pub(super) async fn read<T>(
        &self,
        query: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let mut connection = self.0.readers.acquire().await.map_err(store_error)?;
        query(&mut connection).await.map_err(store_error)
    }

    pub(super) fn lease(&self) -> Option<Duration> {
        None
    }

    /// SQLite serializes transactions, so they do not conflict.
    pub(super) fn is_conflict(&self, _: &sqlx::Error) -> bool {
        false
    }

    /// Migrates the schema, recovers all running jobs, since no other process can be working on
    /// them, and returns a builder for a River client.
    pub(super) async fn connect(&self, _: &str, backoff: Backoff) -> Result<ClientBuilder, StoreError> {
        let path = self.0.lock_writer().await?.path.clone();
        // A power failure may lose River's last changes. Then a job runs again, but no job is lost:
        // the store inserts jobs, and it syncs each commit.
        let options = write_options(&path).synchronous(SqliteSynchronous::Normal);
        let pool = SqlitePoolOptions::new().max_connections(MAX_CONNECTIONS).idle_timeout(None).max_lifetime(None);
        let pool = pool.connect_with(options).await.map_err(store_error)?;
        SqliteMigrator::new(pool.clone()).migrate_up().await.map_err(StoreError::other)?;
        self.install().await?;
        self.recover(None, backoff).await?;
        Ok(Client::builder(pool))
    }

    async fn install(&self) -> Result<(), StoreError> {
        const VERSION: &str = "SELECT coalesce(max(version), 0) FROM river_migration WHERE line = 'main'";
        const IS_INSTALLED: &str =
            "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name = 'tower_offload_deleted_1')";
        let installed = self.transaction(async |transaction| {
            let version: i64 = sqlx::query_scalar(VERSION).fetch_one(&mut **transaction).await?;
            let is_installed: bool = sqlx::query_scalar(IS_INSTALLED).fetch_one(&mut **transaction).await?;
            let supported = check_river_version(version);
            if supported.is_ok() && !is_installed {
                sqlx::raw_sql(include_str!("sqlite.sql")).execute(&mut **transaction).await?;
            }
            Ok(supported)
        });
        installed.await?.map_err(store_error)?
    }

    pub(super) async fn insert(
        &self,
        client: &Client,
        jobs: &[&Prepared],
    ) -> Result<Result<Vec<Inserted>, Error>, StoreError> {
        self.transaction(async |transaction| insert(transaction, client, jobs).await).await
    }

    pub(super) async fn insert_records(
        &self,
        transaction: &mut SqliteTransaction<'_>,
        rows: &[(i64, &Record)],
    ) -> Result<(), sqlx::Error> {
        insert_records(transaction, rows).await
    }

    pub(super) async fn find_record(
        &self,
        transaction: &mut SqliteTransaction<'_>,
        river_id: i64,
    ) -> Result<Option<Result<Record, StoreError>>, sqlx::Error> {
        find_record(transaction, river_id).await
    }

    pub(super) async fn begin_lease(&self, _: &str, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    pub(super) async fn renew_lease(&self, _: &str) -> Result<bool, StoreError> {
        Ok(true)
    }

    pub(super) async fn end_lease(&self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    pub(super) async fn write_progress(&self, updates: &[ProgressUpdate]) -> Result<(), StoreError> {
        let written = self.transaction(async |transaction| {
            for update in updates {
                let write = sqlx::query(WRITE_PROGRESS).bind(&update.id.as_bytes()[..]).bind(update.attempt);
                write.bind(update.progress).bind(&update.message).execute(&mut **transaction).await?;
            }
            Ok(())
        });
        written.await?.map_err(store_error)
    }

    pub(super) async fn recover(&self, _: Option<&str>, backoff: Backoff) -> Result<(), StoreError> {
        loop {
            let recovered = self.transaction(async |transaction| recover_batch(transaction, backoff).await);
            if recovered.await?.map_err(river_error)? < MAX_RECOVERY_BATCH {
                return Ok(());
            }
        }
    }

    pub(super) async fn claims(&self, client: &str) -> Result<Vec<Claim>, StoreError> {
        const CLAIMS: &str =
            "SELECT id, attempt FROM river_job WHERE state = 'running' AND attempted_by ->> '$[#-1]' = $1";
        let read = self.read(async |connection| {
            let rows = sqlx::query(CLAIMS).bind(client).fetch_all(connection).await?;
            rows.iter().map(|row| Ok(Claim { river_id: row.try_get(0)?, attempt: row.try_get(1)? })).collect()
        });
        read.await
    }

    pub(super) async fn requeue(&self, claims: &[Claim], _: &str, backoff: Backoff) -> Result<(), StoreError> {
        let requeued = self.transaction(async |transaction| {
            for claim in claims {
                recover_job(transaction, &LostJob::of_claim(claim), backoff).await?;
            }
            Ok(())
        });
        requeued.await?.map_err(river_error)
    }
}

impl Transaction for SqliteTransaction<'_> {}

#[expect(private_interfaces, reason = "the trait is sealed")]
impl sealed::Sealed for SqliteTransaction<'_> {
    fn insert<'a>(&'a mut self, client: &'a Client, jobs: &'a [&'a Prepared]) -> sealed::Insertion<'a> {
        Box::pin(insert(self, client, jobs))
    }
}

async fn insert(
    transaction: &mut SqliteTransaction<'_>,
    client: &Client,
    jobs: &[&Prepared],
) -> Result<Vec<Inserted>, Error> {
    let results = client.insert_batch(batch(jobs)?).tx(&mut *transaction).await?;
    let records: Vec<_> = results.iter().zip(jobs).map(|(result, job)| record_of(result, job)).collect();
    let rows: Vec<_> = results.iter().zip(&records).map(|(result, record)| (result.id(), record)).collect();
    insert_records(transaction, &rows).await?;
    let mut inserted = Vec::with_capacity(jobs.len());
    for (result, record) in results.iter().zip(records) {
        let is_duplicate = result.unique_skipped_as_duplicate;
        let record = if is_duplicate { required(find_record(transaction, result.id()).await?)? } else { record };
        inserted.push(Inserted { record, is_duplicate });
    }
    Ok(inserted)
}

/// Inserts records of jobs. A job that has a record keeps it.
async fn insert_records(connection: &mut SqliteConnection, rows: &[(i64, &Record)]) -> Result<(), sqlx::Error> {
    const INSERT: &str = concat!(
        "INSERT INTO tower_offload_task (epoch, river_id, ",
        columns!(),
        ") VALUES (0, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) \
         ON CONFLICT (river_id) DO NOTHING"
    );
    for (river_id, record) in rows {
        bind(sqlx::query(INSERT).bind(river_id), &Values::from(*record)).execute(&mut *connection).await?;
    }
    Ok(())
}

async fn find_record(
    connection: &mut SqliteConnection,
    river_id: i64,
) -> Result<Option<Result<Record, StoreError>>, sqlx::Error> {
    const FIND: &str = concat!("SELECT ", read_columns!(), " FROM tower_offload_task WHERE river_id = $1");
    let row = sqlx::query(FIND).bind(river_id).fetch_optional(connection).await?;
    Ok(row.as_ref().map(record))
}

const FIND_LOST: &str = "
SELECT id, attempt, coalesce(metadata ->> '$.\"tower_offload:lost\"', 0) FROM river_job WHERE state = 'running' ORDER BY id LIMIT $1";
/// Requeues or ends a job, unless it has left the attempt that was found. The attempt stays
/// counted, so a job that crashes its process ends after `max_attempts`.
const RECOVER: &str = "
UPDATE river_job SET
    state = CASE WHEN metadata -> '$.cancel_attempted_at' IS NOT NULL THEN 'cancelled' WHEN attempt >= max_attempts THEN 'discarded'
        WHEN $1 <= $5 THEN 'available' ELSE 'retryable' END,
    finalized_at = CASE WHEN metadata -> '$.cancel_attempted_at' IS NOT NULL OR attempt >= max_attempts
        THEN strftime('%Y-%m-%d %H:%M:%f', 'now') END,
    scheduled_at = CASE WHEN metadata -> '$.cancel_attempted_at' IS NOT NULL OR attempt >= max_attempts THEN scheduled_at
        ELSE strftime('%Y-%m-%d %H:%M:%f', 'now', printf('+%.3f seconds', $1 / 1000.0)) END,
    errors = jsonb_insert(coalesce(errors, jsonb('[]')), '$[#]',
        jsonb_object('at', strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), 'attempt', attempt, 'error', $4, 'trace', '')),
    metadata = jsonb_set(metadata, '$.\"tower_offload:lost\"', coalesce(metadata ->> '$.\"tower_offload:lost\"', 0) + 1)
WHERE id = $2 AND state = 'running' AND attempt = $3";

/// Recovers a batch of running jobs and returns their number. Also clears the leader, which may be
/// the process that crashed.
async fn recover_batch(transaction: &mut SqliteTransaction<'_>, backoff: Backoff) -> Result<usize, Error> {
    let connection: &mut SqliteConnection = transaction;
    let rows = sqlx::query(FIND_LOST).bind(MAX_RECOVERY_BATCH as i64).fetch_all(&mut *connection).await?;
    for row in &rows {
        let lost = LostJob { river_id: row.try_get(0)?, attempt: row.try_get(1)?, losses: row.try_get(2)? };
        recover_job(connection, &lost, backoff).await?;
    }
    sqlx::query("DELETE FROM river_leader").execute(connection).await?;
    Ok(rows.len())
}

async fn recover_job(connection: &mut SqliteConnection, lost: &LostJob, backoff: Backoff) -> Result<(), Error> {
    let explain = sqlx::query(EXPLAIN_LOSS).bind(lost.river_id).bind(LOST_CLASS).bind(LOST_MESSAGE);
    explain.execute(&mut *connection).await?;
    let recover = sqlx::query(RECOVER).bind(lost.delay_millis(backoff)).bind(lost.river_id).bind(lost.attempt);
    recover.bind(LOST_MESSAGE).bind(millis(MAX_IMMEDIATE_DELAY)).execute(connection).await?;
    Ok(())
}
