use std::time::Duration;

use sqlx::{
    Connection, PgConnection, Transaction,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPool, PgPoolOptions},
};
use tokio::time::timeout;

use super::schema::{CREATE_MIGRATION, STEPS};
use crate::{
    StoreError, Timestamp,
    store::sql::{error::store_error, migration, row::millis},
};

/// Connections to the server. One writes most of the time; the others read.
pub(super) struct Connections {
    pool: PgPool,
}

const CONNECTIONS: u32 = 5;
/// For so long a connection is taken to work that nobody has used.
const TRUSTED: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that was taken off the network says nothing, and the system gives up only after minutes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The other way round: a process that was taken off the network within a transaction, or stands still, must not keep what it has locked.
/// Sooner than who waits for that is out of time. Of this transaction only, for the connection may be shared by a proxy.
const BEGIN: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '5s'";

impl Connections {
    pub(super) async fn open(url: &str) -> Result<Self, StoreError> {
        let options: PgConnectOptions = url.parse().map_err(store_error)?;
        // A pool would try again and again, and say in the end only that it took too long.
        let first = timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await;
        let first = first.map_err(|_| StoreError::unavailable(format!("no connection within {CONNECT_TIMEOUT:?}")))?;
        drop(first.map_err(store_error)?.close().await);
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(CONNECT_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|connection, metadata| {
                Box::pin(async move {
                    // One that was just used needs no way to the server and back to show that it works.
                    if metadata.idle_for > TRUSTED {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            });
        let connections = Self { pool: pool.connect_with(options).await.map_err(store_error)? };
        connections.transaction(async |connection| migrate(connection).await).await??;
        Ok(connections)
    }

    /// All or nothing of what `change` does.
    pub(super) async fn transaction<T>(
        &self,
        change: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        self.attempt(change).await?.map_err(store_error)
    }

    /// As [`transaction`](Self::transaction). The error within is one of the database.
    pub(super) async fn attempt<T>(
        &self,
        change: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<Result<T, sqlx::Error>, StoreError> {
        self.begin(async |transaction| change(&mut **transaction).await).await
    }

    /// As [`attempt`](Self::attempt), with the transaction itself, and an error of the caller's.
    pub(super) async fn begin<T, E: From<sqlx::Error>>(
        &self,
        change: impl AsyncFnOnce(&mut Transaction<'_, sqlx::Postgres>) -> Result<T, E>,
    ) -> Result<Result<T, E>, StoreError> {
        let mut connection = self.acquire().await?;
        let work = async {
            let mut transaction = connection.begin_with(BEGIN).await?;
            let value = change(&mut transaction).await?;
            transaction.commit().await?;
            Ok(value)
        };
        let done = timeout(ANSWER_TIMEOUT, work).await;
        if done.is_err() {
            connection.close_on_drop();
        }
        done.map_err(|_| silent())
    }

    /// What `ask` reads.
    pub(super) async fn read<T>(
        &self,
        ask: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let mut connection = self.acquire().await?;
        let answer = timeout(ANSWER_TIMEOUT, ask(&mut connection)).await;
        if answer.is_err() {
            connection.close_on_drop();
        }
        answer.map_err(|_| silent())?.map_err(store_error)
    }

    async fn acquire(&self) -> Result<PoolConnection<sqlx::Postgres>, StoreError> {
        self.pool.acquire().await.map_err(store_error)
    }

    #[cfg(feature = "river")]
    pub(super) fn options(&self) -> PgConnectOptions {
        (*self.pool.connect_options()).clone()
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

fn silent() -> StoreError {
    StoreError::unavailable(format!("the server has said nothing for {ANSWER_TIMEOUT:?}"))
}

/// Statements waited for one another in a circle and the server has ended this one, or it says that it should be done again.
pub(crate) fn is_conflict(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "40P01" || code == "40001")
}

/// Two processes that begin at once do this one after the other. The number is ours, and nothing else.
const LOCK: &str = "SELECT pg_advisory_xact_lock(8388076842113)";

async fn migrate(connection: &mut PgConnection) -> Result<Result<(), StoreError>, sqlx::Error> {
    sqlx::query(LOCK).execute(&mut *connection).await?;
    // Asked first, for who may use the tables need not have the right to make some.
    let exists = sqlx::query_scalar("SELECT to_regclass('tower_offload_migration') IS NOT NULL");
    if !exists.fetch_one(&mut *connection).await? {
        sqlx::query(CREATE_MIGRATION).execute(&mut *connection).await?;
    }
    let version = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM tower_offload_migration");
    let steps = match migration::missing(STEPS, version.fetch_one(&mut *connection).await?) {
        Ok(steps) => steps,
        Err(error) => return Ok(Err(error)),
    };
    let applied_at = millis(Timestamp::from(std::time::SystemTime::now()));
    for (version, step) in steps {
        sqlx::raw_sql(step).execute(&mut *connection).await?;
        let note = sqlx::query("INSERT INTO tower_offload_migration (version, applied_at) VALUES ($1, $2)");
        note.bind(version).bind(applied_at).execute(&mut *connection).await?;
    }
    Ok(Ok(()))
}
