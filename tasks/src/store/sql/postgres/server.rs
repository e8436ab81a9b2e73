//! Finds the server that accepts writes, and prepares sessions on it.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use sqlx::{
    ConnectOptions, PgConnection, Row,
    postgres::{PgPool, PgPoolOptions},
};
use tokio::time::{Instant, timeout};

use super::{
    schema_name::Schema,
    url::{Server, Target},
};
use crate::{
    StoreError,
    store::sql::error::store_error_at,
    sync::{Mutex, lock},
};

/// The servers of one database: a primary, and possibly its standbys.
pub(crate) struct Servers {
    servers: Vec<Server>,
    /// The schema that each session uses.
    schema: Schema,
    connect_timeout: Duration,
    /// Index of the server that a connection was last made to. The next search begins there.
    primary: AtomicUsize,
    /// Connections that were made earlier are not used again, because the server has shut down or
    /// has become read-only since then.
    trusted_since: Mutex<Instant>,
    /// Pools of job queues, at most [`MAX_FOLLOWERS`]. Their connect options follow `primary`.
    followers: Mutex<Vec<PgPool>>,
}

/// A connection to the primary.
pub(crate) struct Connected {
    pub(super) connection: PgConnection,
    pub(super) server: usize,
    created_at: Instant,
}

/// Delay before the next server is tried too. RFC 8305 recommends 250 ms.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// A job queue has at most six pools: those of its listener, its client, three clients that were
/// replaced, and the next client. Those that are no longer used are closed.
const MAX_FOLLOWERS: usize = 8;

/// Settings that the transactions of this crate rely on. A process that lost its network or stalls
/// within a transaction must not keep its locks: the timeout on idle time is shorter than that
/// after which a process that waits for the locks gives up. The default of the role for the
/// isolation level may be stricter, and would refuse concurrent updates.
///
/// A setting of the role or the database for the duration of transactions (Postgres 17) would end
/// migrations. The last statement returns whether the server accepts writes.
const PREPARE_SESSION: &str = "
SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'transaction_timeout' AND setting <> '0';
SET idle_in_transaction_session_timeout = '5s';
SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED;
SHOW transaction_read_only";

impl Servers {
    pub(super) fn new(target: Target, schema: Schema) -> Self {
        Self {
            servers: target.servers,
            schema,
            connect_timeout: target.connect_timeout,
            primary: AtomicUsize::new(0),
            trusted_since: Mutex::new(Instant::now()),
            followers: Mutex::default(),
        }
    }

    pub(crate) fn schema(&self) -> &Schema {
        &self.schema
    }

    pub(super) fn name(&self, server: usize) -> &Arc<str> {
        &self.servers[server].name
    }

    /// Returns the names of all servers, for messages.
    pub(super) fn names(&self) -> String {
        self.servers.iter().map(|server| &*server.name).collect::<Vec<_>>().join(", ")
    }

    /// Connects to the first server that accepts writes. Begins with the server of the previous
    /// connection. A statement that takes longer than `statement_timeout` is cancelled; zero means
    /// no limit.
    ///
    /// If a server has not responded within [`ATTEMPT_DELAY`], it is tried at the same time as the
    /// next one, like in RFC 8305. So one that drops all packets costs neither a lease nor a read.
    pub(super) async fn connect(&self, statement_timeout: Duration) -> Result<Connected, StoreError> {
        let (count, first) = (self.servers.len(), self.primary.load(Ordering::Relaxed));
        let mut untried = (0..count).map(|index| (first + index) % count);
        let (mut attempts, mut errors) = (Vec::new(), Vec::new());
        loop {
            match untried.next() {
                Some(server) => attempts.push(Box::pin(self.connect_to(server, statement_timeout))),
                None if attempts.is_empty() => break,
                None => {}
            }
            match timeout(ATTEMPT_DELAY, first_done(&mut attempts)).await {
                Ok(Ok(connected)) => {
                    self.set_primary(connected.server);
                    return Ok(connected);
                }
                Ok(Err(error)) => errors.push(error),
                Err(_) => {} // the next attempt begins
            }
        }
        if errors.len() == 1 {
            return errors.pop().map_or_else(|| Err(StoreError::unavailable("no server")), Err);
        }
        let texts: Vec<_> = errors.iter().map(StoreError::causes).collect();
        Err(StoreError::unavailable(format!("none of the servers accepts writes: {}", texts.join("; "))))
    }

