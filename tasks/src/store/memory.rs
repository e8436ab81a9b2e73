use std::{fmt, sync::Arc};

use super::{
    Epoch, Filter, Found, Lease, Listing, Op, Page, Process, Retention, StoreError, StoreFuture, Swept, TaskStore,
    Written, shelf::Shelf,
};
use crate::{
    TaskId, Timestamp,
    sync::{Mutex, lock},
};

/// Keeps records in memory: for one process, until it ends. A handle: clones are the same store.
///
/// Bounded. At the capacity a new record takes the place of the one that ended first; if none has ended it is
/// [full](StoreError::is_full).
#[derive(Clone)]
pub struct MemoryStore {
    shelf: Arc<Mutex<Shelf>>,
}

impl MemoryStore {
    /// For 10 000 records, of tasks that are over and that are not.
    pub fn new() -> Self {
        Self::with_capacity(DEFAULT_CAPACITY)
    }

    /// For so many records.
    ///
    /// # Panics
    ///
    /// If it is 0: no task could ever be accepted.
    #[track_caller]
    pub fn with_capacity(capacity: usize) -> Self {
        assert!(capacity > 0, "a store with capacity 0 keeps no task: give it at least 1");
        Self { shelf: Arc::new(Mutex::new(Shelf::new(capacity))) }
    }

    fn ready<'a, T: Send + 'a>(&self, look: impl FnOnce(&mut Shelf) -> T) -> StoreFuture<'a, T> {
        let value = look(&mut lock(&self.shelf));
        Box::pin(std::future::ready(Ok::<_, StoreError>(value)))
    }
}

const DEFAULT_CAPACITY: usize = 10_000;

impl TaskStore for MemoryStore {
    fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease> {
        self.ready(|shelf| Lease::exclusive(shelf.begin(process.started_at)))
    }

    fn renew(&self, epoch: Epoch) -> StoreFuture<'_, bool> {
        self.ready(|shelf| shelf.is_current(epoch))
    }

    fn end(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, ()> {
        self.ready(|shelf| shelf.end(epoch, now))
    }

    fn write<'a>(&'a self, epoch: Epoch, batch: &'a [Op]) -> StoreFuture<'a, Vec<Written>> {
        self.ready(|shelf| batch.iter().map(|op| shelf.write(epoch, op)).collect())
    }

    fn get(&self, id: TaskId) -> StoreFuture<'_, Found> {
        self.ready(|shelf| shelf.get(id))
    }

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        self.ready(|shelf| shelf.list(filter, page))
    }

    fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>> {
        self.ready(|shelf| shelf.cancel_requests(epoch))
    }

    fn sweep<'a>(&'a self, now: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept> {
        self.ready(|shelf| shelf.sweep(now, retention))
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}
