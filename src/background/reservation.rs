use std::{fmt, sync::Arc, time::Duration};

use super::{
    TaskHandle, TaskOutput,
    control::Control,
    shared::Shared,
    work::{Body, Work},
};
use crate::pool::call::Context;

/// A place of a task that has no work yet. Made by [`Background::reserve`](super::Background::reserve).
///
/// Dropped, it gives the place back, and the task counts as skipped.
#[must_use = "dropping it gives the place back"]
pub struct Reservation {
    shared: Arc<Shared>,
    control: Arc<Control>,
    limit: Option<Duration>,
    /// `None` once it is spent.
    context: Option<Context>,
}

impl Reservation {
    pub(super) fn new(shared: Arc<Shared>, control: Arc<Control>) -> Self {
        Self { shared, control, limit: None, context: Some(Context::capture_for_background()) }
    }

    /// The number of the task, unique within its background.
    pub fn id(&self) -> u64 {
        self.control.id
    }

    /// As [`Task::timeout`](super::Task::timeout).
    pub fn timeout(self, limit: Duration) -> Self {
        self.with_limit(Some(limit))
    }

    pub(super) fn with_limit(mut self, limit: Option<Duration>) -> Self {
        self.limit = limit;
        self
    }

    /// Spends the place on sync work. If it was cancelled meanwhile, or a drain's deadline has passed, the work is
    /// dropped, and was counted as cancelled then.
    pub fn run<F, T>(self, work: F) -> TaskHandle
    where
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        self.spend(Body::of_closure(work))
    }

    /// Spends the place on async work, which runs on the runtime in which the place was reserved; without any, on the
    /// pool. Otherwise as [`run`](Self::run).
    pub fn spawn<F>(self, work: F) -> TaskHandle
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.spend(Body::of_future(work))
    }

    fn spend(mut self, body: Body) -> TaskHandle {
        if let Some(context) = self.context.take() {
            self.shared.enqueue(Work { control: self.control.clone(), context, limit: self.limit, body });
        }
        TaskHandle::new(self.shared.clone(), self.control.id)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.context.take().is_some() {
            self.shared.skip(self.control.id);
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("id", &self.control.id).field("name", &self.control.name).finish()
    }
}
