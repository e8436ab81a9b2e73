use std::{fmt, sync::Arc, time::Duration};

use super::{
    TaskHandle, TaskOutput,
    control::Control,
    over::{self, Callback, Over},
    shared::Shared,
    work::{Body, Work},
};
use crate::panic::ignore_panic;
use crate::pool::call::Context;

/// A place of a task that has no work yet. Made by [`Background::reserve`](super::Background::reserve).
///
/// Dropped, it gives the place back, and the task counts as skipped.
#[must_use = "dropping it gives the place back"]
pub struct Reservation {
    shared: Arc<Shared>,
    control: Arc<Control>,
    limit: Option<Duration>,
    on_over: Option<Callback>,
    /// `None` once it is spent.
    context: Option<Context>,
}

impl Reservation {
    pub(super) fn new(shared: Arc<Shared>, control: Arc<Control>) -> Self {
        Self { shared, control, limit: None, on_over: None, context: Some(Context::capture_for_background()) }
    }

    /// The number of the task, unique within its background.
    pub fn id(&self) -> u64 {
        self.control.id
    }

    /// As [`Task::timeout`](super::Task::timeout).
    pub fn timeout(self, limit: Duration) -> Self {
        self.with_limit(Some(limit))
    }

    pub(crate) fn with_limit(mut self, limit: Option<Duration>) -> Self {
        self.limit = limit;
        self
    }

    /// Who is told once when the task is over, after those who were to be told before. Not before the place is spent or dropped, whatever befalls it until then.
    ///
    /// Sync work that runs out of its time is over then, and so is whatever still has a permit at a drain's deadline; other work when
    /// it ended or was dropped. The callback may spend other reservations of the same background: one that is called meanwhile on the
    /// same thread waits for its return, so chains do not grow the stack. A drain waits for it, unless its deadline has passed. It
    /// runs under no lock, holds up the permit, and its panic is swallowed.
    #[cfg_attr(not(feature = "after-response"), allow(dead_code, reason = "for those that run tasks in order"))]
    pub(crate) fn on_over(mut self, callback: impl FnOnce(Over) + Send + 'static) -> Self {
        self.on_over = Some(match self.on_over.take() {
            Some(first) => Box::new(move |over| {
                ignore_panic(|| first(over));
                callback(over);
            }),
            None => Box::new(callback),
        });
        self
    }

    /// As what [`run`](Self::run) returns, before there is work. Cancelled with it, the place is free at once, and the work
    /// is dropped when the place is spent.
    #[cfg_attr(not(feature = "after-response"), allow(dead_code, reason = "for those that run tasks in order"))]
    pub(crate) fn handle(&self) -> TaskHandle {
        TaskHandle::new(self.shared.clone(), self.control.id)
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

    /// Spends the place on work of either kind: [`run`](Self::run) or [`spawn`](Self::spawn).
    pub(crate) fn spend(mut self, body: Body) -> TaskHandle {
        if let Some(context) = self.context.take() {
            if let Some(callback) = self.on_over.take() {
                self.control.on_over(callback);
            }
            self.shared.enqueue(Work { control: self.control.clone(), context, limit: self.limit, body });
        }
        self.handle()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.context.take().is_some() {
            let skipped = self.shared.skip(self.control.id);
            if let Some(callback) = self.on_over.take() {
                over::call(callback, if skipped { Over::Skipped } else { Over::Cancelled });
            }
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("id", &self.control.id).field("name", &self.control.name).finish()
    }
}
