use std::{
    future::pending,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    Database, Recovered, Unserved,
    recovery::{
        CRASH_MESSAGE, LOST_CLASS, MAX_IMMEDIATE_DELAY, MAX_INTERRUPTIONS, MAX_LOSSES, MAX_RECOVERY_BATCH,
        RIVER_VERSION, RowEnd, SHUTDOWN_MESSAGE, WRITE_PROGRESS, check_river_version, lose_deleted, loss_delays,
        millis, record_id,
    },
};
use crate::{
    Json, Record, StoreError,
    jobs::{
        Backoff,
        error::{InsertError, river_error},
        events,
        insert::{Inserted, Prepared, Transaction, batch, check_inserted, new_jobs, record_of, required, sealed},
        outcome::End,
        progress::ProgressUpdate,
        queue::Environment,
        running::Claim,
        schedule::run::{Advance, ScheduleState},
    },
    store::sql::{
        row::{Values, columns, read_columns, record},
        sqlite::{Sqlite, connection::write_options, write::bind},
        store_error,
    },
    sync::{Mutex, lock},
};
use riverqueue::{
    Client, ClientBuilder, Error,
    migrate::SqliteMigrator,
    sqlx::{
        self, Row, SqliteConnection,
        sqlite::{Sqlite as SqliteDriver, SqlitePool, SqlitePoolOptions, SqliteSynchronous},
    },
};

type SqliteTransaction<'a> = sqlx::Transaction<'a, SqliteDriver>;

/// Jobs on SQLite. The process that has locked the file is the only one, so there are no leases.
pub(in crate::jobs) struct SqliteJobs {
    sqlite: Arc<Sqlite>,
    /// Path of the file, once the queue has started.
    path: Mutex<Option<PathBuf>>,
}

impl SqliteJobs {
    pub(super) fn new(sqlite: Arc<Sqlite>) -> Self {
        Self { sqlite, path: Mutex::new(None) }
    }

