use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    ConnectOptions, Connection, SqliteConnection, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::time::Instant;

use super::{
    lock::FileLock,
    schema::{CREATE_MIGRATION, STEPS},
};
use crate::{
    StoreError, Timestamp,
    store::sql::{
        error::{file_error, store_error_at},
        migration::missing_steps,
        row::millis,
        store_error,
    },
};

/// The only connection that writes records. The application and the job queue may write to other
/// tables of the file through connections of their own; SQLite serializes these transactions.
pub(crate) struct Writer {
    pub(crate) path: PathBuf,
    /// `None` after a failure, and after a caller was dropped within a transaction: a connection in
    /// an unknown state is replaced.
    pub(super) connection: Option<SqliteConnection>,
    /// Identifies the file that was opened.
    identity: Identity,
    /// `None` once the store is closed.
    lock: Option<FileLock>,
    /// When the caller that holds the writer must have begun its transaction. Set by
    /// [`Sqlite::lock_writer`](super::Sqlite::lock_writer).
    pub(super) deadline: Instant,
    /// The timeout that `connection` has at present.
    busy_timeout: Duration,
}

/// Maximum time that a caller waits for others that write, in this process and outside.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter waits for the writer do not shorten the timeout of its connection, which takes a
/// statement.
const MIN_WAIT: Duration = Duration::from_millis(100);
const MAX_READERS: u32 = 4;

impl Writer {
    pub(super) async fn open(path: &Path, create: bool, may_migrate: bool) -> Result<Self, StoreError> {
        if !create && !path.exists() {
            let path = path.display();
            return Err(StoreError::unavailable(format!(
                "{path} does not exist, and `mode=rw` does not create it: use `mode=rwc`"
            )));
        }
        let to_lock = path.to_owned();
        let lock = tokio::task::spawn_blocking(move || FileLock::acquire(&to_lock)).await;
        let lock = lock.map_err(StoreError::unavailable)??;
        let mut connection = connect(path, create).await?;
        migrate(path, &mut connection, may_migrate).await?;
        Ok(Self {
            path: path.to_owned(),
            connection: Some(connection),
            identity: identity(path)?,
            lock: Some(lock),
            deadline: Instant::now(),
            busy_timeout: BUSY_TIMEOUT,
        })
    }

    /// Executes `change` in a transaction.
    pub(super) async fn transaction<T>(
        &mut self,
        change: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let done = self.begin(async |transaction| change(&mut **transaction).await).await?;
        done.map_err(|error| store_error_at(&self.path.display().to_string(), error))
    }

    /// Returns an error if the store is closed or its file was replaced.
    pub(crate) fn check_open(&self) -> Result<(), StoreError> {
        if self.lock.is_none() {
            return Err(StoreError::closed());
        }
        // SQLite does not notice that the file was deleted or replaced. It would continue to write
        // to the old file, and all records would be lost when the process ends.
        if identity(&self.path)? != self.identity {
            let path = self.path.display();
            return Err(StoreError::unavailable(format!("{path} was replaced by another file: open the store again")));
        }
        Ok(())
    }

    /// Executes `change` in a transaction. The inner error is that of `change` or of the commit.
    pub(crate) async fn begin<T, E: From<sqlx::Error>>(
        &mut self,
        change: impl AsyncFnOnce(&mut Transaction<'_, sqlx::Sqlite>) -> Result<T, E>,
    ) -> Result<Result<T, E>, StoreError> {
        self.check_open()?;
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                self.busy_timeout = BUSY_TIMEOUT;
                connect(&self.path, false).await?
            }
        };
        self.limit_wait(&mut connection).await?;
        let value = transaction(&mut connection, change).await;
        if value.is_ok() {
            self.connection = Some(connection);
        }
        Ok(value)
    }

    /// Lets the connection wait for others only until the deadline.
    async fn limit_wait(&mut self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        let wait = if remaining + MIN_WAIT >= BUSY_TIMEOUT { BUSY_TIMEOUT } else { remaining };
        if wait != self.busy_timeout {
            let set = format!("PRAGMA busy_timeout = {}", wait.as_millis());
            sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(connection).await.map_err(store_error)?;
            self.busy_timeout = wait;
        }
        Ok(())
    }

    pub(super) async fn close(&mut self) -> Result<(), StoreError> {
        let closed = match self.connection.take() {
            Some(connection) => connection.close().await,
            None => Ok(()),
        };
        self.lock = None;
        closed.map_err(store_error)
    }
}

