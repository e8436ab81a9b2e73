//! Connections for the ways that are not ours.

use std::time::Duration;

use riverqueue::{
    Client, ClientBuilder,
    migrate::{PostgresMigrator, SqliteMigrator},
};
use sqlx::{
    PgPool, SqlitePool,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use crate::BoxError;

/// To either of them. Connections are not tested before each use, which would be one way to the server and back more.
#[derive(Debug, Clone)]
pub(crate) enum Pool {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

/// As the store's.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than anybody waits here, so that it is the measured time that says how long.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(60);

impl Pool {
    /// SQLite with `synchronous=FULL`, as the store has it.
    pub(crate) async fn open(url: &str, connections: u32) -> Result<Self, BoxError> {
        let Some(path) = url.strip_prefix("sqlite:") else {
            let pool = PgPoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE_TIMEOUT);
            return Ok(Self::Postgres(pool.test_before_acquire(false).connect(url).await?));
        };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE_TIMEOUT);
        Ok(Self::Sqlite(pool.test_before_acquire(false).connect_with(options).await?))
    }

    /// A River client to be, with River's tables in the database.
    pub(crate) async fn river(&self) -> Result<ClientBuilder, BoxError> {
        Ok(match self {
            Self::Postgres(pool) => {
                PostgresMigrator::new(pool.clone()).migrate_up().await?;
                Client::builder(pool.clone())
            }
            Self::Sqlite(pool) => {
                SqliteMigrator::new(pool.clone()).migrate_up().await?;
                Client::builder(pool.clone())
            }
        })
    }

    pub(crate) async fn count(&self, query: &'static str) -> Result<usize, BoxError> {
        let count: i64 = match self {
            Self::Postgres(pool) => sqlx::query_scalar(query).fetch_one(pool).await?,
            Self::Sqlite(pool) => sqlx::query_scalar(query).fetch_one(pool).await?,
        };
        Ok(usize::try_from(count)?)
    }
}
