pub(in crate::jobs) mod install;
mod recover;

use std::{sync::Arc, time::Duration};

use riverqueue::{
    Client, ClientBuilder, Error,
    sqlx::{
        self, PgConnection, PgPool, Row,
        postgres::{PgListener, Postgres as PostgresDriver},
    },
};

use tokio::time::timeout;

use super::{
    Database, Unserved,
    recovery::{MAX_IMMEDIATE_DELAY, RowEnd, WRITE_PROGRESS, millis},
    sequences::postgres::RETRY_SKIPPED,
};
use crate::{
    Json, Record, StoreError,
    jobs::{
        Backoff,
        error::{InsertError, river_error},
        insert::{Inserted, Prepared, Transaction, batch, check_inserted, new_jobs, record_of, required, sealed},
        outcome::End,
        progress::ProgressUpdate,
        queue::Environment,
        running::Claim,
        schedule::run::{Advance, ScheduleState},
    },
    store::sql::{
        postgres::{
            Postgres,
            columns::{bind, input},
            connection::{Role, TransactionError, is_conflict},
            lease::renew_lease,
            schema_name::Schema,
        },
        row::{columns, read_columns, record},
        store_error,
    },
    sync::{Mutex, lock},
};

type PgTransaction<'a> = sqlx::Transaction<'a, PostgresDriver>;

/// Jobs on Postgres, which many processes share. Each client has a lease.
pub(in crate::jobs) struct PostgresJobs {
    postgres: Arc<Postgres>,
    /// The tables of this queue, once they are known.
    tables: Mutex<Option<Tables>>,
}

/// Identifies the tables that a connection finds in the schema of the store, or in its search path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tables {
    database: String,
    jobs: Option<i64>,
    records: Option<i64>,
    /// Differs between servers, but not between a primary and its standbys. Without it, the tables
    /// of two servers could look alike, since each numbers them from the same number. `None` if the
    /// role may not read it.
    system: Option<i64>,
}

/// Of the tables `$1` and `$2`. The last column is the search path.
const TABLES: &str = "
SELECT current_database()::text, to_regclass($1)::oid::bigint, to_regclass($2)::oid::bigint,
    CASE WHEN has_function_privilege('pg_control_system()', 'EXECUTE') THEN (SELECT system_identifier FROM pg_control_system()) END,
    current_setting('search_path')";

impl Tables {
    /// Returns the tables that the connection finds, and its search path.
    async fn of(connection: &mut PgConnection, schema: &Schema) -> Result<(Self, String), sqlx::Error> {
        let tables = sqlx::query(TABLES).bind(schema.qualify("river_job")).bind(schema.qualify("tower_offload_task"));
        let row = tables.fetch_one(connection).await?;
        let (database, jobs, records) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        Ok((Self { database, jobs, records, system: row.try_get(3)? }, row.try_get(4)?))
    }

    /// Returns `true` if these are the same tables. A role that may not read the identifier of the
    /// server does not differ by it.
    fn is(&self, other: &Self) -> bool {
        let is_one_server = match (self.system, other.system) {
            (Some(own), Some(other)) => own == other,
            _ => true,
        };
        let tables = |tables: &Self| (tables.database.clone(), tables.jobs, tables.records);
        is_one_server && tables(self) == tables(other)
    }
}

impl PostgresJobs {
    pub(super) fn new(postgres: Arc<Postgres>) -> Self {
        Self { postgres, tables: Mutex::new(None) }
    }