    pub(super) async fn transaction<T, E: From<sqlx::Error>>(
        &self,
        change: impl AsyncFnOnce(&mut SqliteTransaction<'_>) -> Result<T, E>,
    ) -> Result<Result<T, E>, StoreError> {
        self.sqlite.lock_writer().await?.begin(change).await
    }

    pub(super) async fn read<T>(
        &self,
        query: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let mut connection = self.sqlite.readers.acquire().await.map_err(store_error)?;
        query(&mut connection).await.map_err(store_error)
    }

    pub(super) fn lease(&self) -> Option<Duration> {
        None
    }

    /// Returns whether a job is running, or `None` if it does not exist. The transaction has locked
    /// all jobs.
    pub(super) async fn lock_job(
        &self,
        transaction: &mut SqliteTransaction<'_>,
        river_id: i64,
    ) -> Result<Option<bool>, sqlx::Error> {
        const IS_RUNNING: &str = "SELECT state = 'running' FROM river_job WHERE id = $1";
        sqlx::query_scalar(IS_RUNNING).bind(river_id).fetch_optional(&mut **transaction).await
    }

    /// SQLite serializes transactions, so they do not conflict.
    pub(super) fn is_conflict(&self, _: &sqlx::Error) -> bool {
        false
    }

    pub(super) fn is_lock_timeout(&self, _: &sqlx::Error) -> bool {
        false
    }

    /// Executes `change` in a transaction.
    pub(super) async fn change<T>(
        &self,
        change: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        self.transaction(async |transaction| change(&mut **transaction).await).await?.map_err(store_error)
    }

    /// Returns an error if the transaction of an application belongs to another file. A job in it
    /// would never run.
    async fn check_file(&self, transaction: &mut SqliteConnection) -> Result<(), InsertError> {
        const FILE: &str = "SELECT file FROM pragma_database_list WHERE name = 'main'";
        // A temporary table hides the one of the file.
        const HIDDEN: &str =
            "SELECT name FROM temp.sqlite_master WHERE name IN ('river_job', 'tower_offload_task') LIMIT 1";
        let found: String = sqlx::query_scalar(FILE).fetch_one(&mut *transaction).await.map_err(Error::Database)?;
        let hidden: Option<String> =
            sqlx::query_scalar(HIDDEN).fetch_optional(transaction).await.map_err(Error::Database)?;
        if let Some(name) = hidden {
            return Err(InsertError::Invalid(format!("the connection has a temporary table `{name}`: drop it")));
        }
        let own = lock(&self.path).clone();
        match own {
            Some(own) if !is_same_file(&own, Path::new(&found)) => Err(InsertError::Invalid(format!(
                "the transaction belongs to file {found:?}, the task store to {:?}",
                own.display().to_string()
            ))),
            _ => Ok(()),
        }
    }

    pub(super) async fn connect(
        &self,
        _: &str,
        environment: &Environment,
        build: impl FnOnce(ClientBuilder) -> Result<Client, Error>,
    ) -> Result<Client, StoreError> {
        let path = self.sqlite.lock_writer().await?.path.clone();
        *lock(&self.path) = Some(path.clone());
        let pool = connect(&path, self.sqlite.job_connections).await?;
        self.migrate(&pool).await?;
        self.recover(None, environment).await?;
        build(Client::builder(pool)).map_err(river_error)
    }

    /// Migrates the schema with a connection of its own.
    pub(super) async fn migrate_alone(&self) -> Result<(), StoreError> {
        let path = self.sqlite.lock_writer().await?.path.clone();
        let pool = connect(&path, 1).await?;
        let migrated = self.migrate(&pool).await;
        pool.close().await;
        migrated
    }

    /// Migrates River's tables and installs the triggers.
    async fn migrate(&self, pool: &SqlitePool) -> Result<(), StoreError> {
        if !self.sqlite.migrates {
            return self.check_installed().await;
        }
        SqliteMigrator::new(pool.clone()).migrate_up().await.map_err(StoreError::other)?;
        self.install().await
    }

    /// Returns an error if something is missing.
    async fn check_installed(&self) -> Result<(), StoreError> {
        const HAS_RIVER: &str = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'river_migration')";
        let read = self.read(async |connection| {
            let version: i64 = match sqlx::query_scalar(HAS_RIVER).fetch_one(&mut *connection).await? {
                true => sqlx::query_scalar(VERSION).fetch_one(&mut *connection).await?,
                false => 0,
            };
            let installed: Vec<String> = sqlx::query_scalar(INSTALLED).fetch_all(connection).await?;
            Ok((version, installed))
        });
        let (version, installed) = read.await?;
        if version >= RIVER_VERSION && is_current(&installed) {
            return check_river_version(version);
        }
        Err(StoreError::other(format!(
            "River's tables have version {version} of {RIVER_VERSION}, or the triggers on `river_job` are not those of this \
             version: start the job queue once without `migrate(false)`"
        )))
    }

    async fn install(&self) -> Result<(), StoreError> {
        let installed = self.transaction(async |transaction| {
            let version: i64 = sqlx::query_scalar(VERSION).fetch_one(&mut **transaction).await?;
            let supported = check_river_version(version);
            let installed: Vec<String> = sqlx::query_scalar(INSTALLED).fetch_all(&mut **transaction).await?;
            if supported.is_ok() && !is_current(&installed) {
                sqlx::raw_sql(TRIGGERS).execute(&mut **transaction).await?;
            }
            Ok(supported)
        });
        installed.await?.map_err(store_error)?
    }

    pub(super) async fn insert(
        &self,
        client: &Client,
        jobs: &[&Prepared],
        _: Option<Duration>,
    ) -> Result<Result<Vec<Inserted>, Error>, StoreError> {
        self.transaction(async |transaction| insert(transaction, client, jobs).await).await
    }

    schedules!("CAST(unixepoch('subsec') * 1000 AS INTEGER)");

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

    pub(super) async fn insert_records(
        &self,
        transaction: &mut SqliteTransaction<'_>,
        rows: &[(i64, &Record)],
    ) -> Result<usize, sqlx::Error> {
        insert_records(transaction, rows).await
    }

    pub(super) async fn find_record(
        &self,
        transaction: &mut SqliteTransaction<'_>,
        river_id: i64,
    ) -> Result<Option<Result<Record, StoreError>>, sqlx::Error> {
        find_record(transaction, river_id).await
    }

