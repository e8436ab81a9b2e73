//! The tasks that a status service reports on.

use std::{pin::Pin, sync::Arc};

use crate::{
    BulkAction, BulkReport, Record, Subscription, TaskId, Tasks,
    operation::{BlockedSequence, Change, OperationFuture, Pausable, Queues},
    store::{Filter, Found, Listing, Page, StoreFuture, Summary},
};

/// The operations of [`Tasks`] that a status service needs. The tests implement it too, to control
/// each step.
pub(super) trait Source: Send + Sync + 'static {
    /// Like [`Tasks::get`].
    fn get(&self, id: TaskId) -> StoreFuture<'_, Found>;

    /// Like [`Tasks::list`].
    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing>;

    /// Like [`Tasks::cancel`].
    fn cancel(&self, id: TaskId) -> StoreFuture<'_, Found>;

    /// Like [`Tasks::summary`].
    fn summary(&self) -> StoreFuture<'_, Arc<Summary>>;

    /// Like [`Tasks::retry`], [`Tasks::discard`] and [`Tasks::reschedule`].
    fn change(&self, id: TaskId, change: Change) -> OperationFuture<'_, Record>;

    /// Like [`Tasks::bulk`].
    fn bulk<'a>(&'a self, action: BulkAction, filter: &'a Filter, page: Page) -> OperationFuture<'a, BulkReport>;

    /// Returns the queues and the kinds of the job queue.
    fn queues(&self) -> OperationFuture<'_, Queues>;

    /// Pauses or resumes a queue or a kind of the job queue.
    fn set_paused<'a>(&'a self, what: Pausable, name: &'a str, is_paused: bool) -> OperationFuture<'a, ()>;

    /// Returns the sequences of the job queue that hold because a job has failed.
    fn blocked_sequences(&self) -> OperationFuture<'_, Vec<BlockedSequence>>;

    /// Continues a sequence of the job queue. Returns `false` if it does not hold.
    fn release_sequence<'a>(&'a self, key: &'a str) -> OperationFuture<'a, bool>;

    /// Like [`Tasks::subscribe`].
    fn subscribe(&self, id: TaskId) -> StoreFuture<'_, Option<Box<dyn Changes>>>;

    /// Returns `true` once tasks can no longer be cancelled.
    fn is_closed(&self) -> bool;

    /// Returns the path or URL at which the service is mounted, without a `/` at its end.
    fn base_path(&self) -> &str;

    /// Completes once open streams must end.
    fn streams_ended(&self) -> StreamsEnded;
}

pub(super) type StreamsEnded = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Changes of one task. A slow reader sees only the newest record.
pub(super) trait Changes: Send {
    /// Returns the record as of the latest change.
    fn record(&self) -> &Record;

    /// Waits for the next change. Returns `false` if there is none, because the record is final or
    /// gone.
    fn changed(&mut self) -> StoreFuture<'_, bool>;
}

impl Source for Tasks {
    fn get(&self, id: TaskId) -> StoreFuture<'_, Found> {
        Box::pin(Tasks::get(self, id))
    }

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        Box::pin(Tasks::list(self, filter, page))
    }

    fn cancel(&self, id: TaskId) -> StoreFuture<'_, Found> {
        Box::pin(Tasks::cancel(self, id))
    }

    fn summary(&self) -> StoreFuture<'_, Arc<Summary>> {
        Box::pin(Tasks::summary(self))
    }

    fn change(&self, id: TaskId, change: Change) -> OperationFuture<'_, Record> {
        Box::pin(Tasks::change(self, id, change))
    }

    fn bulk<'a>(&'a self, action: BulkAction, filter: &'a Filter, page: Page) -> OperationFuture<'a, BulkReport> {
        Box::pin(Tasks::bulk(self, action, filter, page))
    }

    fn queues(&self) -> OperationFuture<'_, Queues> {
        Box::pin(Tasks::queue_states(self))
    }

    fn set_paused<'a>(&'a self, what: Pausable, name: &'a str, is_paused: bool) -> OperationFuture<'a, ()> {
        Box::pin(Tasks::set_paused(self, what, name, is_paused))
    }

    fn blocked_sequences(&self) -> OperationFuture<'_, Vec<BlockedSequence>> {
        Box::pin(Tasks::blocked_sequences(self))
    }

    fn release_sequence<'a>(&'a self, key: &'a str) -> OperationFuture<'a, bool> {
        Box::pin(Tasks::release_sequence(self, key))
    }

    fn subscribe(&self, id: TaskId) -> StoreFuture<'_, Option<Box<dyn Changes>>> {
        Box::pin(async move {
            let subscription = Tasks::subscribe(self, id).await?;
            Ok(subscription.map(|subscription| Box::new(subscription) as _))
        })
    }

    fn is_closed(&self) -> bool {
        Tasks::is_closed(self)
    }

    fn base_path(&self) -> &str {
        Tasks::base_path(self)
    }

    fn streams_ended(&self) -> StreamsEnded {
        Box::pin(Tasks::streams_ended(self))
    }
}

impl Changes for Subscription {
    fn record(&self) -> &Record {
        Subscription::record(self)
    }

    fn changed(&mut self) -> StoreFuture<'_, bool> {
        Box::pin(async { Ok(Subscription::changed(self).await?.is_some()) })
    }
}