    async fn connect_to(&self, server: usize, statement_timeout: Duration) -> Result<Connected, StoreError> {
        let (name, options) = (self.name(server), self.servers[server].options());
        let connect = async {
            let mut connection = options.connect().await?;
            let timeout = format!("SET statement_timeout = {};", statement_timeout.as_millis());
            let set = timeout + &self.schema.set_search_path();
            let is_read_only = prepare(&mut connection, &set).await?;
            Ok((connection, is_read_only))
        };
        let connected = timeout(self.connect_timeout, connect).await;
        let late = |_| StoreError::unavailable(format!("no connection to {name} within {:?}", self.connect_timeout));
        match connected.map_err(late)?.map_err(|error| store_error_at(name, error))? {
            (connection, false) => Ok(Connected { connection, server, created_at: Instant::now() }),
            (_, true) => Err(StoreError::unavailable(format!("{name} {READ_ONLY}"))),
        }
    }

    fn set_primary(&self, server: usize) {
        let is_new = self.primary.swap(server, Ordering::Relaxed) != server;
        #[cfg(feature = "tracing")]
        if is_new {
            tracing::info!("the primary of the task database is now {}", self.name(server));
        }
        if is_new || self.servers[server].has_pool() {
            for pool in &*lock(&self.followers) {
                pool.set_connect_options(self.servers[server].options());
            }
        }
    }

    /// Stops the use of all connections that exist. Called when `connected` shows that the server
    /// has shut down or has become read-only.
    pub(super) fn distrust(&self, connected: &Connected, reason: &str) {
        let mut trusted_since = lock(&self.trusted_since);
        // Otherwise each connection that fails later would stop the use of its replacements.
        if connected.created_at >= *trusted_since {
            *trusted_since = Instant::now();
            #[cfg(feature = "tracing")]
            tracing::warn!(reason, "all connections to {} are replaced", self.name(connected.server));
            let _ = reason; // unused without `tracing`
        }
    }

    fn is_trusted(&self, created_at: Instant) -> bool {
        created_at >= *lock(&self.trusted_since)
    }

    /// Returns a pool for a job queue, which makes its connections itself. `prepare` is executed on
    /// each of them. Like the connections of the store, they lead to the primary, and those from
    /// before a failover are closed.
    pub(super) fn pool(self: &Arc<Self>, max_connections: u32, prepare_more: &str) -> PgPool {
        let options = self.servers[self.primary.load(Ordering::Relaxed)].options();
        let (servers, prepare_more) = (self.clone(), Arc::<str>::from(prepare_more));
        let set = Arc::<str>::from(self.schema.set_search_path());
        let pool = PgPoolOptions::new()
            .max_connections(max_connections)
            .after_connect(move |connection, _| {
                let (set, prepare_more) = (set.to_string(), prepare_more.to_string());
                Box::pin(async move {
                    // An error makes the pool try again until its timeout elapses.
                    if prepare(&mut *connection, &set).await? {
                        return Err(sqlx::Error::Configuration(format!("the server {READ_ONLY}").into()));
                    }
                    sqlx::raw_sql(sqlx::AssertSqlSafe(prepare_more)).execute(connection).await.map(drop)
                })
            })
            .before_acquire(move |_, metadata| {
                let is_trusted = Instant::now().checked_sub(metadata.age).is_none_or(|at| servers.is_trusted(at));
                Box::pin(async move { Ok(is_trusted) })
            })
            .connect_lazy_with(options);
        let mut followers = lock(&self.followers);
        followers.retain(|pool| !pool.is_closed());
        followers.truncate(MAX_FOLLOWERS - 1);
        followers.insert(0, pool.clone());
        pool
    }

    /// Forgets the pools of job queues, which close them.
    pub(super) fn close(&self) {
        let followers = std::mem::take(&mut *lock(&self.followers));
        drop(followers); // outside the lock
    }
}

impl Connected {
    pub(super) fn is_trusted(&self, servers: &Servers) -> bool {
        servers.is_trusted(self.created_at)
    }

    pub(super) fn age(&self) -> Duration {
        self.created_at.elapsed()
    }
}

/// Waits for the first attempt that has ended, and removes it.
async fn first_done<F: Future>(attempts: &mut Vec<Pin<Box<F>>>) -> F::Output {
    poll_fn(|cx| {
        for index in 0..attempts.len() {
            if let Poll::Ready(output) = attempts[index].as_mut().poll(cx) {
                drop(attempts.remove(index));
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    })
    .await
}

const READ_ONLY: &str = "is read-only: name the primary in the URL, or all servers, and see that \
                         `default_transaction_read_only` is off for the role and the database";

/// Prepares a session, for which it also executes `more`. Returns `true` if the server does not
/// accept writes.
async fn prepare(connection: &mut PgConnection, more: &str) -> Result<bool, sqlx::Error> {
    let statements = sqlx::AssertSqlSafe(format!("{more}{PREPARE_SESSION}"));
    let rows = sqlx::raw_sql(statements).fetch_all(connection).await?;
    let setting: String = rows.last().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
    Ok(setting == "on")
}
