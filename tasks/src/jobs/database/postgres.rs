use std::{collections::BTreeSet, sync::Arc, time::Duration};

use riverqueue::{
    Client, ClientBuilder, Error,
    migrate::PostgresMigrator,
    sqlx::{self, PgConnection, PgPool, Row, postgres::Postgres as PostgresDriver},
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
        postgres::{
            Postgres,
            columns::{bind, input},
            connection::{Role, TransactionError, is_conflict},
            lease::{lock_expired, renew_lease},
        },
        row::{columns, read_columns, record},
        store_error,
    },
};

type PgTransaction<'a> = sqlx::Transaction<'a, PostgresDriver>;

/// Jobs on Postgres, which many processes share. Each client has a lease.
pub(in crate::jobs) struct PostgresJobs(pub(super) Arc<Postgres>);

/// Maximum number of connections of a River client: for claims, completions and its listener.
/// Records are written by the connections of the store.
const MAX_CONNECTIONS: u32 = 8;

impl PostgresJobs {
    pub(super) async fn transaction<T, E: TransactionError>(
        &self,
        change: impl AsyncFnOnce(&mut PgTransaction<'_>) -> Result<T, E>,
    ) -> Result<Result<T, E>, StoreError> {
        self.0.connections.begin(Role::Maintenance, change).await
    }

    pub(super) async fn read<T>(
        &self,
        query: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        self.0.connections.read(Role::Maintenance, query).await
    }

    pub(super) fn lease(&self) -> Option<Duration> {
        Some(self.0.lease)
    }

    pub(super) fn is_conflict(&self, error: &sqlx::Error) -> bool {
        is_conflict(error)
    }

    pub(super) async fn connect(&self, client: &str, _: Backoff) -> Result<ClientBuilder, StoreError> {
        // Identifies the client of a connection for the fence trigger.
        let prepare = format!("SET tower_offload.client = '{client}'");
        let pool = self.0.connections.pool(MAX_CONNECTIONS, &prepare);
        self.migrate(&pool).await?;
        Ok(Client::builder(pool))
    }

    /// Migrates River's tables and installs the triggers. A lock serializes processes that start at
    /// the same time.
    async fn migrate(&self, pool: &PgPool) -> Result<(), StoreError> {
        const LOCK: i64 = 8_388_076_842_114;
        let migrate = async {
            PostgresMigrator::new(pool.clone()).migrate_up().await.map_err(StoreError::other)?;
            self.install().await
        };
        self.0.connections.with_migration_lock(LOCK, migrate).await
    }

    async fn install(&self) -> Result<(), StoreError> {
        const VERSION: &str = "SELECT coalesce(max(version), 0) FROM river_migration WHERE line = 'main'";
        const IS_INSTALLED: &str = "
SELECT EXISTS (SELECT 1 FROM pg_trigger WHERE tgname = 'tower_offload_deleted_1' AND tgrelid = to_regclass('river_job'))";
        let installed = self.transaction(async |transaction| {
            let version: i64 = sqlx::query_scalar(VERSION).fetch_one(&mut **transaction).await?;
            let is_installed: bool = sqlx::query_scalar(IS_INSTALLED).fetch_one(&mut **transaction).await?;
            let supported = check_river_version(version);
            if supported.is_ok() && !is_installed {
                sqlx::raw_sql(include_str!("postgres.sql")).execute(&mut **transaction).await?;
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
        transaction: &mut PgTransaction<'_>,
        rows: &[(i64, &Record)],
    ) -> Result<(), sqlx::Error> {
        insert_records(transaction, rows).await
    }

    pub(super) async fn find_record(
        &self,
        transaction: &mut PgTransaction<'_>,
        river_id: i64,
    ) -> Result<Option<Result<Record, StoreError>>, sqlx::Error> {
        find_record(transaction, river_id).await
    }

    pub(super) async fn begin_lease(&self, client: &str, process: &str) -> Result<(), StoreError> {
        const BEGIN: &str = "
INSERT INTO tower_offload_client (id, name, expires_at) VALUES ($1, $2, clock_timestamp() + $3 * interval '1 millisecond')";
        let process = process.replace('\0', "\u{fffd}");
        let begin = self.0.connections.transaction(Role::Lease, async |connection| {
            let begin = sqlx::query(BEGIN).bind(client).bind(&process).bind(self.0.lease_millis());
            begin.execute(connection).await
        });
        begin.await.map(drop)
    }

    pub(super) async fn renew_lease(&self, client: &str) -> Result<bool, StoreError> {
        const RENEW: &str = renew_lease!("tower_offload_client", "id");
        let renew = sqlx::query(RENEW).bind(client).bind(self.0.lease_millis());
        let renewed = self.0.connections.read(Role::Lease, async |connection| renew.execute(connection).await).await?;
        Ok(renewed.rows_affected() > 0)
    }

    pub(super) async fn end_lease(&self, client: &str) -> Result<(), StoreError> {
        const END: &str = "DELETE FROM tower_offload_client WHERE id = $1";
        let end = self
            .0
            .connections
            .transaction(Role::Lease, async |connection| sqlx::query(END).bind(client).execute(connection).await);
        end.await.map(drop)
    }

    /// Writes each row in a transaction of its own. River completes many jobs in one statement, and
    /// two statements that lock the same rows in different orders could deadlock.
    pub(super) async fn write_progress(&self, updates: &[ProgressUpdate]) -> Result<(), StoreError> {
        for update in updates {
            let write = sqlx::query(WRITE_PROGRESS).bind(&update.id.as_bytes()[..]).bind(update.attempt);
            let write = write.bind(update.progress).bind(&update.message);
            self.read(async |connection| write.execute(connection).await).await?;
        }
        Ok(())
    }

    pub(super) async fn recover(&self, judge: Option<&str>, backoff: Backoff) -> Result<(), StoreError> {
        let lease = self.0.lease_millis();
        loop {
            let recover = async |transaction: &mut PgTransaction<'_>| {
                let expired = match judge {
                    Some(client) => lock_expired(transaction, client, lease).await?,
                    None => Vec::new(),
                };
                recover_batch(transaction, &expired, backoff).await
            };
            let recovered = self.transaction(recover);
            if recovered.await?.map_err(river_error)? < MAX_RECOVERY_BATCH {
                return Ok(());
            }
        }
    }

    pub(super) async fn claims(&self, client: &str) -> Result<Vec<Claim>, StoreError> {
        const CLAIMS: &str = "
SELECT id, attempt FROM river_job WHERE state = 'running' AND attempted_by[array_upper(attempted_by, 1)] = $1";
        let read = self.read(async |connection| {
            let rows = sqlx::query(CLAIMS).bind(client).fetch_all(connection).await?;
            rows.iter().map(|row| Ok(Claim { river_id: row.try_get(0)?, attempt: row.try_get(1)? })).collect()
        });
        read.await
    }

    pub(super) async fn requeue(&self, claims: &[Claim], client: &str, backoff: Backoff) -> Result<(), StoreError> {
        let requeued = self.transaction(async |transaction| {
            let mut queues = BTreeSet::new();
            for claim in claims {
                queues.extend(recover_job(transaction, &LostJob::of_claim(claim), client, backoff).await?);
            }
            notify(transaction, queues).await
        });
        requeued.await?.map_err(river_error)
    }
}

impl Transaction for PgTransaction<'_> {}

#[expect(private_interfaces, reason = "the trait is sealed")]
impl sealed::Sealed for PgTransaction<'_> {
    fn insert<'a>(&'a mut self, client: &'a Client, jobs: &'a [&'a Prepared]) -> sealed::Insertion<'a> {
        Box::pin(insert(self, client, jobs))
    }
}

async fn insert(
    transaction: &mut PgTransaction<'_>,
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
async fn insert_records(connection: &mut PgConnection, rows: &[(i64, &Record)]) -> Result<(), sqlx::Error> {
    const INSERT: &str = concat!(
        "INSERT INTO tower_offload_task (epoch, river_id, ",
        columns!(),
        ") SELECT 0, job.river_id, ",
        columns!(),
        " FROM ",
        input!(),
        " JOIN unnest($1::bigint[], $2::bytea[]) AS job(river_id, task_id) ON job.task_id = input.id \
         ON CONFLICT (river_id) DO NOTHING"
    );
    let (jobs, records): (Vec<_>, Vec<_>) = rows.iter().copied().unzip();
    bind(sqlx::query(INSERT).bind(jobs), &records).execute(connection).await?;
    Ok(())
}

async fn find_record(
    connection: &mut PgConnection,
    river_id: i64,
) -> Result<Option<Result<Record, StoreError>>, sqlx::Error> {
    const FIND: &str = concat!("SELECT ", read_columns!(), " FROM tower_offload_task WHERE river_id = $1");
    let row = sqlx::query(FIND).bind(river_id).fetch_optional(connection).await?;
    Ok(row.as_ref().map(record))
}

/// Locks running jobs of expired clients and of clients without a row. A client without a row
/// claimed its job while it was being recovered.
const FIND_LOST: &str = "
SELECT job.id, job.attempt, coalesce((job.metadata ->> 'tower_offload:lost')::bigint, 0),
    job.attempted_by[array_upper(job.attempted_by, 1)] FROM river_job AS job
LEFT JOIN tower_offload_client AS client ON client.id = job.attempted_by[array_upper(job.attempted_by, 1)]
WHERE job.state = 'running' AND job.attempted_by[array_upper(job.attempted_by, 1)] LIKE 'to-%'
    AND (client.id IS NULL OR client.id = ANY($2))
ORDER BY job.id LIMIT $1 FOR UPDATE OF job SKIP LOCKED";
/// Requeues or ends a job, unless it has left the attempt that was found. The attempt stays
/// counted, so a job that crashes its process ends after `max_attempts`.
const RECOVER: &str = "
UPDATE river_job AS job SET
    state = CASE WHEN job.metadata ? 'cancel_attempted_at' THEN 'cancelled' WHEN job.attempt >= job.max_attempts THEN 'discarded'
        WHEN $1::bigint <= $5::bigint THEN 'available' ELSE 'retryable' END::river_job_state,
    finalized_at = CASE WHEN job.metadata ? 'cancel_attempted_at' OR job.attempt >= job.max_attempts THEN clock_timestamp() END,
    scheduled_at = CASE WHEN job.metadata ? 'cancel_attempted_at' OR job.attempt >= job.max_attempts THEN job.scheduled_at
        ELSE clock_timestamp() + $1::bigint * interval '1 millisecond' END,
    errors = array_append(coalesce(job.errors, '{}'), jsonb_build_object(
        'at', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
        'attempt', job.attempt, 'error', $4::text, 'trace', '')),
    metadata = job.metadata || jsonb_build_object('tower_offload:lost', coalesce((job.metadata ->> 'tower_offload:lost')::bigint, 0) + 1)
WHERE job.id = $2 AND job.state = 'running' AND job.attempt = $3 AND job.attempted_by[array_upper(job.attempted_by, 1)] = $6
RETURNING job.queue";
const NOTIFY: &str = "
SELECT pg_notify(concat(current_schema(), '.river_insert'), json_build_object('queue', $1::text)::text)";
const DELETE_CLIENTS: &str = "DELETE FROM tower_offload_client WHERE id = ANY($1)";

/// Locks the clients whose lease has expired, if the client `judge` may judge them.
async fn lock_expired(
    connection: &mut PgConnection,
    judge: &str,
    lease_millis: i64,
) -> Result<Vec<String>, sqlx::Error> {
    const LOCK_EXPIRED: &str = lock_expired!("tower_offload_client", "id");
    sqlx::query_scalar(LOCK_EXPIRED).bind(judge).bind(lease_millis).fetch_all(connection).await
}

/// Recovers a batch of jobs and returns their number. Expired clients are deleted with the last
/// batch, so a client that has a row has lost no jobs.
async fn recover_batch(
    transaction: &mut PgTransaction<'_>,
    expired: &[String],
    backoff: Backoff,
) -> Result<usize, Error> {
    let connection: &mut PgConnection = transaction;
    let find = sqlx::query(FIND_LOST).bind(MAX_RECOVERY_BATCH as i64).bind(expired);
    let rows = find.fetch_all(&mut *connection).await?;
    let mut queues = BTreeSet::new();
    for row in &rows {
        let lost = LostJob { river_id: row.try_get(0)?, attempt: row.try_get(1)?, losses: row.try_get(2)? };
        queues.extend(recover_job(connection, &lost, row.try_get(3)?, backoff).await?);
    }
    notify(connection, queues).await?;
    if rows.len() < MAX_RECOVERY_BATCH {
        sqlx::query(DELETE_CLIENTS).bind(expired).execute(connection).await?;
    }
    Ok(rows.len())
}

/// Recovers a job, and returns its queue unless the job has changed in between.
async fn recover_job(
    connection: &mut PgConnection,
    lost: &LostJob,
    client: &str,
    backoff: Backoff,
) -> Result<Option<String>, Error> {
    let explain = sqlx::query(EXPLAIN_LOSS).bind(lost.river_id).bind(LOST_CLASS).bind(LOST_MESSAGE);
    explain.execute(&mut *connection).await?;
    let recover = sqlx::query_scalar(RECOVER).bind(lost.delay_millis(backoff)).bind(lost.river_id).bind(lost.attempt);
    let recover = recover.bind(LOST_MESSAGE).bind(millis(MAX_IMMEDIATE_DELAY)).bind(client);
    Ok(recover.fetch_optional(connection).await?)
}

/// Notifies the clients of these queues, like River does when it inserts jobs.
async fn notify(connection: &mut PgConnection, queues: BTreeSet<String>) -> Result<(), Error> {
    for queue in queues {
        sqlx::query(NOTIFY).bind(queue).execute(&mut *connection).await?;
    }
    Ok(())
}
