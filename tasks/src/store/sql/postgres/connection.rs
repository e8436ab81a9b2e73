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
    store::sql::{migration::missing_steps, row::millis, store_error},
};

/// Connections to the server. Usually one of them writes and the others read.
pub(crate) struct Connections {
    pub(crate) pool: PgPool,
}

const MAX_CONNECTIONS: u32 = 5;
/// Maximum idle time of a connection that is used without a test.
const MAX_UNTESTED_IDLE: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time to wait for the server. A server that lost its network does not respond, and TCP
/// gives up only after minutes.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Begins a transaction with a timeout on idle time, because a process that lost its network or
/// stalls within a transaction must not keep its locks. The timeout is shorter than
/// `RESPONSE_TIMEOUT`, after which a process that waits for the locks gives up. It is set per
/// transaction, because a proxy may share the connection.
const BEGIN: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '5s'";

impl Connections {
    pub(super) async fn open(url: &str) -> Result<Self, StoreError> {
        let options: PgConnectOptions = url.parse().map_err(store_error)?;
        // Connects without the pool first: the pool would retry, and report only a timeout.
        let first = timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await;
        let first = first.map_err(|_| StoreError::unavailable(format!("no connection within {CONNECT_TIMEOUT:?}")))?;
        drop(first.map_err(store_error)?.close().await);
        let pool = PgPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(CONNECT_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|connection, metadata| {
                Box::pin(async move {
                    if metadata.idle_for > MAX_UNTESTED_IDLE {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            });
        let connections = Self { pool: pool.connect_with(options).await.map_err(store_error)? };
        connections.transaction(async |connection| migrate(connection).await).await??;
        Ok(connections)
    }

    /// Executes `change` in a transaction.
    pub(super) async fn transaction<T>(
        &self,
        change: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        self.attempt(change).await?.map_err(store_error)
    }

    /// Executes `change` in a transaction. The inner error is that of `change` or of the commit.
    pub(super) async fn attempt<T>(
        &self,
        change: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<Result<T, sqlx::Error>, StoreError> {
        self.begin(async |transaction| change(&mut **transaction).await).await
    }

    /// Executes `change` in a transaction, like [`attempt`](Self::attempt), and passes it the
    /// transaction itself.
    pub(crate) async fn begin<T, E: From<sqlx::Error>>(
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
        let done = timeout(RESPONSE_TIMEOUT, work).await;
        if done.is_err() {
            connection.close_on_drop();
        }
        done.map_err(|_| no_response())
    }

    /// Executes statements without a transaction.
    pub(crate) async fn read<T>(
        &self,
        query: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let mut connection = self.acquire().await?;
        let result = timeout(RESPONSE_TIMEOUT, query(&mut connection)).await;
        if result.is_err() {
            connection.close_on_drop();
        }
        result.map_err(|_| no_response())?.map_err(store_error)
    }

    async fn acquire(&self) -> Result<PoolConnection<sqlx::Postgres>, StoreError> {
        self.pool.acquire().await.map_err(store_error)
    }
}

fn no_response() -> StoreError {
    StoreError::unavailable(format!("no response from the server within {RESPONSE_TIMEOUT:?}"))
}

/// Returns `true` if the server rolled the transaction back because of a deadlock or a
/// serialization failure, so that it can be retried.
pub(crate) fn is_conflict(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "40P01" || code == "40001")
}

/// Serializes the migrations of processes that start at the same time. The number is arbitrary.
const LOCK: &str = "SELECT pg_advisory_xact_lock(8388076842113)";

async fn migrate(connection: &mut PgConnection) -> Result<Result<(), StoreError>, sqlx::Error> {
    sqlx::query(LOCK).execute(&mut *connection).await?;
    // Checked first, because a user who may use the tables may not be allowed to create any.
    let exists = sqlx::query_scalar("SELECT to_regclass('tower_offload_migration') IS NOT NULL");
    if !exists.fetch_one(&mut *connection).await? {
        sqlx::query(CREATE_MIGRATION).execute(&mut *connection).await?;
    }
    let version = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM tower_offload_migration");
    let steps = match missing_steps(STEPS, version.fetch_one(&mut *connection).await?) {
        Ok(steps) => steps,
        Err(error) => return Ok(Err(error)),
    };
    let applied_at = millis(Timestamp::from(std::time::SystemTime::now()));
    for (version, step) in steps {
        sqlx::raw_sql(step).execute(&mut *connection).await?;
        let insert = sqlx::query("INSERT INTO tower_offload_migration (version, applied_at) VALUES ($1, $2)");
        insert.bind(version).bind(applied_at).execute(&mut *connection).await?;
    }
    Ok(Ok(()))
}