    pub(super) async fn transaction<T, E: TransactionError>(
        &self,
        change: impl AsyncFnOnce(&mut PgTransaction<'_>) -> Result<T, E>,
    ) -> Result<Result<T, E>, StoreError> {
        self.postgres.connections.begin(Role::Maintenance, change).await
    }

    pub(super) async fn read<T>(
        &self,
        query: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        self.postgres.connections.read(Role::Maintenance, query).await
    }

    pub(super) fn lease(&self) -> Option<Duration> {
        Some(self.postgres.lease)
    }

    pub(super) fn is_conflict(&self, error: &sqlx::Error) -> bool {
        is_conflict(error)
    }

    /// Returns an error if the transaction of an application finds other tables than this queue. A
    /// job in these would never run. Otherwise returns its search path.
    async fn check_tables(&self, transaction: &mut PgTransaction<'_>) -> Result<String, InsertError> {
        let schema = self.postgres.connections.schema();
        let (found, path) = Tables::of(transaction, schema).await.map_err(Error::Database)?;
        let known = lock(&self.tables).clone();
        if known.is_some_and(|known| known.is(&found)) {
            return Ok(path);
        }
        let (own, _) = self.read(async |connection| Tables::of(connection, schema).await).await?;
        *lock(&self.tables) = Some(own.clone());
        if own.is(&found) {
            return Ok(path);
        }
        let Tables { database, jobs, .. } = &found;
        let message = if *database != own.database {
            format!("the transaction belongs to database {database:?}, the task store to {:?}", own.database)
        } else if found.system.is_some() && own.system.is_some() && found.system != own.system {
            format!("the transaction belongs to another server than the task store, with a database {database:?}, too")
        } else {
            let which = if jobs.is_some() { "another" } else { "no" };
            format!(
                "the search path of the transaction finds {which} `river_job`: use the search path of the connections \
                 of the task store, or name the schema with `SqlStoreBuilder::schema`"
            )
        };
        Err(InsertError::Invalid(message))
    }

    /// Inserts jobs in the transaction of an application. If the schema is named, the transaction
    /// uses it meanwhile. An error leaves it so, and the application rolls back.
    async fn insert_in(
        &self,
        transaction: &mut PgTransaction<'_>,
        client: &Client,
        jobs: &[&Prepared],
    ) -> Result<Vec<Inserted>, InsertError> {
        let path = self.check_tables(transaction).await?;
        if jobs.iter().any(|job| !job.keys.is_empty()) {
            check_isolation(transaction).await?;
        }
        let Some(schema) = self.postgres.connections.schema().quoted() else {
            return Ok(insert(transaction, client, jobs).await?);
        };
        set_search_path(transaction, &schema).await.map_err(Error::Database)?;
        let inserted = insert(transaction, client, jobs).await?;
        set_search_path(transaction, &path).await.map_err(Error::Database)?;
        Ok(inserted)
    }

    /// Locks a job until the end of the transaction. Returns whether it is running, or `None` if it
    /// does not exist, or if another transaction has locked it: that of an application may take any
    /// time, and this one uses a connection of the maintenance.
    pub(super) async fn lock_job(
        &self,
        transaction: &mut PgTransaction<'_>,
        river_id: i64,
    ) -> Result<Option<bool>, sqlx::Error> {
        const LOCK: &str = "SELECT state = 'running' FROM river_job WHERE id = $1 FOR UPDATE SKIP LOCKED";
        sqlx::query_scalar(LOCK).bind(river_id).fetch_optional(&mut **transaction).await
    }

    /// Returns `true` if a lock was not granted in time.
    pub(super) fn is_lock_timeout(&self, error: &sqlx::Error) -> bool {
        error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "55P03")
    }

    pub(super) async fn connect(
        &self,
        client: &str,
        _: &Environment,
        build: impl FnOnce(ClientBuilder) -> Result<Client, Error>,
    ) -> Result<Client, StoreError> {
        // Identifies the client of a connection for the fence trigger.
        let prepare = format!("SET tower_offload.client = '{client}'");
        // For claims and completions. Records are written by the connections of the store.
        let connections = &self.postgres.connections;
        let pool = connections.pool(connections.job_connections, &prepare);
        let migrated = self.migrate(&pool).await;
        let built = migrated.and_then(|()| build(Client::builder(pool.clone())).map_err(river_error));
        if built.is_err() {
            pool.close().await; // otherwise the store holds it
        }
        built
    }

