use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    ConnectOptions, Connection, SqliteConnection, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous},
};

use super::schema::{CREATE_MIGRATION, STEPS};
use crate::{
    StoreError, Timestamp,
    store::sql::{
        error::{file_error, store_error},
        lock::FileLock,
        migration,
        row::millis,
    },
};

/// The only connection that writes records. A handler of the application, or River, may write to other tables of the file; they wait for
/// one another.
pub(super) struct Writer {
    pub(super) path: PathBuf,
    /// Empty after a failure, and after a caller that went away in the middle: what state it left is not worth finding out.
    pub(super) connection: Option<SqliteConnection>,
    /// Of the file that was opened.
    identity: Identity,
    /// Empty once closed.
    lock: Option<FileLock>,
}

/// How long one waits for others who write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const READERS: u32 = 4;

impl Writer {
    pub(super) async fn open(path: &Path) -> Result<Self, StoreError> {
        let of_lock = path.to_owned();
        let lock = tokio::task::spawn_blocking(move || FileLock::acquire(&of_lock)).await;
        let lock = lock.map_err(StoreError::unavailable)??;
        let mut connection = connect(path, true).await?;
        migrate(&mut connection).await?;
        Ok(Self { path: path.to_owned(), connection: Some(connection), identity: identity(path)?, lock: Some(lock) })
    }

    /// All or nothing of what `change` does.
    pub(super) async fn transaction<T>(
        &mut self,
        change: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        self.begin(async |transaction| change(&mut **transaction).await).await?.map_err(store_error)
    }

    /// As [`transaction`](Self::transaction), with the transaction itself, and an error of the caller's.
    pub(super) async fn begin<T, E: From<sqlx::Error>>(
        &mut self,
        change: impl AsyncFnOnce(&mut Transaction<'_, sqlx::Sqlite>) -> Result<T, E>,
    ) -> Result<Result<T, E>, StoreError> {
        if self.lock.is_none() {
            return Err(StoreError::unavailable("it is closed"));
        }
        // SQLite does not look: it would go on in a file that has no name any more, and all of it would be gone with the process.
        if identity(&self.path)? != self.identity {
            return Err(StoreError::unavailable(format!("{} is another file than was opened", self.path.display())));
        }
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.path, false).await?,
        };
        let value = transaction(&mut connection, change).await;
        if value.is_ok() {
            self.connection = Some(connection);
        }
        Ok(value)
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

/// The device and the number of a file: other names of it have the same, another one of the same name does not.
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
    // An accepted id outlives a power cut.
    let options = options(path).create_if_missing(create).synchronous(SqliteSynchronous::Full);
    options.connect().await.map_err(store_error)
}

/// For who writes.
pub(super) fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).journal_mode(SqliteJournalMode::Wal).busy_timeout(BUSY_TIMEOUT)
}

/// Readers see what was committed when they began, and hold up nobody.
pub(super) fn readers(path: &Path) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY_TIMEOUT);
    let pool = SqlitePoolOptions::new().max_connections(READERS).acquire_timeout(BUSY_TIMEOUT);
    pool.idle_timeout(None).max_lifetime(None).connect_lazy_with(options)
}

/// `IMMEDIATE`: one that begins to read and then wants to write is refused if another has written meanwhile.
async fn transaction<T, E: From<sqlx::Error>>(
    connection: &mut SqliteConnection,
    change: impl AsyncFnOnce(&mut Transaction<'_, sqlx::Sqlite>) -> Result<T, E>,
) -> Result<T, E> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let value = change(&mut transaction).await?;
    transaction.commit().await?;
    Ok(value)
}

async fn migrate(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let applied_at = millis(Timestamp::from(std::time::SystemTime::now()));
    let migrated = transaction(connection, async |transaction| {
        let connection = &mut **transaction;
        sqlx::query(CREATE_MIGRATION).execute(&mut *connection).await?;
        let version = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM tower_offload_migration");
        let steps = match migration::missing(STEPS, version.fetch_one(&mut *connection).await?) {
            Ok(steps) => steps,
            Err(error) => return Ok(Err(error)),
        };
        for (version, step) in steps {
            sqlx::raw_sql(step).execute(&mut *connection).await?;
            let note = sqlx::query("INSERT INTO tower_offload_migration (version, applied_at) VALUES ($1, $2)");
            note.bind(version).bind(applied_at).execute(&mut *connection).await?;
        }
        Ok(Ok(()))
    });
    migrated.await.map_err(store_error)?
}
