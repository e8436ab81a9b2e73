use std::sync::Arc;

use tokio::{runtime::Handle, time::Instant};

use super::reply::Reply;
use crate::pool::{Priority, Rejection};

/// A call without the type of its future, as queues and threads know it.
pub(crate) trait Work: Send + Sync {
    /// Runs a turn. Whom it returns is to be woken next: the call is let go of by then, so the caller frees it, on the thread
    /// that allocated it. Freed here, every call would have two threads meet at the allocator's lock.
    fn run(self: Arc<Self>) -> Option<Reply>;
    /// As `run`, with that answer.
    fn refuse(self: Arc<Self>, rejection: Rejection) -> Option<Reply>;
    /// Where the call was made.
    fn runtime(&self) -> Option<&Handle>;
    fn has_started(&self) -> bool;
    /// When it began to wait for its first poll.
    fn created(&self) -> Instant;
    /// With what priority it was made, and whether it has started. What a queue asks of each job, in one virtual call.
    fn standing(&self) -> (Priority, bool);
    fn is_cancelled(&self) -> bool;
    /// As `is_cancelled`, or the pool's shutdown deadline has passed.
    fn is_unwanted(&self) -> bool;
}
