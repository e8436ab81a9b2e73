use std::{borrow::Cow, fmt, pin::pin, sync::Arc, time::Duration};

use http::HeaderValue;

use super::{
    Accepted, Builder, DrainReport, Stats, Status, StoreError, Subscription, TaskId, TaskStore, Track,
    shared::Shared,
    store::{Filter, Found, Listing, Op, Page},
};

/// Tasks that have an id, and what is known of them. A handle: clones are the same tasks.
///
/// See the [crate docs](crate).
#[derive(Clone)]
pub struct Tasks {
    owner: Arc<Owner>,
    mount: Arc<str>,
}

/// Dropped with the last handle. The recorder does not have one, so that it knows when nobody can come any more.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
    }
}

const DEFAULT_MOUNT: &str = "/tasks";

impl Tasks {
    /// With the default options, and records kept in this store. Nothing is asked of it before the first use, or [`start`](Self::start).
    pub fn new(store: impl TaskStore) -> Self {
        Self::builder(store).build()
    }

    /// Every option. See [`Builder`].
    pub fn builder(store: impl TaskStore) -> Builder {
        Builder::new(store)
    }

    pub(super) fn from_shared(shared: Shared) -> Self {
        Self { owner: Arc::new(Owner(Arc::new(shared))), mount: DEFAULT_MOUNT.into() }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.owner.0
    }

    /// Under which path, or URL, statuses are told: a nested service does not know it, and the `Location` of an [`Accepted`] needs it.
    /// Default `/tasks`.
    ///
    /// # Panics
    ///
    /// If it cannot stand in a header.
    #[track_caller]
    pub fn mounted_at(self, prefix: &str) -> Self {
        assert!(HeaderValue::from_str(prefix).is_ok(), "`mounted_at` wants a path or a URL, not {prefix:?}");
        Self { mount: prefix.trim_end_matches('/').into(), ..self }
    }

    pub(crate) fn location(&self, id: TaskId) -> HeaderValue {
        HeaderValue::from_str(&format!("{}/{id}", self.mount)).expect("the prefix was looked at, and an id is ASCII")
    }

    /// Begins to use the store, unless that was done; the first use does so otherwise. Then what a process before left behind is known
    /// to be lost, and a store that cannot be opened has said so.
    ///
    /// # Errors
    ///
    /// If the store cannot be used. The next use tries again.
    pub async fn start(&self) -> Result<(), StoreError> {
        self.shared().begun().await
    }

    /// A task of that name, to be given options and work.
    ///
    /// The name says what kind of task it is, 1 to 200 bytes without control characters; it stands in statuses, reports, spans and metrics, so
    /// it should be one of few.
    pub fn track(&self, name: impl Into<Cow<'static, str>>) -> Track<'_> {
        Track::new(self, name.into())
    }

    /// What is known under that id: of a task of this process the newest, of others what was last written.
    ///
    /// # Errors
    ///
    /// If the store cannot be read. A task of this process that is not over is found all the same.
    pub async fn get(&self, id: TaskId) -> Result<Found, StoreError> {
        if let Some(live) = self.shared().live(id) {
            return Ok(Found::Record(Box::new(live.record())));
        }
        self.start().await?;
        self.shared().store.get(id).await
    }

    /// As [`get`](Self::get), but only if the task is of that name: otherwise it is unknown.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn get_named(&self, name: &str, id: TaskId) -> Result<Found, StoreError> {
        let found = self.get(id).await?;
        Ok(match found {
            Found::Record(record) if record.name != name => Found::Unknown,
            found => found,
        })
    }

