//! Stores for the records of tasks.

mod error;
mod lease;
mod list;
mod memory;
mod op;
mod report;
mod retention;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod sql;

use std::{future::ready, pin::Pin, sync::Arc};

#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use self::sql::migration_sql;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "postgres", feature = "sqlite"))))]
pub use self::sql::{SqlStore, SqlStoreBuilder};
pub use self::{
    error::StoreError,
    lease::{Epoch, Lease, Process},
    list::{Filter, Listing, Page},
    memory::MemoryStore,
    op::{Found, Op, Written},
    retention::{Retention, Swept},
};
pub use crate::operation::{Percentiles, StateCounts, Summary, SummaryGroup};
use crate::{TaskId, Timestamp, operation::SummaryBuilder};

/// Future returned by the methods of a [`TaskStore`].
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Keeps the records of tasks.
///
/// [`Tasks`](crate::Tasks) writes in batches, one batch at a time. It reads from any task, at any
/// time. Acceptance of tasks waits for the store, so a store should not wait indefinitely for its
/// database, but return [`StoreError::unavailable`] after a timeout.
///
/// # Epochs
///
/// Each `Tasks` [begins](Self::begin) an epoch and owns the records that it accepts in it, for as
/// long as its lease is valid. Unfinished records of an epoch that has ended become
/// [lost](crate::TaskState::Lost), and later writes of that epoch are rejected as
/// [`Written::Fenced`].
///
/// A store for one process at a time (memory, a locked file) needs no clock. It can have several
/// epochs at once, one for each `Tasks`, and sees when the owner of one is gone
/// ([`Lease::guard`]).
///
/// A store for several processes gives each epoch a lease, which expires by the store's own clock.
/// After an outage all leases may have expired although no process has crashed. So an epoch must
/// not end just because its lease has expired: see [`mark_lost`](Self::mark_lost).
///
/// # Invariants
///
/// - Final records do not change, except those of jobs, which the job queue can retry.
/// - A record that was written can be read at once. If the store is persistent, it can be read
///   after a crash of the process too.
/// - Of two versions of one record, the greater is kept.
/// - Only final records are [evicted](Self::sweep), and each leaves a tombstone.
///
/// # Cancel safety
///
/// If a future is dropped before it completes, its operation either has no effect or is complete.
pub trait TaskStore: Send + Sync + 'static {
    /// Begins an epoch. Epochs of living processes are not affected.
    ///
    /// A store for one process marks the records of earlier processes as lost.
    ///
    /// # Errors
    ///
    /// [`StoreError::is_locked`] if the store is for one process at a time and another one uses it.
    fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease>;

    /// Renews the lease. Returns `false` if the epoch has ended: its unfinished records are lost.
    ///
    /// A lease that has expired can be renewed until another process ends the epoch. A task of its
    /// own calls this, so a slow [`write`](Self::write) or [`sweep`](Self::sweep) should not delay
    /// it within the store either.
    fn renew(&self, epoch: Epoch) -> StoreFuture<'_, bool>;

    /// Ends the epoch before its lease expires. Unfinished records are lost.
    fn end(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, ()>;

    /// Executes all operations in one transaction, and returns a result for each. No id occurs
    /// twice in a batch.
    ///
    /// # Errors
    ///
    /// Returns an error if the transaction was not committed, or if its result is unknown. In the
    /// latter case it may be committed later, but not once a later batch of the epoch has reported
    /// a record as [unknown](Written::Unknown).
    fn write<'a>(&'a self, epoch: Epoch, batch: &'a [Op]) -> StoreFuture<'a, Vec<Written>>;

    /// Returns the record of a task.
    fn get(&self, id: TaskId) -> StoreFuture<'_, Found>;

    /// Returns the records of tasks, in the order of their ids. It is called twice a second with
    /// all tasks of other processes that this process follows. The default calls [`get`](Self::get)
    /// for each.
    fn get_many<'a>(&'a self, ids: &'a [TaskId]) -> StoreFuture<'a, Vec<Found>> {
        Box::pin(async move {
            let mut found = Vec::with_capacity(ids.len());
            for id in ids {
                found.push(self.get(*id).await?);
            }
            Ok(found)
        })
    }

    /// Returns the records that match `filter`, newest first.
    ///
    /// [`Tasks::list`](crate::Tasks::list) removes their results and the details of their failures,
    /// so a store need not read them.
    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing>;

    /// Returns the numbers of tasks by state, name and queue. `now` is the time of the caller. A
    /// store for several processes should use its own clock.
    ///
    /// [`Tasks::summary`](crate::Tasks::summary) calls it at most once a second, and one call at a
    /// time. The default reads the newest 20 000 records by [`list`](Self::list).
    fn summary(&self, now: Timestamp) -> StoreFuture<'_, Summary> {
        Box::pin(async move {
            let (mut builder, mut page) = (SummaryBuilder::default(), Page::first(1000));
            let mut is_complete = false;
            for _ in 0..MAX_SUMMARY_PAGES {
                let listing = self.list(&Filter::default(), page).await?;
                listing.records.iter().for_each(|record| builder.add(record, now));
                let Some(next) = listing.next else {
                    is_complete = true;
                    break;
                };
                page = page.after(next);
            }
            Ok(Summary { is_complete, ..builder.build(now) })
        })
    }

    /// Returns the unfinished tasks of this epoch for which an [`Op::RequestCancel`] was written.
    /// It is called twice a second while the epoch has unfinished tasks.
    fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>>;

    /// Called after an [`Op::RequestCancel`] was written, in the process that wrote it.
    ///
    /// A store that knows how to reach the owner of the task can notify it, so that it need not
    /// wait for its next poll of [`cancel_requests`](Self::cancel_requests). The default does
    /// nothing.
    fn cancel_requested(&self, id: TaskId) -> StoreFuture<'_, ()> {
        let _ = id;
        Box::pin(ready(Ok(())))
    }

    /// Marks as lost the unfinished records of epochs whose owner is gone. Records of
    /// `epoch`, which belongs to the caller, are not affected. Returns the number of these records.
    ///
    /// A store with leases ends an epoch only if its lease has expired and the caller is *steady*:
    /// it has renewed its own lease for the duration of a lease without a gap of more than a
    /// quarter of it, up to now. A process that was cut off from the store has such a gap, so it
    /// gives all others the time to renew first. The store should check this by its own clock, in
    /// the transaction that ends the epoch.
    ///
    /// The default does nothing. It is for stores that do all of this in [`begin`](Self::begin).
    fn mark_lost(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, u64> {
        let _ = (epoch, now);
        Box::pin(ready(Ok(0)))
    }

    /// Evicts final records that exceed the retention, and deletes expired tombstones. It may
    /// process only a part at a time, and reports that in [`Swept::more`].
    ///
    /// `now` is the time of the caller. A store for several processes should use its own clock.
    fn sweep<'a>(&'a self, now: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept>;
}

