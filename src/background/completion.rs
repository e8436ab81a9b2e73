use crate::panic::ignore_panic;
use std::{cell::RefCell, collections::VecDeque};

/// How a task ended, in the order of a task's life. Each task has exactly one completion.
///
/// Passed to the callbacks of [`Reservation::on_completion`](super::Reservation::on_completion).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Completion {
    /// The reservation was dropped without work, or the response that the task waited for did not
    /// meet the task's condition.
    Skipped,
    /// The pool refused the task, so it never started.
    Refused,
    /// The task was cancelled, or a shutdown timed out. A closure that had started may still run
    /// after a shutdown.
    Cancelled,
    /// The task exceeded its timeout. A closure may still run.
    TimedOut,
    /// The task returned an error or panicked.
    Failed,
    /// The runtime or the pool dropped the task after it had started.
    Lost,
    /// The task succeeded.
    Completed,
}

impl Completion {
    /// Returns `true` for `Refused`, `TimedOut`, `Failed` and `Lost`, which are also reported to
    /// the [failure handler](super::BackgroundBuilder::on_failure).
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Refused | Self::TimedOut | Self::Failed | Self::Lost)
    }
}

pub(super) type CompletionFn = Box<dyn FnOnce(Completion) + Send>;

thread_local! {
    /// Callbacks queued while this thread runs one. `None` while it runs none.
    static QUEUED: RefCell<Option<VecDeque<(CompletionFn, Completion)>>> = const { RefCell::new(None) };
}

/// Runs `callback`, or queues it if this thread is already inside a callback.
///
/// A callback may complete another task on the same stack, and so on. The queue keeps such a chain
/// from recursing. Panics of callbacks are discarded.
pub(super) fn run_callback(callback: CompletionFn, completion: Completion) {
    let mut first = Some(callback);
    let is_outermost = QUEUED.try_with(|queued| match &mut *queued.borrow_mut() {
        Some(queued) => {
            queued.extend(first.take().map(|callback| (callback, completion)));
            false
        }
        none => {
            *none = Some(VecDeque::new());
            true
        }
    });
    let Some(callback) = first else { return };
    ignore_panic(|| callback(completion));
    if is_outermost != Ok(true) {
        return; // the thread is exiting, so its queue no longer exists
    }
    while let Some((callback, completion)) = next_queued() {
        ignore_panic(|| callback(completion));
    }
}

/// Takes the oldest queued callback. Removes the queue once it is empty.
fn next_queued() -> Option<(CompletionFn, Completion)> {
    QUEUED.with(|queued| {
        let mut queued = queued.borrow_mut();
        let next = queued.as_mut().and_then(VecDeque::pop_front);
        if next.is_none() {
            *queued = None;
        }
        next
    })
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
