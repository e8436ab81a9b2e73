use std::io;

use sqlx::error::DatabaseError;

use crate::StoreError;

/// Classifies an error of the database.
pub(crate) fn store_error(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::Database(database) => match kind(&**database) {
            Kind::Unavailable => StoreError::unavailable(error),
            Kind::Full => StoreError::full(error),
            Kind::Other => StoreError::other(error),
        },
        sqlx::Error::Io(source) if is_full(source) => StoreError::full(error),
        sqlx::Error::BeginFailed
        | sqlx::Error::Io(_)
        | sqlx::Error::PoolClosed
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::WorkerCrashed => StoreError::unavailable(error),
        _ => StoreError::other(error),
    }
}

/// Classifies an error of the file system. `context` says what failed.
#[cfg(feature = "sqlite")]
pub(super) fn file_error(context: String, error: io::Error) -> StoreError {
    let text = format!("{context}: {error}");
    if is_full(&error) { StoreError::full(text) } else { StoreError::unavailable(text) }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

enum Kind {
    Unavailable,
    Full,
    Other,
}

fn kind(error: &dyn DatabaseError) -> Kind {
    let code = error.code().unwrap_or_default();
    #[cfg(feature = "sqlite")]
    if error.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
        // Result codes of SQLite. An extended code has its primary code in the lowest byte.
        return match code.parse::<u32>().unwrap_or_default() & 255 {
            13 => Kind::Full,
            // SQLITE_BUSY, SQLITE_LOCKED, SQLITE_READONLY, SQLITE_IOERR, SQLITE_CANTOPEN
            5 | 6 | 8 | 10 | 14 => Kind::Unavailable,
            _ => Kind::Other,
        };
    }
    // SQLSTATE codes of Postgres.
    match &*code {
        // disk_full
        "53100" => Kind::Full,
        // read_only_sql_transaction: the server has become a standby
        "25006" => Kind::Unavailable,
        // Classes: connection exception, transaction rollback, insufficient resources, object not
        // in prerequisite state, operator intervention, system error.
        _ if ["08", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class)) => Kind::Unavailable,
        _ => Kind::Other,
    }
}