    pub(super) async fn show_as_queued(&self, claim: &Claim) -> Result<(), StoreError> {
        self.change(async |connection| {
            bind_claim(sqlx::query(SHOW_AS_QUEUED), claim).execute(connection).await.map(drop)
        })
        .await
    }

    pub(super) async fn show_as_running(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.change(async |connection| {
            bind_claim(sqlx::query(SHOW_AS_RUNNING), claim).execute(&mut *connection).await?;
            Ok(bind_claim(sqlx::query(IS_CLAIMED), claim).fetch_optional(connection).await?.is_some())
        })
        .await
    }

    pub(super) async fn write_step(&self, claim: &Claim, name: &str, output: &str) -> Result<bool, StoreError> {
        self.change(async |connection| {
            let write = bind_claim(sqlx::query(WRITE_STEP), claim).bind(name).bind(output);
            Ok(write.execute(connection).await?.rows_affected() > 0)
        })
        .await
    }

    pub(super) async fn write_end(&self, end: &End, backoff: Backoff) -> Result<bool, StoreError> {
        self.change(async |connection| write_end(connection, end, &RowEnd::new(end, backoff)).await).await
    }

    pub(super) async fn write_end_and_insert(
        &self,
        end: &End,
        backoff: Backoff,
        client: &Client,
        jobs: &[&Prepared],
    ) -> Result<Result<bool, Error>, StoreError> {
        self.transaction(async |transaction| {
            let is_written = write_end(transaction, end, &RowEnd::new(end, backoff)).await?;
            if is_written {
                insert(transaction, client, jobs).await?;
            }
            Ok::<_, Error>(is_written)
        })
        .await
    }

    pub(super) async fn recover(&self, _: Option<&str>, environment: &Environment) -> Result<(), StoreError> {
        let delays = loss_delays(environment.backoff);
        loop {
            let recovered = self.change(async |connection| recover_batch(connection, &delays).await).await?;
            events::recovered(&environment.counters, &recovered);
            environment.ended.send_recovered(&recovered);
            if recovered.len() < MAX_RECOVERY_BATCH {
                return Ok(());
            }
        }
    }

    pub(super) async fn claims(&self, clients: &[Arc<str>]) -> Result<Vec<Claim>, StoreError> {
        let read = self.read(async |connection| {
            let mut claims = Vec::new();
            for client in clients {
                for row in sqlx::query(CLAIMS).bind(&**client).fetch_all(&mut *connection).await? {
                    let (river_id, attempt, attempted_at) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                    claims.push(Claim { river_id, attempt, attempted_at, client: client.clone() });
                }
            }
            Ok(claims)
        });
        read.await
    }

    pub(super) async fn note_interrupted(&self, claims: &[Claim]) -> Result<Vec<i64>, StoreError> {
        let noted = self.change(async |connection| {
            let mut noted = Vec::new();
            for claim in claims {
                let note = sqlx::query_scalar(NOTE_INTERRUPTED).bind(claim.river_id).bind(claim.attempted_at);
                let is_refunded: Option<bool> = note.bind(MAX_INTERRUPTIONS).fetch_optional(&mut *connection).await?;
                noted.extend(is_refunded.filter(|is_refunded| *is_refunded).map(|_| claim.river_id));
            }
            Ok(noted)
        });
        noted.await
    }

    pub(super) async fn lose_deleted(&self) -> Result<u64, StoreError> {
        const LOSE: &str = lose_deleted!("CAST(unixepoch('subsec') * 1000 AS INTEGER)", "max");
        self.change(async |connection| sqlx::query(LOSE).execute(connection).await.map(|done| done.rows_affected()))
            .await
    }

