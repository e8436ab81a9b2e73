use std::{error::Error, fmt, io};

use sqlx::error::DatabaseError;

use crate::StoreError;

/// Classifies an error of the database, and adds the remedy if there is one.
pub(crate) fn store_error(error: sqlx::Error) -> StoreError {
    classify(None, error)
}

/// Classifies an error like [`store_error`]. `place` is the server or the file.
pub(crate) fn store_error_at(place: &str, error: sqlx::Error) -> StoreError {
    classify(Some(place), error)
}

fn classify(place: Option<&str>, error: sqlx::Error) -> StoreError {
    let kind = match &error {
        sqlx::Error::Database(database) => kind(&**database),
        sqlx::Error::Io(source) if is_full(source) => Kind::Full,
        sqlx::Error::BeginFailed
        | sqlx::Error::Io(_)
        | sqlx::Error::PoolClosed
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::WorkerCrashed => Kind::Unavailable,
        _ => Kind::Other,
    };
    let remedy = match &error {
        sqlx::Error::Database(database) => remedy(&**database),
        sqlx::Error::Io(error) => unreachable_remedy(error),
        _ => None,
    };
    let context = match (place, remedy) {
        (Some(place), Some(remedy)) => Some(format!("{place}: {remedy}")),
        (place, remedy) => place.or(remedy).map(str::to_owned),
    };
    let source: Box<dyn Error + Send + Sync> = match context {
        Some(context) => Box::new(Explained { context, error }),
        None => Box::new(error),
    };
    match kind {
        Kind::Unavailable => StoreError::unavailable(source),
        Kind::Full => StoreError::full(source),
        Kind::Other => StoreError::other(source),
    }
}

/// An error of the database, after its place and the remedy.
#[derive(Debug)]
struct Explained {
    context: String,
    error: sqlx::Error,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.context, self.error)
    }
}

impl Error for Explained {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

/// Classifies an error of the file system. `context` says what failed.
#[cfg(feature = "sqlite")]
pub(super) fn file_error(context: String, error: io::Error) -> StoreError {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => "create its directory first: ",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "this process must be able to write the file and its directory: "
        }
        _ => "",
    };
    let text = format!("{context}: {remedy}{error}");
    if is_full(&error) { StoreError::full(text) } else { StoreError::unavailable(text) }
}

/// Returns what the user can do about a server that cannot be reached.
fn unreachable_remedy(error: &io::Error) -> Option<&'static str> {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
    )
    .then_some("check the host and the port in the URL, and that the server is running")
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
        // idle_in_transaction_session_timeout, transaction_timeout: the process was stopped
        "25P03" | "25P04" => Kind::Unavailable,
        // Classes: connection exception, transaction rollback, insufficient resources, object not
        // in prerequisite state, operator intervention, system error.
        _ if ["08", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class)) => Kind::Unavailable,
        _ => Kind::Other,
    }
}

/// Returns what the user of the database can do about an error whose own text does not say it.
fn remedy(error: &dyn DatabaseError) -> Option<&'static str> {
    let code = error.code()?;
    #[cfg(feature = "sqlite")]
    if error.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
        return sqlite_remedy(code.parse().ok()?);
    }
    Some(match &*code {
        // From a proxy: unsupported startup parameter.
        "08P01" if error.message().contains("startup parameter") => {
            "a proxy rejects a parameter of the URL: remove it, or add it to PgBouncer's `ignore_startup_parameters`"
        }
        // invalid_authorization_specification, invalid_password
        "28000" | "28P01" => "check the user and the password in the URL, and `pg_hba.conf` of the server",
        "25006" => "the server has become read-only: name the primary in the URL, or all servers",
        "26000" | "42P05" => {
            "another client uses this session: give PgBouncer `pool_mode = session`, or connect to the server itself"
        }
        "3D000" => "create the database first, with the encoding UTF8",
        "3F000" => "no schema of the `search_path` exists: create one, or name another one",
        "42501" => "a right is missing: an owner opens the store once and grants the rights listed in DATABASES.md",
        "42P01" => "a table was dropped or is not in the `search_path`: open the store again to create its tables",
        "57014" => "the statement took too long: look for locks on the table, and at the load of the server",
        "55P03" => "another session holds a lock on the table: end its transaction and try again",
        "53300" => {
            "the server has no free connection: raise `max_connections`, or run fewer processes; DATABASES.md says how \
             many each uses"
        }
        _ => return None,
    })
}

/// Takes an extended result code of SQLite.
#[cfg(feature = "sqlite")]
fn sqlite_remedy(code: u32) -> Option<&'static str> {
    const BUSY_SNAPSHOT: u32 = 517;
    Some(match (code, code & 255) {
        (BUSY_SNAPSHOT, _) => "the transaction read before another connection wrote: begin it with `BEGIN IMMEDIATE`",
        (_, 5 | 6) => {
            "another connection to the file is writing: keep its transactions short, and begin those that write with \
             `BEGIN IMMEDIATE`"
        }
        (_, 8 | 14) => "this process must be able to write the file, its directory, and its `-wal` and `-shm` files",
        (_, 11 | 26) => "the file is not a database, or it is damaged: restore a backup or choose another file",
        _ => return None,
    })
}
