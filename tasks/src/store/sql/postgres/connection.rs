use std::{sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Transaction, postgres::PgPool};
use tokio::time::timeout;

use super::{
    pool::{Lent, Limits, RolePool},
    schema_name::Schema,
    server::Servers,
    session::check,
    url::Target,
};
use crate::{
    StoreError,
    store::sql::{
        builder::{Settings, Source},
        error::store_error_at,
    },
};

/// The connections to the server, by what they are used for.
///
/// Each role has connections of its own, so that a role that is overloaded does not delay the
/// others. In particular, neither strangers that read statuses nor transactions that wait for a
/// lock can make the lease of this process expire.
pub(crate) struct Connections {
    pub(super) servers: Arc<Servers>,
    lease: RolePool,
    write: RolePool,
    maintenance: RolePool,
    read: RolePool,
    /// Maximum number of connections of a pool for a job queue.
    #[cfg_attr(not(feature = "river"), allow(dead_code, reason = "for job queues"))]
    pub(crate) job_connections: u32,
}

/// The purpose of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Begins, renews and ends leases, in transactions that do not wait for other rows.
    Lease,
    /// Writes the batches of the writer.
    Write,
    /// Sweeps, polls for cancel requests and for followed records, inserts and recovers jobs, and
    /// writes their progress.
    Maintenance,
    /// Reads records for clients, of which there may be any number.
    Read,
}

/// Timeout of transactions of every role except [`Role::Lease`].
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds of the timeout of a transaction for a lease.
const MIN_LEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// Number of readers that wait. At 1 ms for a read, they wait for less than 0.2 s.
const MAX_WAITING_READS: usize = 512;
/// The callers of the other roles are tasks of this process, whose number has other bounds.
const UNLIMITED: usize = usize::MAX;
/// Number of attempts at a transaction that the server rolls back because of a conflict.
const MAX_ATTEMPTS: usize = 3;
/// Readers do not wait for each other up to thousands of reads per second.
const READ_CONNECTIONS: u32 = 3;
/// A sweep, a recovery, and the inserts of jobs.
const MAINTENANCE_CONNECTIONS: u32 = 3;
/// Claims, ends and notifications.
const JOB_CONNECTIONS: u32 = 4;

impl Connections {
    /// Connects, and refuses a server or a database that cannot be used.
    pub(super) async fn open(source: Source, settings: &Settings, lease: Duration) -> Result<Self, StoreError> {
        let target = match source {
            Source::Url(url) => Target::parse(&url).map_err(StoreError::other)?,
            Source::Options(options) => Target::of_options(*options),
            Source::Pool(pool) => Target::of_pool(pool),
        };
        let servers = Arc::new(Servers::new(target, Schema::new(settings.schema.as_deref())?));
        let pool = |purpose, connections: u32, waiting, response_timeout| {
            let connections = connections as usize;
            RolePool::new(servers.clone(), Limits { purpose, connections, waiting, response_timeout })
        };
        let reads = settings.read_connections.unwrap_or(READ_CONNECTIONS);
        let maintenance = settings.maintenance_connections.unwrap_or(MAINTENANCE_CONNECTIONS);
        // Leaves time for another attempt on another connection before the lease expires.
        let lease_timeout = (lease / super::RENEWALS).clamp(MIN_LEASE_TIMEOUT, RESPONSE_TIMEOUT);
        let connections = Self {
            lease: pool("leases", 1, UNLIMITED, lease_timeout),
            write: pool("writes", 1, UNLIMITED, RESPONSE_TIMEOUT),
            maintenance: pool("maintenance", maintenance, UNLIMITED, RESPONSE_TIMEOUT),
            read: pool("reads", reads, MAX_WAITING_READS, RESPONSE_TIMEOUT),
            job_connections: settings.job_connections.unwrap_or(JOB_CONNECTIONS),
            servers,
        };
        let connect = async |pool: &RolePool| pool.limits.connect(&connections.servers).await;
        let (mut first, mut second) = (connect(&connections.lease).await?, connect(&connections.write).await?);
        let name = connections.servers.name(first.server);
        let checked = timeout(RESPONSE_TIMEOUT, check(&mut first.connection, &mut second.connection, name)).await;
        checked.map_err(|_| no_response(name, RESPONSE_TIMEOUT))??;
        connections.lease.add(first);
        connections.write.add(second);
        Ok(connections)
    }

