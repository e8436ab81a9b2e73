use std::io;

use sqlx::error::DatabaseError;

use crate::StoreError;

/// What a failure of the database means for who asked.
pub(crate) fn store_error(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::Database(database) => match kind(&**database) {
            Kind::Full => StoreError::full(error),
            Kind::Other => StoreError::other(error),
            Kind::Unavailable => StoreError::unavailable(error),
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

#[cfg(feature = "sqlite")]
pub(super) fn file_error(what: String, error: io::Error) -> StoreError {
    let text = format!("{what}: {error}");
    if is_full(&error) { StoreError::full(text) } else { StoreError::unavailable(text) }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

enum Kind {
    Full,
    Other,
    Unavailable,
}

fn kind(error: &dyn DatabaseError) -> Kind {
    let code = error.code().unwrap_or_default();
    #[cfg(feature = "sqlite")]
    if error.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
        // An extended code has the plain one in its lowest byte.
        return match code.parse::<u32>().unwrap_or_default() & 255 {
            13 => Kind::Full,
            // Busy, locked, read-only, input or output, cannot open.
            5 | 6 | 8 | 10 | 14 => Kind::Unavailable,
            _ => Kind::Other,
        };
    }
    match &*code {
        "53100" => Kind::Full,
        // A server that has become a standby.
        "25006" => Kind::Unavailable,
        // Connections, transactions that got in each other's way, resources, operators, the system.
        _ if ["08", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class)) => Kind::Unavailable,
        _ => Kind::Other,
    }
}