    /// River's scheduler does it, by the only clock there is.
    pub(super) async fn make_available(&self) -> Result<(), StoreError> {
        Ok(())
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

    pub(super) async fn listen(&self, _: impl Fn() + Send) -> Result<(), StoreError> {
        pending().await
    }
}

const VERSION: &str = "SELECT coalesce(max(version), 0) FROM river_migration WHERE line = 'main'";
const INSTALLED: &str = "
SELECT sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name IN ('river_job', 'tower_offload_sequence') AND name LIKE 'tower\\_offload\\_%' ESCAPE '\\'";
const TRIGGERS: &str = concat!(include_str!("sqlite.sql"), include_str!("sqlite_sequences.sql"));

/// Returns a pool of connections that write.
async fn connect(path: &Path, connections: u32) -> Result<SqlitePool, StoreError> {
    // A power failure may lose River's last changes. Then a job runs again, but no job is lost: the
    // store inserts jobs, and it syncs each commit.
    let options = write_options(path).synchronous(SqliteSynchronous::Normal);
    let pool = SqlitePoolOptions::new().max_connections(connections).idle_timeout(None).max_lifetime(None);
    pool.connect_with(options).await.map_err(store_error)
}

/// Returns `true` if these are the triggers of this version. The schema table has the text with
/// which they were created.
fn is_current(installed: &[String]) -> bool {
    let count = TRIGGERS.matches("\nCREATE TRIGGER ").count();
    installed.len() == count && installed.iter().all(|trigger| TRIGGERS.contains(trigger.as_str()))
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
        matches!((id(one), id(other)), (Ok(one), Ok(other)) if one == other)
    }
    #[cfg(not(unix))]
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

impl Transaction for SqliteTransaction<'_> {}

#[expect(private_interfaces, reason = "the trait is sealed")]
impl sealed::Sealed for SqliteTransaction<'_> {
    fn insert<'a>(
        &'a mut self,
        database: &'a Database,
        client: &'a Client,
        jobs: &'a [&'a Prepared],
    ) -> sealed::Insertion<'a> {
        Box::pin(async move {
            #[allow(irrefutable_let_patterns, reason = "another kind exists with another feature")]
            if let Database::Sqlite(jobs) = database {
                jobs.check_file(self).await?;
            }
            Ok(insert(self, client, jobs).await?)
        })
    }
}

