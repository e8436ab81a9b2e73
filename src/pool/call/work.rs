use std::sync::Arc;

use tokio::time::Instant;

use crate::pool::{Priority, Rejection};

/// A call without the type of its future, as queues and threads know it.
pub(crate) trait Work: Send + Sync {
    fn run(self: Arc<Self>);
    fn refuse(self: Arc<Self>, rejection: Rejection);
    fn has_started(&self) -> bool;
    /// When it began to wait for its first poll.
    fn created(&self) -> Instant;
    /// With what priority it was made, and whether it has started. What a queue asks of each job, in one virtual call.
    fn standing(&self) -> (Priority, bool);
    fn is_cancelled(&self) -> bool;
    /// As `is_cancelled`, or the pool's shutdown deadline has passed.
    fn is_unwanted(&self) -> bool;
}