    /// Migrates the schema with a connection of its own.
    pub(super) async fn migrate_alone(&self) -> Result<(), StoreError> {
        let pool = self.postgres.connections.pool(1, "");
        let migrated = self.migrate(&pool).await;
        pool.close().await;
        migrated
    }

    pub(super) async fn insert(
        &self,
        client: &Client,
        jobs: &[&Prepared],
        lock_timeout: Option<Duration>,
    ) -> Result<Result<Vec<Inserted>, Error>, StoreError> {
        const LIMIT: &str = "SELECT set_config('lock_timeout', $1, true)";
        self.transaction(async |transaction| {
            if let Some(timeout) = lock_timeout {
                let limit = sqlx::query(LIMIT).bind(format!("{}ms", timeout.as_millis()));
                limit.execute(&mut **transaction).await?;
            }
            let inserted = insert(transaction, client, jobs).await?;
            if lock_timeout.is_some() && jobs.iter().any(|job| !job.keys.is_empty()) {
                // The commit waits for the locks of their keys.
                sqlx::query("SET LOCAL lock_timeout TO DEFAULT").execute(&mut **transaction).await?;
            }
            Ok(inserted)
        })
        .await
    }

    schedules!("(extract(epoch FROM clock_timestamp()) * 1000)::bigint");

    pub(super) async fn begin_lease(&self, client: &str, process: &str) -> Result<(), StoreError> {
        const BEGIN: &str = "
INSERT INTO tower_offload_client (id, name, expires_at) VALUES ($1, $2, clock_timestamp() + $3 * interval '1 millisecond')";
        let process = process.replace('\0', "\u{fffd}");
        let begin = self.postgres.connections.transaction(Role::Lease, async |connection| {
            let begin = sqlx::query(BEGIN).bind(client).bind(&process).bind(self.postgres.lease_millis());
            let begun = begin.execute(connection).await?.rows_affected();
            check_inserted("tower_offload_client", 1, usize::try_from(begun).unwrap_or(usize::MAX))
        });
        begin.await
    }

    pub(super) async fn renew_lease(&self, client: &str) -> Result<bool, StoreError> {
        const RENEW: &str = renew_lease!("tower_offload_client", "id");
        let renew = sqlx::query(RENEW).bind(client).bind(self.postgres.lease_millis());
        let renewed =
            self.postgres.connections.read(Role::Lease, async |connection| renew.execute(connection).await).await?;
        Ok(renewed.rows_affected() > 0)
    }