/// Number of pages that the default of [`TaskStore::summary`] reads.
const MAX_SUMMARY_PAGES: usize = 20;

impl<S: TaskStore + ?Sized> TaskStore for Arc<S> {
    fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease> {
        (**self).begin(process)
    }

    fn renew(&self, epoch: Epoch) -> StoreFuture<'_, bool> {
        (**self).renew(epoch)
    }

    fn end(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, ()> {
        (**self).end(epoch, now)
    }

    fn write<'a>(&'a self, epoch: Epoch, batch: &'a [Op]) -> StoreFuture<'a, Vec<Written>> {
        (**self).write(epoch, batch)
    }

    fn get(&self, id: TaskId) -> StoreFuture<'_, Found> {
        (**self).get(id)
    }

    fn get_many<'a>(&'a self, ids: &'a [TaskId]) -> StoreFuture<'a, Vec<Found>> {
        (**self).get_many(ids)
    }

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        (**self).list(filter, page)
    }

    fn summary(&self, now: Timestamp) -> StoreFuture<'_, Summary> {
        (**self).summary(now)
    }

    fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>> {
        (**self).cancel_requests(epoch)
    }

    fn cancel_requested(&self, id: TaskId) -> StoreFuture<'_, ()> {
        (**self).cancel_requested(id)
    }

    fn mark_lost(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, u64> {
        (**self).mark_lost(epoch, now)
    }

    fn sweep<'a>(&'a self, now: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept> {
        (**self).sweep(now, retention)
    }
}
