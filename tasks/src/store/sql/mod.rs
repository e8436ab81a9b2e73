//! Stores in a SQL database.

mod builder;
mod error;
mod list;
mod migration;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
pub(crate) mod row;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;
mod summary;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

pub use self::builder::SqlStoreBuilder;
use self::builder::{Settings, Source};
pub(crate) use self::error::store_error;
#[cfg(feature = "postgres")]
use self::postgres::Postgres;
use self::row::task_id;
#[cfg(feature = "sqlite")]
use self::sqlite::Sqlite;
use crate::{
    Record, StoreError, TaskId, TaskStore, Timestamp,
    operation::QueueHook,
    store::{
        Epoch, Filter, Found, Lease, Listing, Op, Page, Process, Retention, StoreFuture, Summary, Swept, Written,
        list::scan_end,
    },
    sync::{Mutex, lock},
    text::sanitize,
};

/// Keeps records in a SQLite or Postgres database, so that they survive the process. Clones share
/// the database.
///
/// With SQLite (feature `sqlite`), one process uses the file; a second one gets an error that
/// [names the first](StoreError::is_locked). Several [`Tasks`](crate::Tasks) of the process can use
/// clones of one store. The tasks of a crashed process are marked as lost when the next process
/// starts. An accepted task survives a crash and a power failure (`synchronous=FULL`).
///
/// With Postgres (feature `postgres`), many processes use the database. The tasks of a crashed
/// process are marked as lost when its lease has expired, by the server's clock, and another
/// process has had a connection without a gap for the duration of a lease: so after an outage of
/// the server they are not lost. Whether an accepted task survives a power failure of the server
/// depends on its setting `synchronous_commit`.
///
/// [`open`](Self::open) creates and migrates the tables. Their names begin with `tower_offload_`,
/// so the database can have other tables too. [`builder`](Self::builder) has options: a pool or
/// connect options of the application, a schema, the numbers of connections, and no migrations. NUL characters, which Postgres does not store, become
/// U+FFFD. Connections, rights and the removal of the tables are described in `DATABASES.md` of
/// this package.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_offload_tasks::StoreError> {
/// # #[cfg(feature = "sqlite")] {
/// use tower_offload_tasks::{SqlStore, Tasks};
///
/// # let file = format!("tower-offload-example-{}.db", std::process::id());
/// # let file = std::env::temp_dir().join(file).display().to_string();
/// let store = SqlStore::open(&format!("sqlite:{file}")).await?;
/// let tasks = Tasks::new(store.clone());
/// tasks.start().await?;
/// let second = SqlStore::open(&format!("sqlite:{file}")).await;
/// assert!(second.is_err_and(|error| error.is_locked()));
/// # store.close().await?;
/// # for suffix in ["", ".tower-offload.lock"] {
/// #     let _ = std::fs::remove_file(format!("{file}{suffix}"));
/// # }
/// # }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SqlStore {
    pub(crate) engine: Engine,
    /// Set by the job queue that uses the same database. There is at most one.
    pub(crate) queue_hook: Arc<Mutex<Option<Weak<dyn QueueHook>>>>,
}

/// Returns a script that creates the Postgres tables of tasks, or migrates them from any earlier
/// version, in this schema or in the first one of the session's `search_path`.
///
/// Run it with `psql -v ON_ERROR_STOP=1`, as the role that owns the tables, before the first
/// process of a new version starts with [`migrate(false)`](SqlStoreBuilder::migrate). Running it
/// again has no effect. For jobs use [`jobs::migration_sql`](crate::jobs::migration_sql), which
/// includes it.
///
/// # Errors
///
/// Returns an error if the name of the schema is [not valid](SqlStoreBuilder::schema).
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
#[cfg_attr(not(feature = "river"), allow(rustdoc::broken_intra_doc_links, reason = "the module needs a feature"))]
pub fn migration_sql(schema: Option<&str>) -> Result<String, StoreError> {
    Ok(postgres::migrate::migration_sql(&postgres::schema_name::Schema::new(schema)?))
}

/// The database of a [`SqlStore`]. Job queues use it directly.
#[derive(Clone)]
pub(crate) enum Engine {
    #[cfg(feature = "postgres")]
    Postgres(Arc<Postgres>),
    #[cfg(feature = "sqlite")]
    Sqlite(Arc<Sqlite>),
}