    pub(super) async fn end_lease(&self, client: &str) -> Result<(), StoreError> {
        const END: &str = "DELETE FROM tower_offload_client WHERE id = $1";
        let end = self
            .postgres
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

    pub(super) async fn insert_records(
        &self,
        transaction: &mut PgTransaction<'_>,
        rows: &[(i64, &Record)],
    ) -> Result<usize, sqlx::Error> {
        insert_records(transaction, rows).await
    }

    pub(super) async fn find_record(
        &self,
        transaction: &mut PgTransaction<'_>,
        river_id: i64,
    ) -> Result<Option<Result<Record, StoreError>>, sqlx::Error> {
        find_record(transaction, river_id).await
    }

    pub(super) async fn show_as_queued(&self, claim: &Claim) -> Result<(), StoreError> {
        self.read(async |connection| {
            let show = sqlx::query(SHOW_AS_QUEUED).bind(claim.river_id).bind(claim.attempt);
            let show = show.bind(&*claim.client).bind(claim.attempted_at);
            show.execute(connection).await.map(drop)
        })
        .await
    }

    pub(super) async fn show_as_running(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.read(async |connection| {
            let show = sqlx::query_scalar(SHOW_AS_RUNNING).bind(claim.river_id).bind(claim.attempt);
            show.bind(&*claim.client).bind(claim.attempted_at).fetch_one(connection).await
        })
        .await
    }

    pub(super) async fn write_step(&self, claim: &Claim, name: &str, output: &str) -> Result<bool, StoreError> {
        self.read(async |connection| {
            let write = sqlx::query(WRITE_STEP).bind(claim.river_id).bind(claim.attempt).bind(&*claim.client);
            let write = write.bind(claim.attempted_at).bind(name).bind(output);
            Ok(write.execute(connection).await?.rows_affected() > 0)
        })
        .await
    }

    pub(super) async fn write_end(&self, end: &End, backoff: Backoff) -> Result<bool, StoreError> {
        self.read(async |connection| write_end(connection, end, backoff).await).await
    }

    pub(super) async fn write_end_and_insert(
        &self,
        end: &End,
        backoff: Backoff,
        client: &Client,
        jobs: &[&Prepared],
    ) -> Result<Result<bool, Error>, StoreError> {
        self.transaction(async |transaction| {
            let is_written = write_end(transaction, end, backoff).await?;
            if is_written {
                insert(transaction, client, jobs).await?;
            }
            Ok::<_, Error>(is_written)
        })
        .await
    }

    pub(super) async fn claims(&self, clients: &[Arc<str>]) -> Result<Vec<Claim>, StoreError> {
        const CLAIMS: &str = "
SELECT id, attempt, (extract(epoch FROM attempted_at) * 1000000)::bigint, attempted_by[array_upper(attempted_by, 1)] FROM river_job
WHERE state = 'running' AND attempted_by[array_upper(attempted_by, 1)] = ANY($1)";
        let clients: Vec<&str> = clients.iter().map(|client| &**client).collect();
        let read = self.read(async |connection| {
            let rows = sqlx::query(CLAIMS).bind(clients).fetch_all(connection).await?;
            rows.iter()
                .map(|row| {
                    let (river_id, attempt, attempted_at) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                    Ok(Claim { river_id, attempt, attempted_at, client: row.try_get::<&str, _>(3)?.into() })
                })
                .collect()
        });
        read.await
    }

    /// River's leader does the same, but by the clock of its host, and there may be no leader. Also
    /// promotes jobs that were skipped because other transactions had locked them.
    pub(super) async fn make_available(&self) -> Result<(), StoreError> {
        let make = sqlx::query(MAKE_AVAILABLE).bind(millis(MAX_IMMEDIATE_DELAY)).bind(MAX_AVAILABLE_BATCH);
        self.read(async |connection| make.execute(connection).await.map(drop)).await?;
        let retry = sqlx::query(RETRY_SKIPPED).bind(MAX_AVAILABLE_BATCH);
        self.read(async |connection| retry.execute(connection).await.map(drop)).await
    }

    pub(super) async fn unserved(&self) -> Result<Vec<Unserved>, StoreError> {
        let read = self.read(async |connection| {
            let rows = sqlx::query(UNSERVED).fetch_all(connection).await?;
            rows.iter()
                .map(|row| {
                    let (kind, queue) = (row.try_get(0)?, row.try_get(1)?);
                    Ok(Unserved { kind, queue, jobs: row.try_get(2)?, oldest: row.try_get(3)? })
                })
                .collect()
        });
        read.await
    }

    pub(super) async fn listen(&self, notify: impl Fn() + Send) -> Result<(), StoreError> {
        let pool = self.postgres.connections.pool(1, "");
        let listened = listen(&pool, notify).await;
        pool.close().await;
        listened
    }
}

async fn listen(pool: &PgPool, notify: impl Fn() + Send) -> Result<(), StoreError> {
    let mut listener = PgListener::connect_with(pool).await.map_err(store_error)?;
    listener.listen(ENDED).await.map_err(store_error)?;
    loop {
        notify(); // also after a reconnection, since notifications may have been missed
        let Ok(received) = timeout(PING_INTERVAL, listener.try_recv()).await else {
            let ping = sqlx::query("SELECT 1").execute(&mut listener);
            let late = |_| StoreError::unavailable("the connection of the listener does not respond");
            timeout(PING_INTERVAL, ping).await.map_err(late)?.map_err(store_error)?;
            continue;
        };
        received.map_err(store_error)?;
    }
}

/// Interval at which an idle listener tests its connection.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Channel of the notification by the triggers that a job has ended.
const ENDED: &str = "tower_offload_ended";

impl Transaction for PgTransaction<'_> {}

#[expect(private_interfaces, reason = "the trait is sealed")]
impl sealed::Sealed for PgTransaction<'_> {
    fn insert<'a>(
        &'a mut self,
        database: &'a Database,
        client: &'a Client,
        jobs: &'a [&'a Prepared],
    ) -> sealed::Insertion<'a> {
        Box::pin(async move {
            match database {
                Database::Postgres(database) => database.insert_in(self, client, jobs).await,
                #[cfg(feature = "sqlite")]
                Database::Sqlite(_) => Ok(insert(self, client, jobs).await?), // River refuses it
            }
        })
    }
}

