use std::time::Duration;

use super::{deadline::Deadline, priority::Priority};

/// Options of one call, for [`Pool::run_with`](super::Pool::run_with).
///
/// ```
/// use std::time::Duration;
/// use tower_offload::{Priority, ThreadPool, pool::{CallOptions, Pool}};
///
/// # #[tokio::main]
/// # async fn main() {
/// let options = CallOptions::new().priority(Priority::Low).timeout(Duration::from_secs(2));
/// assert_eq!(ThreadPool::cpu().run_with(options, || "report").await, Ok("report"));
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub struct CallOptions {
    pub(crate) priority: Priority,
    pub(crate) deadline: Deadline,
}

impl CallOptions {
    /// Returns the options of a call with [`Priority::Normal`] and without a deadline of its own.
    pub const fn new() -> Self {
        Self { priority: Priority::Normal, deadline: Deadline::NONE }
    }

    /// Sets the priority of the call in the queue of the pool.
    pub const fn priority(self, priority: Priority) -> Self {
        Self { priority, ..self }
    }

    /// Gives the call a deadline `timeout` from now, unless it has an earlier one.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.deadline(Deadline::after(timeout))
    }

    /// Gives the call a deadline, unless it has an earlier one.
    pub fn deadline(self, deadline: Deadline) -> Self {
        Self { deadline: self.deadline.earlier(deadline), ..self }
    }
}
