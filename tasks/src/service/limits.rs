use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::access::{Access, Action};
use crate::{metrics, problem::Problem};

/// Limits that the status services of one [`Tasks`](crate::Tasks) share, and counters of the
/// requests that they refused.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// One permit for each open event stream and each waiting request.
    streams: Arc<Semaphore>,
    /// One permit for each list that is being read.
    lists: Arc<Semaphore>,
    /// One permit for the operation on many tasks of an owner.
    bulk: Arc<Semaphore>,
    /// One permit for the operation on the tasks of all owners, so that owners cannot keep
    /// operators from it.
    bulk_of_all: Arc<Semaphore>,
    refused: Arc<Refused>,
}

#[derive(Debug, Default)]
struct Refused {
    denied: AtomicU64,
    shed: AtomicU64,
}

/// Default maximum number of streams. Each needs a few kilobytes.
const DEFAULT_MAX_STREAMS: usize = 1024;
/// Maximum number of lists that are read at a time. Each needs up to 10 MB: 1000 records with
/// failure messages of 8 KiB.
const MAX_LISTS: usize = 16;

impl Limits {
    pub(crate) fn new() -> Self {
        let (streams, lists) = (Semaphore::new(DEFAULT_MAX_STREAMS), Semaphore::new(MAX_LISTS));
        let [bulk, bulk_of_all] = [(); 2].map(|()| Arc::new(Semaphore::new(1)));
        Self { streams: Arc::new(streams), lists: Arc::new(lists), bulk, bulk_of_all, refused: Arc::default() }
    }

    /// Replaces the limit of streams of one service and its clones.
    pub(super) fn set_max_streams(&mut self, streams: usize) {
        self.streams = Arc::new(Semaphore::new(streams.min(Semaphore::MAX_PERMITS)));
    }

    /// Acquires a permit for an event stream or a waiting request.
    pub(super) fn try_acquire_stream(&self) -> Option<OwnedSemaphorePermit> {
        self.try_acquire(&self.streams, "streams")
    }

    /// Acquires a permit to read a list.
    pub(super) fn try_acquire_list(&self) -> Option<OwnedSemaphorePermit> {
        self.try_acquire(&self.lists, "lists")
    }

    /// Acquires the permit to change many tasks.
    pub(super) fn try_acquire_bulk(&self, access: &Access) -> Option<OwnedSemaphorePermit> {
        let permits = if *access == Access::All { &self.bulk_of_all } else { &self.bulk };
        self.try_acquire(permits, "bulk")
    }

    /// Returns `None`, and counts the request, if no permit is free.
    fn try_acquire(&self, permits: &Arc<Semaphore>, limit: &'static str) -> Option<OwnedSemaphorePermit> {
        let permit = permits.clone().try_acquire_owned().ok();
        if permit.is_none() {
            self.refused.shed.fetch_add(1, Relaxed);
            metrics::count("offload_tasks_shed_total", 1);
            #[cfg(feature = "tracing")]
            tracing::event!(tracing::Level::DEBUG, limit, "status request exceeded a limit");
        }
        #[cfg(not(feature = "tracing"))]
        let _ = limit;
        permit
    }

    /// Counts a request that was denied, and returns the response.
    pub(super) fn deny(&self, action: &Action, detail: &'static str) -> Problem {
        self.refused.denied.fetch_add(1, Relaxed);
        metrics::count("offload_tasks_denied_total", 1);
        #[cfg(feature = "tracing")]
        tracing::event!(tracing::Level::DEBUG, action = action.as_str(), "status request denied: {detail}");
        #[cfg(not(feature = "tracing"))]
        let _ = action;
        Problem::new(StatusCode::FORBIDDEN, detail)
    }

    /// Returns the number of requests that were denied.
    pub(crate) fn denied(&self) -> u64 {
        self.refused.denied.load(Relaxed)
    }

    /// Returns the number of requests that exceeded a limit.
    pub(crate) fn shed(&self) -> u64 {
        self.refused.shed.load(Relaxed)
    }
}
