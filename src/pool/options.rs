use std::{hash::Hash, time::Duration};

use super::{deadline::Deadline, key::CallKey, priority::Priority};

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
    pub(crate) key: Option<CallKey>,
}

impl CallOptions {
    /// Returns the options of a call with [`Priority::Normal`] and without a deadline of its own.
    pub const fn new() -> Self {
        Self { priority: Priority::Normal, deadline: Deadline::NONE, key: None }
    }

    /// Sets the priority of the call in the queue of the pool.
    pub const fn priority(self, priority: Priority) -> Self {
        Self { priority, ..self }
    }

    /// Gives the call a key, such as a tenant, a user or an address. Keys that wait take turns, so
    /// that many calls of one key do not delay others. See [`pool`](crate::pool#keys).
    ///
    /// Only a hash of the key is kept. Calls that the work makes do not inherit it.
    ///
    /// ```
    /// use tower_offload::{ThreadPool, pool::{CallOptions, Pool}};
    ///
    /// # #[tokio::main]
    /// # async fn main() {
    /// let cpu = ThreadPool::cpu();
    /// let of_tenant = CallOptions::new().fair_by("tenant-7");
    /// assert_eq!(cpu.run_with(of_tenant, || "rows").await, Ok("rows"));
    /// # }
    /// ```
    pub fn fair_by(self, key: impl Hash) -> Self {
        Self { key: Some(CallKey::new(&key)), ..self }
    }

    /// Like [`fair_by`](Self::fair_by), with a key that belongs to a group, such as a user and
    /// their tenant. Groups take turns, and the keys of a group take turns within it: the number of
    /// its keys does not change what a group gets.
    pub fn fair_by_group(self, group: impl Hash, key: impl Hash) -> Self {
        Self { key: Some(CallKey::in_group(&group, &key)), ..self }
    }

    /// Gives the call a deadline `timeout` from now, unless it has an earlier one.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.deadline(Deadline::after(timeout))
    }

    /// Gives the call a deadline, unless it has an earlier one.
    #[inline]
    pub fn deadline(self, deadline: Deadline) -> Self {
        Self { deadline: self.deadline.earlier(deadline), ..self }
    }
}
