use std::{
    any::Any,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::HeaderValue;
use tokio::sync::watch;

use crate::{
    AcceptError, Accepted, Status, StoreError, Subscription, TaskId, TaskStore,
    follow::Followers,
    metrics,
    operation::SummaryCache,
    panic::ignore_panic,
    service::Limits,
    store::{Filter, Found, Listing, Page},
    writer::Writer,
};

/// Tasks with ids, and the store of their records. Clones share both.
///
/// See the [crate documentation](crate).
#[derive(Clone)]
pub struct Tasks {
    shared: Arc<Shared>,
}

struct Shared {
    writer: Arc<Writer>,
    /// The store of the writer, which [`Tasks::store`] downcasts to its concrete type.
    store: Arc<dyn Any + Send + Sync>,
    base_path: String,
    /// Limits of the status services of these tasks.
    limits: Limits,
    /// Becomes `true` when open streams must end.
    streams_ended: watch::Sender<bool>,
    /// Number of tasks that were not accepted.
    rejected: AtomicU64,
    followers: Arc<Followers>,
    summary: SummaryCache,
}

impl Drop for Shared {
    /// Closes the writer when the last handle is dropped. The writer task ends once the open tasks
    /// are finished and written.
    fn drop(&mut self) {
        self.writer.close();
    }
}

impl Tasks {
    pub(crate) fn from_parts(writer: Writer, store: Arc<dyn Any + Send + Sync>, base_path: String) -> Self {
        let shared = Shared {
            writer: Arc::new(writer),
            store,
            base_path,
            limits: Limits::new(),
            streams_ended: watch::Sender::new(false),
            rejected: AtomicU64::new(0),
            followers: Arc::default(),
            summary: SummaryCache::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn writer(&self) -> &Arc<Writer> {
        &self.shared.writer
    }

    pub(crate) fn followers(&self) -> &Arc<Followers> {
        &self.shared.followers
    }

    pub(crate) fn summary_cache(&self) -> &SummaryCache {
        &self.shared.summary
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// Returns once streams must end.
    pub(crate) fn streams_ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ended = self.shared.streams_ended.subscribe();
        async move { drop(ended.wait_for(|ended| *ended).await) }
    }

    /// Counts a task that was not accepted.
    pub(crate) fn on_rejected(&self, name: &str, error: &AcceptError) {
        self.shared.rejected.fetch_add(1, Relaxed);
        metrics::count("offload_tasks_rejected_total", 1);
        #[cfg(feature = "tracing")]
        tracing::event!(tracing::Level::DEBUG, name, error = error as &dyn std::error::Error, "task rejected");
        #[cfg(not(feature = "tracing"))]
        let _ = (name, error);
    }

    /// Returns the path or URL at which the status service is mounted, without a `/` at its end.
    pub(crate) fn base_path(&self) -> &str {
        &self.shared.base_path
    }

    /// Returns the URL of the status of a task.
    pub(crate) fn location(&self, id: TaskId) -> HeaderValue {
        let location = format!("{}/{id}", self.base_path());
        HeaderValue::from_str(&location).expect("the builder checked the base path, and an id is ASCII")
    }

    /// Returns the store, if it is of type `S`.
    pub fn store<S: TaskStore>(&self) -> Option<&S> {
        self.shared.store.downcast_ref()
    }

    /// Starts to use the store, unless an earlier operation did.
    ///
    /// It reports a store that cannot be opened before the first request needs it. In a store for
    /// one process, the tasks of earlier processes are lost from now on. On Postgres, the tasks of
    /// a crashed process are lost when its lease has expired and a process has been connected for a
    /// lease.
    ///
    /// # Errors
    ///
    /// Returns an error if the store cannot be used. The next operation tries again.
    pub async fn start(&self) -> Result<(), StoreError> {
        self.writer().ensure_started().await
    }

    /// Returns the record of a task: the latest version for a task of this process, the stored
    /// version for others.
    ///
    /// # Errors
    ///
    /// Returns an error if the store cannot be read. An unfinished task of this process is found
    /// without the store.
    pub async fn get(&self, id: TaskId) -> Result<Found, StoreError> {
        self.writer().get(id).await
    }

    /// Returns the record of a task, like [`get`](Self::get), but [`Found::Unknown`] if the task
    /// has another name.
    ///
    /// # Errors
    ///
    /// Like [`get`](Self::get).
    pub async fn get_named(&self, name: &str, id: TaskId) -> Result<Found, StoreError> {
        let found = self.get(id).await?;
        Ok(match found {
            Found::Record(record) if record.name != name => Found::Unknown,
            found => found,
        })
    }

    /// Returns the records that match `filter`, newest first.
    ///
    /// The records of this process's tasks are the latest versions. A list filtered by state may
    /// omit tasks whose state has just changed. The records have neither a result nor the details
    /// of a failure, so that a page of any length fits into memory; [`get`](Self::get) returns
    /// them.
    ///
    /// A store has indexes for the state and the name. A list by text, queue or owner reads at most
    /// 20 000 records, so its page may be short although [`Listing::next`] says that it goes on.
    ///
    /// # Errors
    ///
    /// Returns an error if the store cannot be read.
    pub async fn list(&self, filter: &Filter, page: Page) -> Result<Listing, StoreError> {
        let mut listing = self.writer().list(filter, page.clamped()).await?;
        for record in &mut listing.records {
            let newest = self.writer().active(record.id).map(|task| task.record());
            *record = newest.as_ref().unwrap_or(record).summary();
        }
        listing.records.retain(|record| filter.matches(record));
        Ok(listing)
    }

    /// Requests cancellation of a task and returns its record. Calling it again has no effect, and
    /// a finished task does not change.
    ///
    /// A task that has not started is cancelled at once. A running future is dropped at its next
    /// `.await`. A running closure can poll
    /// [`Progress::is_cancelled`](crate::Progress::is_cancelled); if it succeeds nevertheless, the
    /// task has succeeded. A task of another process is cancelled within half a second. A job is
    /// cancelled at once if this process has a job queue, and otherwise within two seconds.
    ///
    /// # Errors
    ///
    /// Returns an error if the request for a task of another process cannot be stored.
    pub async fn cancel(&self, id: TaskId) -> Result<Found, StoreError> {
        if let Some(task) = self.writer().active(id) {
            task.cancel();
            return Ok(Found::Record(Box::new(task.record())));
        }
        let found = self.get(id).await?;
        let is_pending = matches!(&found, Found::Record(record) if !record.state.is_final());
        if !is_pending {
            return Ok(found);
        }
        self.writer().request_cancel(id).await?;
        self.writer().store.cancel_requested(id).await?;
        self.get(id).await
    }

    /// Subscribes to the changes of a task. Returns `None` if the task is unknown.
    ///
    /// # Errors
    ///
    /// Like [`get`](Self::get).
    pub async fn subscribe(&self, id: TaskId) -> Result<Option<Subscription>, StoreError> {
        if let Some(task) = self.writer().active(id) {
            return Ok(Some(Subscription::active(task.subscribe())));
        }
        let record = self.get(id).await?.into_record();
        Ok(record.map(|record| {
            let follower = self.followers().follow(&record, self.writer());
            Subscription::stored(record, follower)
        }))
    }

    /// Returns the [`Accepted`] of a task that was accepted earlier, for example in a transaction.
    /// Returns `None` if the task is unknown.
    ///
    /// # Errors
    ///
    /// Like [`get`](Self::get).
    pub async fn accepted(&self, id: TaskId) -> Result<Option<Accepted>, StoreError> {
        let awaits_response = self.writer().active(id).is_some_and(|task| task.awaits_response());
        let record = self.get(id).await?.into_record();
        Ok(record.map(|record| Accepted::new(Status::from(&record), self.location(id), awaits_response)))
    }

    /// Returns `true` once [`shutdown`](Self::shutdown) was called.
    pub fn is_closed(&self) -> bool {
        self.writer().is_closed()
    }

    /// Ends all current and future event streams, and responds to requests that wait for the end of
    /// a task. Tasks are not affected.
    ///
    /// A server's graceful shutdown waits for streams, which last as long as their tasks: use
    /// [`end_streams_on`](Self::end_streams_on) there. Clients reconnect after a second and resume
    /// after their last event, at another process or after a restart. [`shutdown`](Self::shutdown)
    /// calls it too.
    pub fn end_streams(&self) {
        // Runs wakers, which are user code.
        ignore_panic(|| _ = self.shared.streams_ended.send_replace(true));
    }

    /// Returns the signal of a server's graceful shutdown, which also
    /// [ends the streams](Self::end_streams). Without it the server waits for each open stream as
    /// long as it may.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// use tower_offload::{Background, axum::{serve, shutdown_signal}};
    /// # use tower_offload_tasks::{MemoryStore, Tasks};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> std::io::Result<()> {
    /// # let (tasks, background) = (Tasks::new(MemoryStore::new()), Background::default());
    /// # let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    /// # let (app, grace) = (axum::Router::new(), Duration::from_secs(10));
    /// let signal = tasks.end_streams_on(shutdown_signal()?);
    /// let report = serve(listener, app).shutdown(signal, grace, &background).await;
    /// println!("{report}; {}", tasks.shutdown(report.remaining()).await);
    /// # Ok(())
    /// # }
    /// ```
    pub fn end_streams_on<F: Future>(&self, signal: F) -> impl Future<Output = F::Output> + use<F> {
        let tasks = self.clone();
        async move {
            let output = signal.await;
            tasks.end_streams();
            output
        }
    }

    /// Returns the current counters.
    pub fn stats(&self) -> TasksStats {
        let stats = self.writer().stats();
        TasksStats {
            open: stats.open,
            rejected: self.shared.rejected.load(Relaxed),
            failed_writes: stats.failed_writes,
            failed_reads: stats.failed_reads,
            fenced: stats.fenced,
            restored: stats.restored,
            failed_renewals: stats.failed_renewals,
            failed_maintenance: stats.failed_maintenance,
            lost_leases: stats.lost_leases,
            denied: self.limits().denied(),
            shed: self.limits().shed(),
        }
    }

    /// Accepts no more tasks, [ends the streams](Self::end_streams), waits up to `timeout` until
    /// all final records are written, and releases the store.
    ///
    /// Call it after the shutdown of the [`Background`](tower_offload::Background), which ends the
    /// tasks. Records can still be read.
    ///
    /// # Panics
    ///
    /// The future panics outside a Tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, no more tasks are accepted, and open tasks are
    /// still written when they end.
    pub async fn shutdown(&self, timeout: Duration) -> TasksShutdownReport {
        self.writer().close();
        self.end_streams();
        let _ = tokio::time::timeout(timeout, self.writer().closed_and_written()).await;
        TasksShutdownReport { unwritten: self.writer().unwritten() }
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("base_path", &self.shared.base_path)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// Counters of [`Tasks`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TasksStats {
    /// Number of tasks of this process whose final record is not written: they are unfinished, or
    /// the store is unavailable.
    pub open: usize,
    /// Number of tasks that were not accepted: the background or the store was full, closed or
    /// unavailable, or an option was not valid.
    pub rejected: u64,
    /// Number of batches that the store failed to write. Their records are retried.
    pub failed_writes: u64,
    /// Number of reads that the store failed or refused, because too many callers waited for it.
    pub failed_reads: u64,
    /// Number of records that changed after the store had marked them as lost.
    pub fenced: u64,
    /// Number of records that the store had lost after it had confirmed them, and that were written
    /// again: an asynchronous standby became the primary, or a row was deleted.
    pub restored: u64,
    /// Number of failed attempts to renew the lease. Each is repeated.
    pub failed_renewals: u64,
    /// Number of failed attempts to evict records, to find the tasks of lost processes, or to find
    /// cancel requests of other processes. Each is repeated.
    pub failed_maintenance: u64,
    /// Number of leases that were lost: the process was silent for too long, and another one has
    /// marked its tasks as lost.
    pub lost_leases: u64,
    /// Number of requests to the status service that were denied (403), because
    /// [`authorize`](crate::StatusService::authorize) does not permit them.
    pub denied: u64,
    /// Number of requests to the status service that exceeded its limit of streams, of lists or of
    /// bulk requests: 503, or a response without the wait that the client preferred.
    pub shed: u64,
}

/// Result of [`Tasks::shutdown`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TasksShutdownReport {
    /// Tasks whose final record was not written. The next process that uses the store marks them as
    /// lost.
    pub unwritten: Vec<TaskId>,
}

impl TasksShutdownReport {
    /// Returns `true` if every final record was written.
    pub fn is_clean(&self) -> bool {
        self.unwritten.is_empty()
    }
}

/// Formats the report, for example as `all records are written`, or as `1 record is not written
/// (task 00y8j7g1z0b3t4kf6n2vqwhx9m5c7d1e8pr0)`.
impl fmt::Display for TasksShutdownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = Listed { what: "task", ids: &self.unwritten };
        match self.unwritten.len() {
            0 => f.write_str("all records are written"),
            1 => write!(f, "1 record is not written ({listed})"),
            more => write!(f, "{more} records are not written ({listed})"),
        }
    }
}

/// Displays what ids belong to, and the first of them.
pub(crate) struct Listed<'a> {
    pub(crate) what: &'static str,
    pub(crate) ids: &'a [TaskId],
}

/// Maximum number of ids that the text of a report lists.
const MAX_LISTED: usize = 10;

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, ids } = self;
        write!(f, "{what}{}", if ids.len() == 1 { "" } else { "s" })?;
        for (index, id) in ids.iter().take(MAX_LISTED).enumerate() {
            write!(f, "{}{id}", if index == 0 { " " } else { ", " })?;
        }
        match ids.len().saturating_sub(MAX_LISTED) {
            0 => Ok(()),
            more => write!(f, ", and {more} more"),
        }
    }
}
