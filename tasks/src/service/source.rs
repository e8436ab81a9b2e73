use std::pin::Pin;

use crate::{
    Record, TaskId,
    store::{Filter, Found, Listing, Page, StoreFuture},
};

/// What the service asks of those who have the tasks.
pub(crate) trait Source: Send + Sync + 'static {
    /// What is known under that id.
    fn get(&self, id: TaskId) -> StoreFuture<'_, Found>;

    /// Records that fit, the newest first.
    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing>;

    /// Asks to cancel it, and tells what it is then. One that is over stays as it is.
    fn cancel(&self, id: TaskId) -> StoreFuture<'_, Found>;

    /// Tells each time that a task changes. `None` if there is no such task.
    fn subscribe(&self, id: TaskId) -> StoreFuture<'_, Option<Box<dyn Changes>>>;

    /// `true` once nothing can be cancelled any more.
    fn is_closed(&self) -> bool;

    /// Returns once streams are to end although their tasks are not over.
    fn streams_end(&self) -> StreamsEnd;
}

pub(crate) type StreamsEnd = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The changes of one task. Of those that come faster than they are asked for only the newest is told.
pub(crate) trait Changes: Send {
    /// The record as it was last told.
    fn record(&self) -> &Record;

    /// Waits until it has changed; `false` if it will not, because what was told is final, or it is gone.
    fn changed(&mut self) -> StoreFuture<'_, bool>;
}