impl SqlStore {
    /// Opens the database at `url`: `sqlite:PATH` or `sqlite://PATH`, which creates the file if it
    /// does not exist, or `postgres://..`.
    ///
    /// The path of a SQLite file is used as it is, without escapes. It may be followed by
    /// `?mode=rwc`, which is the default, or by `?mode=rw`, which does not create the file.
    ///
    /// A Postgres URL is read like libpq reads it, and may name several servers: each connection is
    /// to the first one that accepts writes. Connections use TLS only if the application depends on
    /// `sqlx` with one of its `tls` features.
    ///
    /// # Errors
    ///
    /// [`StoreError::is_locked`] if the file is in use by another process or by this one, and
    /// [`StoreError::is_unavailable`] if the file or the server cannot be reached, or if the server
    /// is read-only. Other errors: an unsupported URL or parameter, a SQLite database in memory
    /// (use [`MemoryStore`](crate::MemoryStore)), a Postgres database with another encoding than
    /// UTF8, a proxy that pools transactions, or a schema from a newer version of this crate.
    ///
    /// # Panics
    ///
    /// The future panics outside a Tokio runtime.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Self::builder(url).open().await
    }

    /// Opens the database like [`open`](Self::open), with this duration of leases. Default: 15 s.
    ///
    /// On Postgres, the tasks of a process that does not renew its lease for this long are marked
    /// as lost, unless no process could reach the server. Leases are renewed every eighth of it.
    /// With the default, a process survives a short stall or a lost connection. All processes of a
    /// database must use the same duration: after an outage, one with a much shorter lease may
    /// judge the others before they have connected again. SQLite has no leases.
    ///
    /// # Errors
    ///
    /// Like [`open`](Self::open), and if `lease` is zero.
    ///
    /// # Panics
    ///
    /// Like [`open`](Self::open).
    pub async fn open_with_lease(url: &str, lease: Duration) -> Result<Self, StoreError> {
        Self::builder(url).lease(lease).open().await
    }

    /// Returns the job queue of this process that uses the database.
    pub(crate) fn queue(&self) -> Option<Arc<dyn QueueHook>> {
        lock(&self.queue_hook).as_ref().and_then(Weak::upgrade)
    }

    /// Closes all connections and unlocks the file. Clones of this store become
    /// [unavailable](StoreError::is_unavailable). Dropping the last clone does the same, some time
    /// later.
    ///
    /// Shut down a job queue in the same database first. It has connections of its own, and another
    /// process may open the file from now on.
    ///
    /// # Errors
    ///
    /// Returns an error if SQLite cannot write its last changes to the file. The store is closed
    /// nevertheless.
    pub async fn close(&self) -> Result<(), StoreError> {
        match &self.engine {
            #[cfg(feature = "postgres")]
            Engine::Postgres(postgres) => postgres.close().await,
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(sqlite) => sqlite.close().await,
        }
    }
}

const DEFAULT_LEASE: Duration = Duration::from_secs(15);
/// Maximum length of a scheme in an error.
const MAX_SCHEME_BYTES: usize = 50;

impl Engine {
    async fn open(source: Source, settings: Settings) -> Result<Self, StoreError> {
        let url = match source {
            Source::Url(url) => url,
            #[cfg(feature = "postgres")]
            source => return Ok(Self::Postgres(Arc::new(Postgres::open(source, settings).await?))),
        };
        #[cfg(feature = "sqlite")]
        if let Some(path) = url.strip_prefix("sqlite:") {
            if settings.schema.is_some() {
                return Err(StoreError::other("SQLite has no schemas: remove `schema`, or use Postgres"));
            }
            let path = path.strip_prefix("//").unwrap_or(path);
            let (path, parameters) = path.split_once('?').unwrap_or((path, ""));
            let create = sqlite::creates_file(parameters)?;
            return Ok(Self::Sqlite(Arc::new(Sqlite::open(path.as_ref(), create, &settings).await?)));
        }
        #[cfg(feature = "postgres")]
        if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            return Ok(Self::Postgres(Arc::new(Postgres::open(Source::Url(url), settings).await?)));
        }
        let _ = settings; // used by the databases
        Err(StoreError::other(unsupported(&url)))
    }

    fn store(&self) -> &dyn TaskStore {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres(postgres) => postgres,
            #[cfg(feature = "sqlite")]
            Self::Sqlite(sqlite) => sqlite,
        }
    }
}

/// Returns the message for a URL of a database whose feature is disabled, or of another database.
fn unsupported(url: &str) -> String {
    // Not the whole URL, which may contain a password.
    let scheme = url.split(':').next().unwrap_or_default();
    let feature = match scheme {
        "sqlite" => Some("sqlite"),
        "postgres" | "postgresql" => Some("postgres"),
        _ => None,
    };
    match feature.filter(|_| scheme.len() < url.len()) {
        Some(feature) => format!(
            "the URL has the scheme `{scheme}`, which needs the feature `{feature}` of `tower-offload-tasks`: enable it \
             in Cargo.toml"
        ),
        None => {
            let scheme = sanitize(scheme, MAX_SCHEME_BYTES);
            format!("unsupported scheme {scheme:?} in the URL: use `sqlite` or `postgres`, as in `sqlite:tasks.db`")
        }
    }
}