insert_jobs!(SqliteTransaction<'_>, has_server_clock: false);

/// Inserts records of jobs. A job that has a record keeps it. Returns the number of new records.
async fn insert_records(connection: &mut SqliteConnection, rows: &[(i64, &Record)]) -> Result<usize, sqlx::Error> {
    const INSERT: &str = concat!(
        "INSERT INTO tower_offload_task (epoch, river_id, due_at, queue, parent, ",
        columns!(),
        ") VALUES (0, $1, (SELECT CAST(unixepoch(scheduled_at, 'subsec') * 1000 AS INTEGER) FROM river_job \
         WHERE id = $1 AND (state = 'scheduled' OR state = 'pending' AND scheduled_at > strftime('%Y-%m-%d %H:%M:%f', 'now'))), \
         (SELECT queue FROM river_job WHERE id = $1), $20, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) \
         ON CONFLICT (river_id) DO NOTHING"
    );
    let mut inserted = 0;
    for (river_id, record) in rows {
        let values = Values::from(*record);
        let insert =
            bind(sqlx::query(INSERT).bind(river_id), &values).bind(record.parent.map(|id| id.as_bytes().to_vec()));
        inserted += insert.execute(&mut *connection).await?.rows_affected();
    }
    Ok(usize::try_from(inserted).unwrap_or(usize::MAX))
}

async fn find_record(
    connection: &mut SqliteConnection,
    river_id: i64,
) -> Result<Option<Result<Record, StoreError>>, sqlx::Error> {
    const FIND: &str = concat!("SELECT ", read_columns!(), " FROM tower_offload_task WHERE river_id = $1");
    let row = sqlx::query(FIND).bind(river_id).fetch_optional(connection).await?;
    Ok(row.as_ref().map(record))
}

/// Other programs write to River's table too, so each JSON value is checked before it is used.
macro_rules! json_or {
    ($column:literal, $default:literal) => {
        concat!("CASE WHEN json_valid(", $column, ", 9) THEN ", $column, " ELSE jsonb('", $default, "') END")
    };
}

pub(super) use json_or;

/// The client of the latest attempt.
macro_rules! claimed_by {
    () => {
        concat!("(", json_or!("attempted_by", "[]"), ") ->> '$[#-1]'")
    };
}

pub(super) use claimed_by;

/// The time of the latest claim in microseconds.
macro_rules! claimed_at {
    () => {
        "CAST(round(unixepoch(attempted_at, 'subsec') * 1000000) AS INTEGER)"
    };
}

pub(super) use claimed_at;

macro_rules! is_cancelled {
    () => {
        concat!("(", json_or!("metadata", "{}"), ") -> '$.cancel_attempted_at' IS NOT NULL")
    };
}

macro_rules! now {
    () => {
        "strftime('%Y-%m-%d %H:%M:%f', 'now')"
    };
}

pub(super) use now;

const CLAIMS: &str = concat!(
    "SELECT id, attempt, ",
    claimed_at!(),
    " FROM river_job WHERE state = 'running' AND ",
    claimed_by!(),
    " = $1"
);
/// A job `$1` whose attempt `$2` was claimed by client `$3` at `$4`.
macro_rules! claimed {
    () => {
        concat!(
            "FROM river_job WHERE id = $1 AND state = 'running' AND attempt = $2 AND ",
            claimed_by!(),
            " = $3 AND ",
            claimed_at!(),
            " = $4"
        )
    };
}
const IS_CLAIMED: &str = concat!("SELECT 1 ", claimed!());
const SHOW_AS_QUEUED: &str = concat!(
    "UPDATE tower_offload_task SET state = 0, attempt = max(attempt - 1, 0), started_at = NULL, version = version + 1 \
     WHERE river_id = $1 AND state = 1 AND EXISTS (SELECT 1 ",
    claimed!(),
    ")"
);
const SHOW_AS_RUNNING: &str = concat!(
    "UPDATE tower_offload_task SET state = 1, attempt = $2, version = version + 1, \
     started_at = max(CAST(unixepoch('subsec') * 1000 AS INTEGER), created_at) \
     WHERE river_id = $1 AND state = 0 AND EXISTS (SELECT 1 ",
    claimed!(),
    ")"
);

/// Adds the output of a step to the metadata. The patch replaces what is no object.
const WRITE_STEP: &str = concat!(
    "UPDATE river_job SET metadata = jsonb_patch(",
    json_or!("metadata", "{}"),
    ", jsonb_object('tower_offload:steps', jsonb_object($5, $6))) WHERE id = $1 AND state = 'running' AND attempt = $2 AND ",
    claimed_by!(),
    " = $3 AND ",
    claimed_at!(),
    " = $4"
);

/// The parts that River's row cannot hold are written to the record first, and the trigger keeps
/// them.
const DESCRIBE: &str = concat!(
    "UPDATE tower_offload_task SET progress = coalesce($5, progress), message = coalesce($6, message), error_class = $7, \
     error_message = $8, error_detail = $9, result = $10, started_at = CASE WHEN $11 THEN started_at END \
     WHERE river_id = $1 AND state < 10 AND EXISTS (SELECT 1 ",
    claimed!(),
    ")"
);
const WRITE_END: &str = concat!(
    "UPDATE river_job SET state = CASE WHEN $6 IS NULL THEN $5 WHEN ",
    is_cancelled!(),
    " THEN 'cancelled' ELSE $5 END, attempt = CASE WHEN $7 THEN max(attempt - 1, 0) ELSE attempt END, \
     finalized_at = CASE WHEN $6 IS NULL OR ",
    is_cancelled!(),
    " THEN ",
    now!(),
    " END, scheduled_at = CASE WHEN $6 IS NULL OR ",
    is_cancelled!(),
    " THEN scheduled_at ELSE strftime('%Y-%m-%d %H:%M:%f', 'now', printf('+%.3f seconds', $6 / 1000.0)) END, \
     errors = CASE WHEN $8 IS NULL THEN errors ELSE jsonb_insert(coalesce(",
    json_or!("errors", "[]"),
    ", jsonb('[]')), '$[#]', jsonb_object('at', strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), 'attempt', attempt, 'error', $8, 'trace', '')) END, \
     metadata = CASE WHEN $9 IS NULL THEN metadata ELSE jsonb_set(",
    json_or!("metadata", "{}"),
    ", '$.output', jsonb($9)) END \
     WHERE id = $1 AND state = 'running' AND attempt = $2 AND ",
    claimed_by!(),
    " = $3 AND ",
    claimed_at!(),
    " = $4"
);

type SqliteQuery<'a> = sqlx::query::Query<'a, SqliteDriver, sqlx::sqlite::SqliteArguments>;

/// Binds the values of [`claimed!`].
fn bind_claim<'a>(query: SqliteQuery<'a>, claim: &'a Claim) -> SqliteQuery<'a> {
    query.bind(claim.river_id).bind(claim.attempt).bind(&*claim.client).bind(claim.attempted_at)
}

async fn write_end(connection: &mut SqliteConnection, end: &End, row: &RowEnd<'_>) -> Result<bool, sqlx::Error> {
    let (failure, progress) = (end.failure(), end.progress.as_ref());
    let result = end.result().map(Json::as_str);
    bind_claim(sqlx::query(DESCRIBE), &end.claim)
        .bind(progress.and_then(|update| update.progress))
        .bind(progress.and_then(|update| update.message.as_deref()))
        .bind(failure.map(|failure| &*failure.class))
        .bind(failure.map(|failure| &*failure.message))
        .bind(failure.and_then(|failure| failure.detail.as_ref()).map(Json::as_str))
        .bind(result)
        .bind(end.has_begun())
        .execute(&mut *connection)
        .await?;
    let write = bind_claim(sqlx::query(WRITE_END), &end.claim).bind(row.state);
    let write = write.bind(row.delay).bind(end.is_refunded()).bind(row.error).bind(result);
    Ok(write.execute(connection).await?.rows_affected() > 0)
}

/// How many attempts of a job did not count because a shutdown interrupted them. The metadata must
/// be valid.
macro_rules! interruptions {
    () => {
        "CASE json_type(metadata, '$.\"tower_offload:interrupted\".count') WHEN 'integer' \
         THEN max(metadata ->> '$.\"tower_offload:interrupted\".count', 0) ELSE 0 END"
    };
}

/// Running jobs, at most `$1`, with the number of earlier interruptions if a shutdown has
/// interrupted the attempt.
const FIND_LOST: &str = concat!(
    "SELECT job.id, job.kind, job.queue, job.attempt, task.id, coalesce(task.state = 0, 0), \
     CASE WHEN json_valid(metadata, 9) THEN CASE WHEN metadata ->> '$.\"tower_offload:interrupted\".claimed_at' = ",
    claimed_at!(),
    " THEN ",
    interruptions!(),
    " END END, \
     CASE WHEN json_valid(job.metadata, 9) AND json_type(job.metadata, '$.\"tower_offload:lost\"') = 'integer' \
     THEN min(max(job.metadata ->> '$.\"tower_offload:lost\"', 0), $2) ELSE 0 END, job.max_attempts \
     FROM river_job AS job LEFT JOIN tower_offload_task AS task ON task.river_id = job.id \
     WHERE job.state = 'running' ORDER BY job.id LIMIT $1"
);
const EXPLAIN_LOSS: &str = "
UPDATE tower_offload_task SET error_class = $2, error_message = $3, error_detail = NULL WHERE river_id = $1 AND state = 1";
/// Requeues or ends a job. The attempt stays counted, so a job that crashes its process ends after
/// `max_attempts`, unless its work has not begun or a shutdown has interrupted it (`$5`). `$7` is
/// the number of earlier interruptions in the latter case.
const RECOVER: &str = concat!(
    "UPDATE river_job SET state = CASE WHEN ",
    is_cancelled!(),
    " THEN 'cancelled' WHEN attempt >= max_attempts AND NOT $5 THEN 'discarded' WHEN $1 <= $4 THEN 'available' ELSE 'retryable' END, \
     attempt = CASE WHEN $5 THEN max(attempt - 1, 0) ELSE attempt END, finalized_at = CASE WHEN ",
    is_cancelled!(),
    " OR attempt >= max_attempts AND NOT $5 THEN ",
    now!(),
    " END, scheduled_at = CASE WHEN ",
    is_cancelled!(),
    " OR attempt >= max_attempts AND NOT $5 THEN scheduled_at \
     ELSE strftime('%Y-%m-%d %H:%M:%f', 'now', printf('+%.3f seconds', $1 / 1000.0)) END, \
     errors = CASE WHEN $5 THEN errors ELSE jsonb_insert(coalesce(",
    json_or!("errors", "[]"),
    ", jsonb('[]')), '$[#]', jsonb_object('at', strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), 'attempt', attempt, 'error', $3, 'trace', '')) END, \
     metadata = CASE WHEN $7 IS NOT NULL THEN jsonb_set(metadata, '$.\"tower_offload:interrupted\".count', $7 + 1) \
     WHEN $5 THEN metadata ELSE jsonb_set(",
    json_or!("metadata", "{}"),
    ", '$.\"tower_offload:lost\"', $6 + 1) END WHERE id = $2 RETURNING state"
);

/// Notes in the metadata of a running job that a shutdown interrupts the attempt. Returns 1 if the
/// attempt does not count: the job has several, and fewer than `$3` did not count already. The
/// recovery counts the interruption.
const NOTE_INTERRUPTED: &str = concat!(
    "UPDATE river_job SET metadata = jsonb_set(metadata, '$.\"tower_offload:interrupted\"', jsonb_object('claimed_at', $2, 'count', ",
    interruptions!(),
    ")) WHERE id = $1 AND state = 'running' AND json_valid(metadata, 9) AND ",
    claimed_at!(),
    " = $2 RETURNING max_attempts > 1 AND ",
    interruptions!(),
    " < $3"
);

/// Recovers a batch of running jobs. Also clears the leader, which may be the process that crashed.
async fn recover_batch(connection: &mut SqliteConnection, delays: &[i64]) -> Result<Vec<Recovered>, sqlx::Error> {
    let find = sqlx::query(FIND_LOST).bind(MAX_RECOVERY_BATCH as i64).bind(MAX_LOSSES as i64);
    let mut recovered = Vec::new();
    for row in find.fetch_all(&mut *connection).await? {
        let (river_id, is_queued, losses): (i64, bool, i64) = (row.try_get(0)?, row.try_get(5)?, row.try_get(7)?);
        let (interruptions, max_attempts): (Option<i64>, i64) = (row.try_get(6)?, row.try_get(8)?);
        let is_shutdown = interruptions.is_some();
        let interruptions = interruptions.filter(|count| max_attempts > 1 && *count < MAX_INTERRUPTIONS);
        let message = if is_shutdown { SHUTDOWN_MESSAGE } else { CRASH_MESSAGE };
        let is_refunded = is_queued || interruptions.is_some();
        let delay = usize::try_from(losses).ok().and_then(|losses| delays.get(losses)).copied().unwrap_or_default();
        let delay = if is_refunded { 0 } else { delay };
        if !is_refunded {
            let explain = sqlx::query(EXPLAIN_LOSS).bind(river_id).bind(LOST_CLASS).bind(message);
            explain.execute(&mut *connection).await?;
        }
        let recover = sqlx::query_scalar(RECOVER).bind(delay).bind(river_id).bind(message);
        let recover = recover.bind(millis(MAX_IMMEDIATE_DELAY)).bind(is_refunded).bind(losses).bind(interruptions);
        let state = recover.fetch_one(&mut *connection).await?;
        recovered.push(Recovered {
            id: record_id(row.try_get(4)?),
            river_id,
            kind: row.try_get(1)?,
            queue: row.try_get(2)?,
            attempt: row.try_get(3)?,
            is_counted: !is_refunded,
            is_shutdown,
            state,
        });
    }
    sqlx::query("DELETE FROM river_leader").execute(connection).await?;
    Ok(recovered)
}

/// Jobs that have waited for a minute, of a kind and in a queue of which no job is running and none
/// has started meanwhile.
const UNSERVED: &str = "
SELECT kind, queue, count(*), CAST(unixepoch('now') - unixepoch(min(scheduled_at)) AS INTEGER) FROM (
    SELECT kind, queue, scheduled_at FROM river_job
    WHERE state = 'available' AND queue <> 'tower_offload_paused'
        AND scheduled_at < strftime('%Y-%m-%d %H:%M:%f', 'now', '-1 minute') LIMIT 10000
) AS waiting
WHERE NOT EXISTS (SELECT 1 FROM river_job AS job WHERE job.kind = waiting.kind AND job.queue = waiting.queue
        AND (job.state = 'running' OR job.attempted_at > strftime('%Y-%m-%d %H:%M:%f', 'now', '-1 minute')))
    AND NOT EXISTS (SELECT 1 FROM river_queue WHERE name = waiting.queue AND paused_at IS NOT NULL)
GROUP BY kind, queue ORDER BY 3 DESC LIMIT 20";
