use std::{pin::Pin, sync::Arc};

use super::{Epoch, Filter, Found, Lease, Listing, Op, Page, Process, Retention, StoreError, Swept, Written};
use crate::{TaskId, Timestamp};

/// What the methods of a [`TaskStore`] return.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Keeps the records of tasks. [`Tasks`](crate::Tasks) writes to it in batches, from one task of the runtime, so one transaction at
/// a time; only requests to cancel a task of another process come beside that, each alone. Reads come from anywhere, at any time. A store
/// that does not answer holds up whatever is to be accepted: it should give up by itself, as [unavailable](StoreError::unavailable).
///
/// # Who may write
///
/// A process [begins](Self::begin) and gets an epoch, and with it the records that it accepts. They are its own for as long as its
/// lease lasts; nobody else finishes them. Once it is over the store marks those that are not final as
/// [lost](crate::TaskState::Lost), and refuses what the process still writes: [`Written::Fenced`]. A store of one process at a time
/// (memory, a file behind a lock) needs no clock for that: a new beginning ends the epochs before it.
///
/// # What every store must do
///
/// Final states never change. What `write` said is done can be read at once, and after a crash of the process if the store outlives it at
/// all. Of two contents of one record the greater version stays. Only final records are
/// [evicted](Self::sweep), and leave a tombstone.
///
/// # Cancel safety
///
/// A future that is dropped may have had its effect or not, entirely.
pub trait TaskStore: Send + Sync + 'static {
    /// Begins an epoch, and marks as lost what processes left behind whose own is over.
    ///
    /// # Errors
    ///
    /// [`StoreError::is_locked`] if the store is for one process at a time and another one has it.
    fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease>;

    /// Renews the lease. `false` if it is over: then records of this epoch are lost, or will be.
    fn renew(&self, epoch: Epoch) -> StoreFuture<'_, bool>;

    /// Ends the epoch, so that nobody has to wait for its lease to run out. What is not final is lost.
    fn end(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, ()>;

    /// Does all of it in one transaction, and says for each what became of it. No id is twice in a batch.
    ///
    /// # Errors
    ///
    /// If the transaction was not committed, or nobody knows.
    fn write<'a>(&'a self, epoch: Epoch, batch: &'a [Op]) -> StoreFuture<'a, Vec<Written>>;

    /// The record of that id.
    fn get(&self, id: TaskId) -> StoreFuture<'_, Found>;

    /// Records that fit, the newest first.
    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing>;

    /// The tasks of this epoch that somebody asked to cancel and that are not over. Asked twice a second of a store that others use too.
    fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>>;

    /// Evicts final records that the retention does not keep, with a tombstone each, forgets old tombstones, and marks as lost what
    /// processes left behind whose lease ran out. May do a part of it only, if it says so.
    fn sweep<'a>(&'a self, now: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept>;
}

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

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        (**self).list(filter, page)
    }

    fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>> {
        (**self).cancel_requests(epoch)
    }

    fn sweep<'a>(&'a self, now: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept> {
        (**self).sweep(now, retention)
    }
}