/// Device and inode of a file, which are the same for all links to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity(u64, u64);

fn identity(path: &Path) -> Result<Identity, StoreError> {
    let file = fs::metadata(path).map_err(|error| file_error(format!("cannot find {}", path.display()), error))?;
    #[cfg(unix)]
    return Ok(Identity(std::os::unix::fs::MetadataExt::dev(&file), std::os::unix::fs::MetadataExt::ino(&file)));
    #[cfg(not(unix))]
    return Ok(Identity(0, u64::from(file.is_file())));
}

async fn connect(path: &Path, create: bool) -> Result<SqliteConnection, StoreError> {
    // `FULL`, so that an accepted task survives a power failure.
    let options = write_options(path).create_if_missing(create).synchronous(SqliteSynchronous::Full);
    options.connect().await.map_err(|error| store_error_at(&path.display().to_string(), error))
}

/// Size in bytes to which the write-ahead log shrinks when it starts again, 8 MiB. SQLite copies it
/// to the file after 4 MiB and starts again when no reader uses it, so it grows while reads overlap
/// all the time.
const MAX_EMPTY_LOG: &str = "8388608";

/// Returns the options of a connection that writes.
pub(crate) fn write_options(path: &Path) -> SqliteConnectOptions {
    let options = SqliteConnectOptions::new().filename(path).journal_mode(SqliteJournalMode::Wal);
    options.pragma("journal_size_limit", MAX_EMPTY_LOG).busy_timeout(BUSY_TIMEOUT)
}

/// Returns a pool of read-only connections. In WAL mode readers and the writer do not block each
/// other.
pub(super) fn readers(path: &Path, connections: Option<u32>) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY_TIMEOUT);
    let pool =
        SqlitePoolOptions::new().max_connections(connections.unwrap_or(MAX_READERS)).acquire_timeout(BUSY_TIMEOUT);
    pool.idle_timeout(None).max_lifetime(None).connect_lazy_with(options)
}

/// Executes `change` in an `IMMEDIATE` transaction. A deferred transaction that reads first fails
/// to write if another connection has written in between.
async fn transaction<T, E: From<sqlx::Error>>(
    connection: &mut SqliteConnection,
    change: impl AsyncFnOnce(&mut Transaction<'_, sqlx::Sqlite>) -> Result<T, E>,
) -> Result<T, E> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let value = change(&mut transaction).await?;
    transaction.commit().await?;
    Ok(value)
}

async fn migrate(path: &Path, connection: &mut SqliteConnection, may_migrate: bool) -> Result<(), StoreError> {
    let applied_at = millis(Timestamp::from(std::time::SystemTime::now()));
    let migrated = transaction(connection, async |transaction| {
        let connection = &mut **transaction;
        if !may_migrate {
            return check(connection).await;
        }
        sqlx::query(CREATE_MIGRATION).execute(&mut *connection).await?;
        let version = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM tower_offload_migration");
        let steps = match missing_steps(STEPS, version.fetch_one(&mut *connection).await?) {
            Ok(steps) => steps,
            Err(error) => return Ok(Err(error)),
        };
        for (version, step) in steps {
            sqlx::raw_sql(step).execute(&mut *connection).await?;
            let insert = sqlx::query("INSERT INTO tower_offload_migration (version, applied_at) VALUES ($1, $2)");
            insert.bind(version).bind(applied_at).execute(&mut *connection).await?;
        }
        Ok(Ok(()))
    });
    migrated.await.map_err(|error| store_error_at(&path.display().to_string(), error))?
}

/// Returns an error if steps are missing.
async fn check(connection: &mut SqliteConnection) -> Result<Result<(), StoreError>, sqlx::Error> {
    const EXISTS: &str = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'tower_offload_migration')";
    let version = match sqlx::query_scalar(EXISTS).fetch_one(&mut *connection).await? {
        true => {
            sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM tower_offload_migration")
                .fetch_one(connection)
                .await?
        }
        false => 0,
    };
    Ok(missing_steps(STEPS, version).and_then(|mut steps| match steps.next() {
        Some(_) => Err(StoreError::other(format!(
            "the tables `tower_offload_..` of the file have version {version} of {}: open it once without `migrate(false)`",
            STEPS.len()
        ))),
        None => Ok(()),
    }))
}