/// Returns an error if the transaction of an application would fail to commit a job with a sequence
/// or a limit.
async fn check_isolation(transaction: &mut PgTransaction<'_>) -> Result<(), InsertError> {
    const ISOLATION: &str = "SELECT current_setting('transaction_isolation')";
    let level: String = sqlx::query_scalar(ISOLATION).fetch_one(&mut **transaction).await.map_err(Error::Database)?;
    if matches!(&*level, "read committed" | "read uncommitted") {
        return Ok(());
    }
    Err(InsertError::Invalid(format!(
        "a job with a sequence or a limit needs a transaction that is READ COMMITTED, and this one is {}: begin it with \
         `BEGIN ISOLATION LEVEL READ COMMITTED`",
        level.to_uppercase()
    )))
}

/// Sets the search path until the end of the transaction.
async fn set_search_path(connection: &mut PgConnection, path: &str) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT set_config('search_path', $1, true)").bind(path).execute(connection).await.map(drop)
}

insert_jobs!(PgTransaction<'_>, has_server_clock: true);

/// Makes jobs available that are due within `$1` milliseconds, at most `$2`, and wakes the queues
/// of jobs that are due now.
///
/// A job that is unique in its new state only may equal another one: River's leader discards it.
const MAKE_AVAILABLE: &str = "
WITH due AS (
    SELECT id FROM river_job
    WHERE state IN ('retryable', 'scheduled') AND priority >= 0 AND queue IS NOT NULL
        AND scheduled_at <= clock_timestamp() + $1 * interval '1 millisecond'
        AND (unique_key IS NULL OR unique_states IS NULL OR river_job_state_in_bitmask(unique_states, state)
            OR NOT river_job_state_in_bitmask(unique_states, 'available'))
    ORDER BY priority, scheduled_at, id LIMIT $2 FOR UPDATE SKIP LOCKED
), available AS (
    UPDATE river_job AS job SET state = 'available' FROM due WHERE job.id = due.id RETURNING job.queue, job.scheduled_at
)
SELECT pg_notify(concat(current_schema(), '.river_insert'), json_build_object('queue', queue)::text)
FROM (SELECT DISTINCT queue FROM available WHERE scheduled_at <= clock_timestamp()) AS due_now";
/// Maximum number of jobs that a process makes available at a time.
const MAX_AVAILABLE_BATCH: i64 = 1000;

/// Has no effect after the timeout of the caller, when the work may have begun.
const SHOW_AS_QUEUED: &str = "
UPDATE tower_offload_task AS task SET state = 0, attempt = greatest(task.attempt - 1, 0), started_at = NULL, version = task.version + 1
FROM river_job AS job WHERE task.river_id = $1 AND task.state = 1 AND job.id = $1 AND job.state = 'running' AND job.attempt = $2
    AND job.attempted_by[array_upper(job.attempted_by, 1)] = $3 AND (extract(epoch FROM job.attempted_at) * 1000000)::bigint = $4
    AND job.attempted_at > clock_timestamp() - interval '10 seconds'";
/// Locks the job and the lease, so that a recovery either comes first or waits.
const SHOW_AS_RUNNING: &str = "
WITH job AS (
    SELECT job.id, job.attempt FROM river_job AS job JOIN tower_offload_client AS client ON client.id = $3
    WHERE job.id = $1 AND job.state = 'running' AND job.attempt = $2 AND job.attempted_by[array_upper(job.attempted_by, 1)] = $3
        AND (extract(epoch FROM job.attempted_at) * 1000000)::bigint = $4
    FOR UPDATE OF job FOR KEY SHARE OF client
), shown AS (
    UPDATE tower_offload_task AS task SET state = 1, attempt = job.attempt, version = task.version + 1,
        started_at = greatest((extract(epoch FROM clock_timestamp()) * 1000)::bigint, task.created_at)
    FROM job WHERE task.river_id = job.id AND task.state = 0
)
SELECT EXISTS (SELECT 1 FROM job)";

/// Adds the output of a step to the metadata, if the attempt still has its job.
const WRITE_STEP: &str = "
UPDATE river_job SET metadata = metadata || jsonb_build_object('tower_offload:steps',
    CASE WHEN jsonb_typeof(metadata -> 'tower_offload:steps') = 'object' THEN metadata -> 'tower_offload:steps' ELSE '{}' END
    || jsonb_build_object($5::text, $6::text))
WHERE id = $1 AND state = 'running' AND attempt = $2 AND attempted_by[array_upper(attempted_by, 1)] = $3
    AND (extract(epoch FROM attempted_at) * 1000000)::bigint = $4";

/// Writes an end, if the attempt still has its job. The parts that River's row cannot hold are
/// written to the record first, and the trigger keeps it.
const WRITE_END: &str = "
WITH ended AS (
    SELECT id, coalesce(metadata ? 'cancel_attempted_at', false) AS is_cancelled FROM river_job
    WHERE id = $1 AND state = 'running' AND attempt = $2 AND attempted_by[array_upper(attempted_by, 1)] = $3
        AND (extract(epoch FROM attempted_at) * 1000000)::bigint = $4
    FOR UPDATE
), described AS (
    UPDATE tower_offload_task AS task SET progress = coalesce($13, task.progress), message = coalesce($14, task.message),
        error_class = $9, error_message = $8, error_detail = $10, result = $11,
        started_at = CASE WHEN $12 THEN task.started_at END
    FROM ended WHERE task.river_id = ended.id AND task.state < 10
)
UPDATE river_job AS job SET
    state = CASE WHEN $6::bigint IS NULL THEN $5 WHEN ended.is_cancelled THEN 'cancelled' ELSE $5 END::river_job_state,
    attempt = CASE WHEN $7 THEN greatest(job.attempt - 1, 0) ELSE job.attempt END,
    finalized_at = CASE WHEN $6 IS NULL OR ended.is_cancelled THEN clock_timestamp() END,
    scheduled_at = CASE WHEN $6 IS NULL OR ended.is_cancelled THEN job.scheduled_at
        ELSE clock_timestamp() + $6 * interval '1 millisecond' END,
    errors = CASE WHEN $8::text IS NULL THEN job.errors ELSE array_append(coalesce(job.errors, '{}'), jsonb_build_object(
        'at', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
        'attempt', job.attempt, 'error', $8, 'trace', '')) END,
    metadata = CASE WHEN $11::text IS NULL THEN job.metadata ELSE job.metadata || jsonb_build_object('output', $11::jsonb) END
FROM ended WHERE job.id = ended.id
RETURNING job.id";

async fn write_end(connection: &mut PgConnection, end: &End, backoff: Backoff) -> Result<bool, sqlx::Error> {
    let (row, failure, progress) = (RowEnd::new(end, backoff), end.failure(), end.progress.as_ref());
    let write = sqlx::query_scalar::<_, i64>(WRITE_END)
        .bind(end.claim.river_id)
        .bind(end.claim.attempt)
        .bind(&*end.claim.client)
        .bind(end.claim.attempted_at)
        .bind(row.state)
        .bind(row.delay)
        .bind(end.is_refunded())
        .bind(row.error)
        .bind(failure.map(|failure| &*failure.class))
        .bind(failure.and_then(|failure| failure.detail.as_ref()).map(Json::as_str))
        .bind(end.result().map(Json::as_str))
        .bind(end.has_begun())
        .bind(progress.and_then(|update| update.progress))
        .bind(progress.and_then(|update| update.message.as_deref()));
    Ok(write.fetch_optional(connection).await?.is_some())
}

/// Inserts records of jobs. A job that has a record keeps it. Returns the number of new records.
async fn insert_records(connection: &mut PgConnection, rows: &[(i64, &Record)]) -> Result<usize, sqlx::Error> {
    const INSERT: &str = concat!(
        "INSERT INTO tower_offload_task (epoch, river_id, due_at, queue, parent, ",
        columns!(),
        ") SELECT 0, job.river_id, (SELECT (extract(epoch FROM scheduled_at) * 1000)::bigint FROM river_job \
         WHERE river_job.id = job.river_id AND (river_job.state = 'scheduled' OR river_job.state = 'pending' AND scheduled_at > now())), \
         (SELECT river_job.queue FROM river_job WHERE river_job.id = job.river_id), job.parent, ",
        columns!(),
        " FROM ",
        input!(),
        " JOIN unnest($1::bigint[], $2::bytea[], $20::bytea[]) AS job(river_id, task_id, parent) ON job.task_id = input.id \
         ON CONFLICT (river_id) DO NOTHING"
    );
    let (jobs, records): (Vec<_>, Vec<_>) = rows.iter().copied().unzip();
    let parents: Vec<_> = records.iter().map(|record| record.parent.map(|id| id.as_bytes().to_vec())).collect();
    let inserted = bind(sqlx::query(INSERT).bind(jobs), &records).bind(parents).execute(connection).await?;
    Ok(usize::try_from(inserted.rows_affected()).unwrap_or(usize::MAX))
}

async fn find_record(
    connection: &mut PgConnection,
    river_id: i64,
) -> Result<Option<Result<Record, StoreError>>, sqlx::Error> {
    const FIND: &str = concat!("SELECT ", read_columns!(), " FROM tower_offload_task WHERE river_id = $1");
    let row = sqlx::query(FIND).bind(river_id).fetch_optional(connection).await?;
    Ok(row.as_ref().map(record))
}

/// Jobs that have waited for a minute, of a kind and in a queue of which no job is running and none
/// has started meanwhile.
const UNSERVED: &str = "
SELECT waiting.kind, waiting.queue, waiting.jobs, waiting.oldest FROM (
    SELECT kind, queue, count(*) AS jobs, (extract(epoch FROM now() - min(scheduled_at)))::bigint AS oldest FROM (
        SELECT kind, queue, scheduled_at FROM river_job
        WHERE state = 'available' AND queue <> 'tower_offload_paused' AND scheduled_at < now() - interval '1 minute'
        LIMIT 10000
    ) AS available GROUP BY kind, queue
) AS waiting
WHERE NOT EXISTS (SELECT 1 FROM river_job AS job WHERE job.kind = waiting.kind AND job.queue = waiting.queue
        AND (job.state = 'running' OR job.attempted_at > now() - interval '1 minute'))
    AND NOT EXISTS (SELECT 1 FROM river_queue WHERE name = waiting.queue AND paused_at IS NOT NULL)
ORDER BY waiting.jobs DESC LIMIT 20";

#[cfg(test)]
mod tests {
    use super::Tables;

    #[test]
    fn tables_of_another_server_differ_although_their_numbers_are_the_same() {
        let own = Tables { database: "app".into(), jobs: Some(1), records: Some(2), system: Some(7) };
        assert!(own.is(&own) && own.is(&Tables { system: None, ..own.clone() }), "a role may not read the identifier");
        let others = [
            Tables { system: Some(8), ..own.clone() },
            Tables { database: "other".into(), ..own.clone() },
            Tables { jobs: None, ..own.clone() },
            Tables { records: Some(3), ..own.clone() },
        ];
        assert!(others.iter().all(|other| !own.is(other)));
    }
}
