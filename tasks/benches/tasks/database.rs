//! A new database for each run, and connections for the peers.

use std::{env, fs, time::Duration};

use riverqueue::{
    Client, ClientBuilder,
    migrate::{PostgresMigrator, SqliteMigrator},
};
use sqlx::{
    Connection, PgConnection, PgPool, SqlitePool,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::runtime;
use tower_offload_benches::BoxError;

use crate::Store;

/// The same timeout as in the store.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Longer than a run, so that the measured latencies show how long a call waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(60);

const NO_SERVER: &str = "DATABASE_URL names no Postgres";

/// A new, empty database. Dropping the value removes the database.
pub(crate) struct Fresh {
    name: String,
    store: Store,
    /// The URL of any database on the Postgres server.
    server: Option<String>,
}

impl Fresh {
    pub(crate) fn new(store: Store, server: Option<&str>) -> Result<Self, BoxError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)?;
        let name = format!("tower_offload_bench_{:016x}", u64::from_ne_bytes(random));
        match store {
            Store::Memory => {}
            Store::Sqlite => fs::create_dir(env::temp_dir().join(&name))?,
            Store::Postgres => execute(server.ok_or(NO_SERVER)?, format!("CREATE DATABASE {name}"))?,
        }
        Ok(Self { name, store, server: server.map(str::to_owned) })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let removed = match (self.store, &self.server) {
            (Store::Sqlite, _) => fs::remove_dir_all(env::temp_dir().join(&self.name)).map_err(Into::into),
            (Store::Postgres, Some(server)) => execute(server, format!("DROP DATABASE {} WITH (FORCE)", self.name)),
            (Store::Memory | Store::Postgres, _) => Ok(()),
        };
        if let Err(error) = removed {
            // The URL is not printed, because it may contain a password.
            eprintln!("tasks: {} was not removed: {error}", self.name);
        }
    }
}

/// Returns the URL of the database with this name, from the environment of the process.
///
/// A URL may contain a password, and arguments of processes are public. So only the name is passed
/// to child processes.
pub(crate) fn url(store: Store, name: &str) -> Result<String, BoxError> {
    match store {
        Store::Memory => Ok(String::new()),
        Store::Sqlite => Ok(format!("sqlite:{}", env::temp_dir().join(name).join("tasks.db").display())),
        Store::Postgres => {
            let server = env::var("DATABASE_URL").map_err(|_| NO_SERVER)?;
            let (before, parameters) = server.split_once('?').unwrap_or((&server, ""));
            let (address, _) = before.rsplit_once('/').ok_or("DATABASE_URL names no database")?;
            Ok(format!("{address}/{name}?{parameters}"))
        }
    }
}

fn execute(server: &str, statement: String) -> Result<(), BoxError> {
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut connection = PgConnection::connect(server).await?;
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await?;
        Ok(connection.close().await?)
    })
}

/// Connections to a database. They are not tested before each use, which would add a round trip.
#[derive(Debug, Clone)]
pub(crate) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Pool {
    /// Opens SQLite with `synchronous=FULL`, like the store.
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

    /// Creates River's tables and returns the builder of a client.
    pub(crate) async fn river(&self) -> Result<ClientBuilder, BoxError> {
        Ok(match self {
            Self::Sqlite(pool) => {
                SqliteMigrator::new(pool.clone()).migrate_up().await?;
                Client::builder(pool.clone())
            }
            Self::Postgres(pool) => {
                PostgresMigrator::new(pool.clone()).migrate_up().await?;
                Client::builder(pool.clone())
            }
        })
    }

    pub(crate) async fn count(&self, query: &'static str) -> Result<usize, BoxError> {
        let count: i64 = match self {
            Self::Sqlite(pool) => sqlx::query_scalar(query).fetch_one(pool).await?,
            Self::Postgres(pool) => sqlx::query_scalar(query).fetch_one(pool).await?,
        };
        Ok(usize::try_from(count)?)
    }
}
