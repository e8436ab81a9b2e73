#[cfg(feature = "river")]
use std::sync::{Arc, Weak};
use std::{fmt, time::Duration};

use super::{engine::Engine, group::Writer};
use crate::{
    StoreError, TaskId, TaskStore, Timestamp,
    store::{Epoch, Filter, Found, Lease, Listing, Op, Page, Process, Retention, StoreFuture, Swept, Written},
};
#[cfg(feature = "river")]
use crate::{shared::Forward, sync::Mutex};

/// Keeps records in a database, so that they outlive the process. A handle: clones are the same store.
///
/// What several callers write at once goes into one transaction, and each has its answer after the commit: a commit waits for the disk, and
/// one for many costs hardly more than one for a single record.
///
/// | | SQLite (feature `sqlite`) | Postgres (feature `postgres`) |
/// |---|---|---|
/// | who uses it | one process; a second one is told [who has it](StoreError::is_locked) | several |
/// | a process that died | its records are lost once the next one begins | once its lease ran out, by the server's clock |
/// | an accepted id outlives | a crash and a power cut (`synchronous=FULL`) | what the server's `synchronous_commit` says |
///
/// Tables are made and brought up to date when it is opened. Their names begin with `tower_offload_`; others may be in the same database.
///
/// NUL, which Postgres keeps in no text, becomes U+FFFD.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_offload_tasks::StoreError> {
/// # #[cfg(feature = "sqlite")] {
/// use tower_offload_tasks::{TaskStore, Timestamp, store::{Process, SqlStore}};
///
/// # let file = std::env::temp_dir().join(format!("tower-offload-example-{}.db", std::process::id()));
/// # let file = file.display();
/// let store = SqlStore::open(&format!("sqlite:{file}")).await?;
/// let now = Timestamp::from(std::time::SystemTime::now());
/// let lease = store.begin(&Process::new("reports", now)).await?;
/// assert!(store.renew(lease.epoch).await?);
/// assert!(SqlStore::open(&format!("sqlite:{file}")).await.is_err_and(|error| error.is_locked()));
/// store.close().await?;
/// # for suffix in ["", ".tower-offload.lock"] { let _ = std::fs::remove_file(format!("{file}{suffix}")); }
/// # }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SqlStore {
    engine: Engine,
    writer: Writer,
    #[cfg(feature = "river")]
    forward: Arc<Mutex<Option<Weak<dyn Forward>>>>,
}

impl SqlStore {
    /// Opens the database of that URL: `sqlite:PATH`, also as `sqlite://PATH`, makes the file if there is none; `postgres://..` as
    /// Postgres' own programs read it. The path is taken as it is, without escapes or parameters.
    ///
    /// Without TLS. For Postgres over TLS depend on `sqlx` too, with one of its `tls` features.
    ///
    /// # Errors
    ///
    /// [`StoreError::is_locked`] if another process has the file, [`StoreError::is_unavailable`] if it or the server cannot be reached.
    /// Others: a URL that is not one of these, a database in memory ([`MemoryStore`](crate::MemoryStore) is for that), or a schema that a newer
    /// version of this crate has made.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime. One task of it writes, until the last clone is gone.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Self::open_with_lease(url, DEFAULT_LEASE).await
    }

    /// As [`open`](Self::open), but on Postgres a process that is gone is given up after that time. Default: 15 s, which a process survives
    /// that stands still for a while or has its connection broken. Renewed each third of it. SQLite needs none.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    ///
    /// # Panics
    ///
    /// As [`open`](Self::open), and if it is 0.
    pub async fn open_with_lease(url: &str, lease: Duration) -> Result<Self, StoreError> {
        assert!(!lease.is_zero(), "a lease of no time is over at once: give it some seconds");
        let engine = Engine::open(url, lease).await?;
        Ok(Self {
            writer: Writer::spawn(engine.clone()),
            engine,
            #[cfg(feature = "river")]
            forward: Arc::default(),
        })
    }

    #[cfg(feature = "river")]
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The queue beside the records, if there is one.
    #[cfg(feature = "river")]
    pub(crate) fn forward(&self) -> &Arc<Mutex<Option<Weak<dyn Forward>>>> {
        &self.forward
    }

    /// Closes all connections and lets go of the file, whoever still has a clone: they are told that it is
    /// [unavailable](StoreError::is_unavailable). Without this that happens soon after the last clone is gone.
    ///
    /// Durable jobs in the same database have connections of their own: drain them first, for from here on another process may have the file.
    ///
    /// # Errors
    ///
    /// If SQLite cannot tidy up. It is closed all the same.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.engine.database().close().await
    }
}

const DEFAULT_LEASE: Duration = Duration::from_secs(15);

impl TaskStore for SqlStore {
    fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease> {
        self.engine.database().begin(process)
    }

    fn renew(&self, epoch: Epoch) -> StoreFuture<'_, bool> {
        self.engine.database().renew(epoch)
    }

    fn end(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, ()> {
        self.engine.database().end(epoch, now)
    }

    fn write<'a>(&'a self, epoch: Epoch, batch: &'a [Op]) -> StoreFuture<'a, Vec<Written>> {
        Box::pin(self.writer.write(epoch, batch.to_vec()))
    }

    fn get(&self, id: TaskId) -> StoreFuture<'_, Found> {
        self.engine.database().get(id)
    }

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        self.engine.database().list(filter, page)
    }

    fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>> {
        self.engine.database().cancel_requests(epoch)
    }

    fn sweep<'a>(&'a self, now: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept> {
        self.engine.database().sweep(now, retention)
    }
}

impl fmt::Debug for SqlStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlStore").finish_non_exhaustive()
    }
}