impl TaskStore for SqlStore {
    fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease> {
        self.engine.store().begin(process)
    }

    fn renew(&self, epoch: Epoch) -> StoreFuture<'_, bool> {
        self.engine.store().renew(epoch)
    }

    fn end(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, ()> {
        self.engine.store().end(epoch, now)
    }

    fn write<'a>(&'a self, epoch: Epoch, batch: &'a [Op]) -> StoreFuture<'a, Vec<Written>> {
        self.engine.store().write(epoch, batch)
    }

    fn get(&self, id: TaskId) -> StoreFuture<'_, Found> {
        self.engine.store().get(id)
    }

    fn get_many<'a>(&'a self, ids: &'a [TaskId]) -> StoreFuture<'a, Vec<Found>> {
        self.engine.store().get_many(ids)
    }

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        self.engine.store().list(filter, page)
    }

    fn summary(&self, now: Timestamp) -> StoreFuture<'_, Summary> {
        self.engine.store().summary(now)
    }

    fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>> {
        self.engine.store().cancel_requests(epoch)
    }

    fn cancel_requested(&self, id: TaskId) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            match self.queue() {
                Some(queue) => queue.cancel_requested(id).await,
                None => Ok(()),
            }
        })
    }

    fn mark_lost(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, u64> {
        self.engine.store().mark_lost(epoch, now)
    }

    fn sweep<'a>(&'a self, now: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept> {
        self.engine.store().sweep(now, retention)
    }
}

impl fmt::Debug for SqlStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlStore").finish_non_exhaustive()
    }
}

/// Returns the record of a row. One that cannot be read, because a newer version of this crate or
/// another program has written it, is an event, and does not hide the others.
fn readable(record: Result<Record, StoreError>) -> Option<Record> {
    record.inspect_err(StoreError::report_response).ok()
}

/// Returns a page of rows, each of which has been converted to its id and its record. `end` is the
/// id of the last record that was read, if the page is not full and not the last one.
fn listing(
    rows: impl ExactSizeIterator<Item = (Result<TaskId, StoreError>, Result<Record, StoreError>)>,
    page: Page,
    end: Option<Vec<u8>>,
) -> Result<Listing, StoreError> {
    let (page, mut listing, mut last) = (page.clamped(), Listing::default(), None);
    let is_last = rows.len() <= page.limit;
    for (id, record) in rows.take(page.limit) {
        last = Some(id?);
        listing.records.extend(readable(record));
    }
    listing.next = match end {
        Some(end) => Some(scan_end(task_id(end)?, last)),
        None => last.filter(|_| !is_last),
    };
    Ok(listing)
}

/// Returns what was found of each task. A record that is missing was evicted or never existed, or
/// cannot be read; the caller does not distinguish them.
fn found_many(ids: &[TaskId], records: impl Iterator<Item = Result<Record, StoreError>>) -> Vec<Found> {
    let mut records: HashMap<_, _> = records.filter_map(readable).map(|record| (record.id, record)).collect();
    let found = |id| records.remove(id).map_or(Found::Unknown, |record| Found::Record(Box::new(record)));
    ids.iter().map(found).collect()
}

/// Maximum number of records or tombstones that a sweep removes, so that writes do not wait long
/// for it.
const MAX_SWEEP: i64 = 1000;

/// Returns the maximum number of tombstones: eight for each record that is kept, like in memory,
/// and never fewer than for the default number of records.
fn max_tombstones(retention: &Retention) -> i64 {
    row::integer(retention.max_records.max(Retention::default().max_records).saturating_mul(8) as u64)
}

#[cfg(test)]
mod tests {
    use super::unsupported;

    #[test]
    fn disabled_feature_is_named() {
        for (url, feature) in
            [("postgres://a:secret@b/c", "`postgres`"), ("postgresql://b/c", "`postgres`"), ("sqlite:a.db", "`sqlite`")]
        {
            let message = unsupported(url);
            assert!(message.contains(&format!("the feature {feature}")) && !message.contains("secret"), "{message}");
        }
        for url in ["mysql://a:secret@b/c", "tasks.db", "postgres", ""] {
            let message = unsupported(url);
            assert!(message.starts_with("unsupported scheme") && !message.contains("secret"), "{message}");
        }
    }
}