    /// Executes `change` in a transaction. Repeats the transaction if the server rolls it back
    /// because of a conflict with another one.
    pub(crate) async fn transaction<T>(
        &self,
        role: Role,
        change: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> Result<T, StoreError> {
        self.transaction_after("", role, change).await
    }

    /// Executes `change` in a transaction like [`transaction`](Self::transaction). `first` is sent
    /// together with `BEGIN`.
    pub(super) async fn transaction_after<T>(
        &self,
        first: &str,
        role: Role,
        change: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> Result<T, StoreError> {
        for _ in 1..MAX_ATTEMPTS {
            let change = change.clone();
            let (server, done) = self.run(first, role, async |transaction| change(&mut **transaction).await).await?;
            match done {
                Err(error) if is_conflict(&error) => {
                    #[cfg(feature = "tracing")]
                    tracing::debug!(%error, "a transaction is repeated");
                }
                done => return done.map_err(|error| store_error_at(&server, error)),
            }
        }
        let (server, done) = self.run(first, role, async |transaction| change(&mut **transaction).await).await?;
        done.map_err(|error| store_error_at(&server, error))
    }

    /// Executes `change` in a transaction. The inner error is that of `change` or of the commit.
    #[cfg_attr(not(feature = "river"), allow(dead_code, reason = "for job queues"))]
    pub(crate) async fn begin<T, E: TransactionError>(
        &self,
        role: Role,
        change: impl AsyncFnOnce(&mut Transaction<'_, sqlx::Postgres>) -> Result<T, E>,
    ) -> Result<Result<T, E>, StoreError> {
        Ok(self.run("", role, change).await?.1)
    }

    /// Executes `change` in a transaction. Returns the name of the server as well.
    async fn run<T, E: TransactionError>(
        &self,
        first: &str,
        role: Role,
        change: impl AsyncFnOnce(&mut Transaction<'_, sqlx::Postgres>) -> Result<T, E>,
    ) -> Result<(Arc<str>, Result<T, E>), StoreError> {
        let pool = self.pool_of(role);
        let mut lent = pool.acquire().await?;
        let server = lent.server();
        lent.begins_transaction();
        let connection = lent.connection()?;
        let mut has_begun = false;
        let work = async {
            let mut transaction = connection.begin_with(AssertSqlSafe(format!("BEGIN; {first}"))).await?;
            has_begun = true;
            match change(&mut transaction).await {
                Ok(value) => transaction.commit().await.map(|()| value).map_err(E::from),
                Err(error) => {
                    let _ = transaction.rollback().await; // the connection is tested before its next use
                    Err(error)
                }
            }
        };
        let done = timeout(pool.limits.response_timeout, work).await;
        if !has_begun {
            lent.must_close(); // sqlx would not roll back a transaction in which `first` has failed
        }
        let done = finish(lent, done, E::database, pool.limits.response_timeout)?;
        Ok((server, done))
    }

    /// Executes statements without a transaction.
    pub(crate) async fn read<T>(
        &self,
        role: Role,
        query: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let pool = self.pool_of(role);
        let mut lent = pool.acquire().await?;
        let server = lent.server();
        let done = timeout(pool.limits.response_timeout, query(lent.connection()?)).await;
        let done = finish(lent, done, TransactionError::database, pool.limits.response_timeout)?;
        done.map_err(|error| store_error_at(&server, error))
    }

    /// Returns a pool for a job queue. `prepare` is executed on each new connection.
    ///
    /// Its connections lead to the server that accepts writes, and those from before a failover are
    /// not used again. Close it when it is no longer needed. Of several pools, the eight newest
    /// follow a failover to another host.
    #[cfg_attr(not(feature = "river"), allow(dead_code, reason = "for job queues"))]
    pub(crate) fn pool(&self, max_connections: u32, prepare: &str) -> PgPool {
        self.servers.pool(max_connections, prepare)
    }

    /// Returns the schema of all tables.
    pub(crate) fn schema(&self) -> &Schema {
        self.servers.schema()
    }

    pub(super) async fn close(&self) {
        self.servers.close();
        for pool in [&self.read, &self.maintenance, &self.write, &self.lease] {
            pool.close().await;
        }
    }

    fn pool_of(&self, role: Role) -> &RolePool {
        match role {
            Role::Lease => &self.lease,
            Role::Write => &self.write,
            Role::Maintenance => &self.maintenance,
            Role::Read => &self.read,
        }
    }
}

/// Releases a connection. `done` is `Err` if the server did not respond in time.
fn finish<T, E>(
    lent: Lent<'_>,
    done: Result<Result<T, E>, tokio::time::error::Elapsed>,
    database: impl for<'a> FnOnce(&'a E) -> Option<&'a sqlx::Error>,
    response_timeout: Duration,
) -> Result<Result<T, E>, StoreError> {
    match done {
        Ok(Ok(value)) => {
            lent.release();
            Ok(Ok(value))
        }
        Ok(Err(error)) => {
            lent.release_after(database(&error));
            Ok(Err(error))
        }
        Err(_) => {
            let error = no_response(&lent.server(), response_timeout);
            lent.discard();
            Err(error)
        }
    }
}

pub(super) fn no_response(server: &str, response_timeout: Duration) -> StoreError {
    StoreError::unavailable(format!("no response from the server {server} within {response_timeout:?}"))
}

/// An error of a transaction.
pub(crate) trait TransactionError: From<sqlx::Error> {
    /// Returns the error of the database, if it is one.
    fn database(&self) -> Option<&sqlx::Error>;
}

impl TransactionError for sqlx::Error {
    fn database(&self) -> Option<&sqlx::Error> {
        Some(self)
    }
}

/// Returns `true` if the server rolled the transaction back because of a deadlock or a
/// serialization failure, so that it can be retried.
pub(crate) fn is_conflict(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "40P01" || code == "40001")
}
