//! Who wants to know that a task is over, and what became of it.

use std::{cell::RefCell, collections::VecDeque};

use crate::pool::call::contained;

/// What became of a task, for whoever has others wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Over {
    /// Cancelled, or cut off by a drain's deadline. Sync work that had begun may still run in the latter case.
    Cancelled,
    Completed,
    /// By an error or a panic of its own.
    Failed,
    /// Its runtime dropped it before it ended.
    Lost,
    /// Its pool did not run it.
    Refused,
    /// Its reservation was dropped without work.
    Skipped,
    /// Sync work may still run.
    TimedOut,
}

impl Over {
    #[cfg_attr(not(feature = "after-response"), allow(dead_code, reason = "for those that run tasks in order"))]
    #[allow(missing_docs)]
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::Lost | Self::Refused | Self::TimedOut)
    }
}

pub(super) type Callback = Box<dyn FnOnce(Over) + Send>;

thread_local! {
    /// What came up while this thread was inside a callback; `None` while it is in none.
    static WAITING: RefCell<Option<VecDeque<(Callback, Over)>>> = const { RefCell::new(None) };
}

/// Calls it, or has it called when the callback returns in which this thread is: one that ends the next task at once, and
/// that the one after it, does not grow the stack.
pub(super) fn call(callback: Callback, over: Over) {
    let mut first = Some(callback);
    let is_first = WAITING.try_with(|waiting| match &mut *waiting.borrow_mut() {
        Some(waiting) => {
            waiting.extend(first.take().map(|callback| (callback, over)));
            false
        }
        none => {
            *none = Some(VecDeque::new());
            true
        }
    });
    let Some(callback) = first else { return };
    contained(|| callback(over));
    if is_first != Ok(true) {
        return; // the thread is at its end, and has no place to put anything down
    }
    while let Some((callback, over)) = next() {
        contained(|| callback(over));
    }
}

/// The oldest that waits. Without one the thread is in no callback any more.
fn next() -> Option<(Callback, Over)> {
    WAITING.with(|waiting| {
        let mut waiting = waiting.borrow_mut();
        let next = waiting.as_mut().and_then(VecDeque::pop_front);
        if next.is_none() {
            *waiting = None;
        }
        next
    })
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
