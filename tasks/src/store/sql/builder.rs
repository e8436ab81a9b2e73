use std::{fmt, time::Duration};

#[cfg(feature = "postgres")]
use sqlx::postgres::{PgConnectOptions, PgPool};

use super::{DEFAULT_LEASE, Engine, SqlStore};
use crate::StoreError;

/// Configures a [`SqlStore`] before it is opened. Returned by [`SqlStore::builder`].
#[must_use = "a builder does nothing until `open` is called"]
pub struct SqlStoreBuilder {
    pub(super) source: Source,
    pub(super) settings: Settings,
}

/// Where the database is.
#[derive(Clone)]
pub(super) enum Source {
    Url(String),
    #[cfg(feature = "postgres")]
    Options(Box<PgConnectOptions>),
    #[cfg(feature = "postgres")]
    Pool(PgPool),
}

/// The options of a store that do not say where the database is.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) lease: Duration,
    pub(super) schema: Option<String>,
    pub(super) migrate: bool,
    /// `None` for the default of the database.
    pub(super) read_connections: Option<u32>,
    pub(super) maintenance_connections: Option<u32>,
    pub(super) job_connections: Option<u32>,
}

/// Maximum number of connections of a role. A server has 100 connections by default.
const MAX_CONNECTIONS: usize = 1000;
/// A job queue renews and claims while it writes.
const MIN_JOB_CONNECTIONS: usize = 2;

impl SqlStore {
    /// Returns a builder for a store in the database at `url`, which is read like that of
    /// [`open`](Self::open).
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), tower_offload_tasks::StoreError> {
    /// use tower_offload_tasks::SqlStore;
    ///
    /// let store = SqlStore::builder("postgres://app@localhost/app")
    ///     .schema("jobs")
    ///     .migrate(false)
    ///     .open()
    ///     .await?;
    /// # drop(store);
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(url: impl Into<String>) -> SqlStoreBuilder {
        SqlStoreBuilder::new(Source::Url(url.into()))
    }

    /// Returns a builder for a store that connects to Postgres with these options: one server, with
    /// the TLS settings, certificates and parameters of the options.
    ///
    /// A parameter of the session is overridden if this crate relies on it; `DATABASES.md` lists
    /// them.
    #[cfg(feature = "postgres")]
    #[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
    pub fn builder_with_options(options: PgConnectOptions) -> SqlStoreBuilder {
        SqlStoreBuilder::new(Source::Options(Box::new(options)))
    }

    /// Returns a builder for a store in the database of a pool of the application.
    ///
    /// The store uses the connect options of the pool, and connections of its own. In a shared
    /// pool, the renewal of a lease would wait behind the queries of the application, and the tasks
    /// of this process would be marked as lost while it works. The sessions also have settings that
    /// the application's queries must not have, such as the timeouts of statements. What the pool
    /// does after it connects does not apply to these connections.
    ///
    /// The options are read for each connection, so a password that the application rotates with
    /// [`set_connect_options`](sqlx::Pool::set_connect_options) applies to the store, too.
    ///
    /// ```no_run
    /// # async fn open(pool: sqlx::PgPool) -> Result<(), tower_offload_tasks::StoreError> {
    /// use tower_offload_tasks::SqlStore;
    ///
    /// let store = SqlStore::builder_with_pool(&pool).schema("jobs").open().await?;
    /// # drop(store);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "postgres")]
    #[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
    pub fn builder_with_pool(pool: &PgPool) -> SqlStoreBuilder {
        SqlStoreBuilder::new(Source::Pool(pool.clone()))
    }
}

impl SqlStoreBuilder {
    fn new(source: Source) -> Self {
        Self { source, settings: Settings::default() }
    }

    /// Sets the duration of leases. Default: 15 s. See [`SqlStore::open_with_lease`].
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// Sets the Postgres schema of all tables, functions and triggers, also of River's. Default:
    /// the first schema of the session's `search_path`.
    ///
    /// The name may have 1 to 46 bytes, because River's channels begin with it. It is used as it
    /// is: `Jobs` and `jobs` are two schemas. The schema is created if it does not exist, unless
    /// the store does not [migrate](Self::migrate).
    ///
    /// With a schema, a job can be enqueued in a transaction with any `search_path`.
    pub fn schema(mut self, name: impl Into<String>) -> Self {
        self.settings.schema = Some(name.into());
        self
    }

    /// Sets whether [`open`](Self::open) and the start of a job queue create and migrate the
    /// tables. Default: `true`.
    ///
    /// If they are up to date, no rights on the schema are needed in either case. With `false`, the
    /// error names what is missing, and the database does not change: use it if the migrations are
    /// part of the deployment, with `migration_sql` of the module `store` or `jobs`.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.settings.migrate = migrate;
        self
    }

    /// Sets the maximum number of connections that read statuses and lists for clients, 1 to 1000.
    /// Default: 3 on Postgres, which is enough for thousands of reads per second, and 4 on SQLite.
    pub fn read_connections(mut self, connections: usize) -> Self {
        self.settings.read_connections = Some(number(connections));
        self
    }

    /// Sets the maximum number of Postgres connections for sweeps, cancel requests, followed
    /// records, and inserts, progress and recovery of jobs, 1 to 1000. Default: 3, so that inserts
    /// continue during a sweep and a recovery. It has no effect on SQLite, where one connection
    /// writes.
    pub fn maintenance_connections(mut self, connections: usize) -> Self {
        self.settings.maintenance_connections = Some(number(connections));
        self
    }

    /// Sets the maximum number of connections of a job queue that claim jobs and write their ends,
    /// 2 to 1000. Default: 4. It also has up to two listeners on Postgres.
    pub fn job_connections(mut self, connections: usize) -> Self {
        self.settings.job_connections = Some(number(connections));
        self
    }

    /// Opens the store.
    ///
    /// # Errors
    ///
    /// Like [`SqlStore::open`], if an option is not valid, and if a table is missing or of an
    /// earlier version and the store does not [migrate](Self::migrate).
    ///
    /// # Panics
    ///
    /// The future panics outside a Tokio runtime.
    pub async fn open(self) -> Result<SqlStore, StoreError> {
        let Self { source, settings } = self;
        settings.validate()?;
        Ok(SqlStore { engine: Engine::open(source, settings).await?, queue_hook: Default::default() })
    }
}

/// Saturates: the maximum is checked later.
fn number(connections: usize) -> u32 {
    u32::try_from(connections).unwrap_or(u32::MAX)
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: DEFAULT_LEASE,
            schema: None,
            migrate: true,
            read_connections: None,
            maintenance_connections: None,
            job_connections: None,
        }
    }
}

impl Settings {
    fn validate(&self) -> Result<(), StoreError> {
        if self.lease.is_zero() {
            return Err(StoreError::other("the lease is zero: every process would be judged at once, use seconds"));
        }
        for (name, connections, min) in [
            ("read_connections", self.read_connections, 1),
            ("maintenance_connections", self.maintenance_connections, 1),
            ("job_connections", self.job_connections, MIN_JOB_CONNECTIONS),
        ] {
            let Some(connections) = connections.map(|connections| connections as usize) else { continue };
            if !(min..=MAX_CONNECTIONS).contains(&connections) {
                return Err(StoreError::other(format!(
                    "`{name}` must be between {min} and {MAX_CONNECTIONS}, got {connections}"
                )));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SqlStoreBuilder {
    /// Omits the URL and the options, which may contain a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlStoreBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}