    /// Records that fit, the newest first. What a task of this process has become in the last moments may be missing in a list by
    /// [state](Filter::state), but is never told wrong.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    pub async fn list(&self, filter: &Filter, page: Page) -> Result<Listing, StoreError> {
        self.start().await?;
        let mut listing = self.shared().store.list(filter, page).await?;
        for record in &mut listing.records {
            if let Some(live) = self.shared().live(record.id) {
                *record = live.record();
            }
        }
        listing.records.retain(|record| filter.matches(record));
        Ok(listing)
    }

    /// Asks to cancel it, and tells what it is then. Once is as often as you like; a task that is over stays as it is.
    ///
    /// One that has not begun is cancelled at once. Async work that runs is dropped at its next `.await`; sync work can ask
    /// [`Progress::is_cancelled`](super::Progress::is_cancelled), and one that comes to its end all the same has succeeded.
    /// A task of another process hears of it within half a second.
    ///
    /// # Errors
    ///
    /// If the store does not take the request, for a task of another process.
    pub async fn cancel(&self, id: TaskId) -> Result<Found, StoreError> {
        if let Some(live) = self.shared().live(id) {
            live.cancel();
            return Ok(Found::Record(Box::new(live.record())));
        }
        let found = self.get(id).await?;
        let is_pending = matches!(&found, Found::Record(record) if !record.state.is_final());
        let lease = self.shared().with(|state| state.lease).filter(|_| is_pending);
        let Some(lease) = lease else { return Ok(found) };
        let request = Op::RequestCancel { id, now: self.shared().now() };
        self.shared().store.write(lease.epoch, &[request]).await?;
        #[cfg(feature = "river")]
        self.shared().cancel_requested().await?;
        self.get(id).await
    }

    /// Tells each time that a task changes. `None` if there is no such task.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn subscribe(&self, id: TaskId) -> Result<Option<Subscription>, StoreError> {
        if let Some(live) = self.shared().live(id) {
            return Ok(Some(Subscription::here(live.subscribe())));
        }
        let record = self.get(id).await?.into_record();
        Ok(record.map(|record| Subscription::elsewhere(record, self.clone())))
    }

    /// The answer for a task that was accepted in some other way. `None` if there is no such task.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn accepted(&self, id: TaskId) -> Result<Option<Accepted>, StoreError> {
        let awaits_response = self.shared().live(id).is_some_and(|live| live.awaits_response());
        let record = self.get(id).await?.into_record();
        Ok(record.map(|record| Accepted::new(Status::from(&record), self.location(id), awaits_response)))
    }

    /// `true` once [`drain`](Self::drain) was called.
    pub fn is_closed(&self) -> bool {
        self.shared().with(|state| state.closed)
    }

    /// Ends the streams of events, and answers who waits for the end of a task: those there are, and from now on those that come. Work goes on,
    /// and is accepted as before.
    ///
    /// At shutdown, with the signal that stops the server: it would wait for them, and a stream lasts as long as its task. Who followed one
    /// comes back after a second, to another process or the next one, and goes on where it was. [`drain`](Self::drain) ends them too.
    pub fn end_streams(&self) {
        self.shared().end_streams();
    }

    /// What it is doing and has met.
    pub fn stats(&self) -> Stats {
        self.shared().with(|state| {
            let ledger = &state.ledger;
            Stats { open: ledger.len(), failed_writes: ledger.failed_writes, fenced: ledger.fenced }
        })
    }

    /// Accepts nothing any more, [ends the streams](Self::end_streams), waits until every record is final and written or `deadline` has passed, and gives the store back.
    ///
    /// At shutdown, after the [background's](tower_offload::Background::drain): that one ends the tasks, this one writes down how.
    /// What is known can still be asked for.
    ///
    /// # Panics
    ///
    /// The future panics outside a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, nothing is accepted any more, and what is open is written as it ends.
    pub async fn drain(&self, deadline: Duration) -> DrainReport {
        self.shared().close();
        self.end_streams();
        let _ = tokio::time::timeout(deadline, self.until_idle()).await;
        DrainReport { unwritten: self.shared().with(|state| state.ledger.ids()) }
    }

    async fn until_idle(&self) {
        loop {
            let mut idle = pin!(self.shared().idle.notified());
            idle.as_mut().enable(); // before the look: a change between the two is not missed
            if self.shared().is_idle() {
                return;
            }
            self.shared().rouse();
            idle.await;
        }
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").field("mount", &self.mount).field("stats", &self.stats()).finish_non_exhaustive()
    }
}
