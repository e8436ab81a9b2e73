use super::group::Batch;
use crate::{
    TaskId, Timestamp,
    store::{Epoch, Filter, Found, Lease, Listing, Page, Process, Retention, StoreFuture, Swept, Written},
};

/// What a [`SqlStore`](super::SqlStore) asks of its database. As [`TaskStore`](crate::TaskStore), but what several callers
/// write at once comes together.
pub(super) trait Database: Send + Sync + 'static {
    fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease>;
    fn renew(&self, epoch: Epoch) -> StoreFuture<'_, bool>;
    fn end(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, ()>;
    /// All batches in one transaction, in their order. One id may be in several of them.
    fn write<'a>(&'a self, batches: &'a [Batch]) -> StoreFuture<'a, Vec<Vec<Written>>>;
    fn get(&self, id: TaskId) -> StoreFuture<'_, Found>;
    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing>;
    fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>>;
    fn sweep<'a>(&'a self, now: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept>;
    fn close(&self) -> StoreFuture<'_, ()>;
}

/// How many records or tombstones go in one transaction, so that what is to be accepted does not wait long for a sweep.
pub(super) const SWEPT_AT_ONCE: i64 = 1000;

/// How many tombstones there are at most: as many for each record that is kept as in memory, and never fewer than by default.
pub(super) fn max_tombstones(retention: &Retention) -> i64 {
    integer(retention.kept().max(Retention::default().kept()).saturating_mul(8) as u64)
}

/// What a database has no larger integers for.
pub(super) fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
