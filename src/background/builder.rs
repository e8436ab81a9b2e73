use std::{fmt, sync::Arc};

use super::{
    Background, TaskFailure,
    shared::{Shared, Sink},
};
use crate::pool::Pool;

/// Configures a [`Background`]. Made by [`Background::builder`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct Builder {
    pool: Option<Arc<dyn Pool>>,
    sink: Option<Sink>,
    queue_capacity: usize,
    max_running: usize,
}

/// A burst that a process can work off; as the pools'.
const DEFAULT_QUEUE_CAPACITY: usize = 1024;

/// More than the pool's threads, since async tasks mostly wait; no more than what a database or a mail server takes from
/// one process without complaint.
const DEFAULT_MAX_RUNNING: usize = 64;

impl Builder {
    pub(super) fn new() -> Self {
        Self { pool: None, sink: None, queue_capacity: DEFAULT_QUEUE_CAPACITY, max_running: DEFAULT_MAX_RUNNING }
    }

    /// Where sync work runs; it should be no other's. Default: as [`Background::default`].
    pub fn pool(self, pool: impl Pool) -> Self {
        Self { pool: Some(pool.into_shared()), ..self }
    }

    /// How many tasks may be registered and not over at once, running ones included. Default 1024.
    ///
    /// # Panics
    ///
    /// If it is 0: no task could ever be registered.
    pub fn queue_capacity(self, queue_capacity: usize) -> Self {
        assert!(queue_capacity > 0, "a background with `queue_capacity` 0 takes no task: give it at least 1");
        Self { queue_capacity, ..self }
    }

    /// How many tasks may run at once, sync and async together. Default 64, and never more than the pool's own
    /// queue capacity, so that a pool of its own refuses none. With 1 they run one after the other.
    ///
    /// Tasks that wait for other tasks of the same background to run need as many permits.
    ///
    /// # Panics
    ///
    /// If it is 0: no task could ever run.
    pub fn max_running(self, max_running: usize) -> Self {
        assert!(max_running > 0, "a background with `max_running` 0 runs no task: give it at least 1");
        Self { max_running, ..self }
    }

    /// Who gets each failure, once: on the thread where the task ended, so it should be short. A panic in it is
    /// swallowed. Default: an event of level `ERROR` with feature `tracing`, nothing without.
    pub fn on_failure(self, sink: impl Fn(&TaskFailure) + Send + Sync + 'static) -> Self {
        Self { sink: Some(Arc::new(sink)), ..self }
    }

    /// # Panics
    ///
    /// As [`Background::default`], if no pool was given.
    pub fn build(self) -> Background {
        let Self { pool, sink, queue_capacity, max_running } = self;
        let pool = pool.unwrap_or_else(|| Background::default_pool().into_shared());
        let max_running = max_running.min(pool.admission().queue_capacity());
        Background::from_shared(Shared::new(pool, sink, queue_capacity, max_running))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("pool", &self.pool)
            .field("queue_capacity", &self.queue_capacity)
            .field("max_running", &self.max_running)
            .finish_non_exhaustive()
    }
}
