use std::{fmt, sync::Arc};

use super::{
    Background, TaskFailure,
    shared::{FailureFn, Shared},
};
use crate::pool::{Pool, ThreadPool};

/// Configures a [`Background`]. Returned by [`Background::builder`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct BackgroundBuilder {
    pool: Option<Arc<dyn Pool>>,
    on_failure: Option<FailureFn>,
    max_tasks: usize,
    max_running: usize,
}

/// Accepts a burst that a process can work off. Equal to the default queue capacity of the pools.
const DEFAULT_MAX_TASKS: usize = 1024;

/// Higher than the number of threads, because futures mostly wait, but low enough that each task
/// can open a connection: databases and mail servers limit the connections of one process.
const DEFAULT_MAX_RUNNING: usize = 64;

/// Low, because background work is rarely urgent and must leave processors to the runtime.
const DEFAULT_MAX_THREADS: usize = 8;

impl BackgroundBuilder {
    pub(super) fn new() -> Self {
        Self { pool: None, on_failure: None, max_tasks: DEFAULT_MAX_TASKS, max_running: DEFAULT_MAX_RUNNING }
    }

    /// Sets the pool for closures, which no layer should share. Default: a pool named `background`
    /// with up to 8 threads, started on demand.
    pub fn pool(self, pool: impl Pool) -> Self {
        Self { pool: Some(pool.into_shared()), ..self }
    }

    /// Sets the maximum number of tasks: reserved, queued or running. Default: 1024.
    ///
    /// A task that waits for a response is reserved until that response ends, which its client can
    /// delay. So a few clients that do not read can use up all tasks.
    ///
    /// # Panics
    ///
    /// Panics if `max_tasks` is 0.
    #[track_caller]
    pub fn max_tasks(self, max_tasks: usize) -> Self {
        assert!(max_tasks > 0, "`max_tasks` must be at least 1: with 0 every task is rejected");
        Self { max_tasks, ..self }
    }

    /// Sets the maximum number of running tasks, closures and futures together. Default: 64. With 1
    /// the tasks run one after the other.
    ///
    /// The limit is never higher than the queue capacity of the pool, so that a pool that runs only
    /// this background refuses no task. A task that waits for another task of the same background
    /// needs a second permit.
    ///
    /// # Panics
    ///
    /// Panics if `max_running` is 0.
    #[track_caller]
    pub fn max_running(self, max_running: usize) -> Self {
        assert!(max_running > 0, "`max_running` must be at least 1: with 0 no task ever starts");
        Self { max_running, ..self }
    }

    /// Sets a callback that is called once per failed task. Default: with feature `tracing`, a
    /// failure emits an event of level `ERROR`; otherwise it is not reported.
    ///
    /// The callback runs on the thread that ended the task, so it should be short. Its panics are
    /// discarded.
    pub fn on_failure(self, on_failure: impl Fn(&TaskFailure) + Send + Sync + 'static) -> Self {
        Self { on_failure: Some(Arc::new(on_failure)), ..self }
    }

    /// Creates the background.
    ///
    /// # Panics
    ///
    /// Panics if no pool was set and the default pool cannot start a thread.
    pub fn build(self) -> Background {
        let Self { pool, on_failure, max_tasks, max_running } = self;
        let pool = pool.unwrap_or_else(|| default_pool().into_shared());
        let max_running = max_running.min(pool.admission().queue_capacity());
        Background { shared: Arc::new(Shared::new(pool, on_failure, max_tasks, max_running)) }
    }
}

fn default_pool() -> ThreadPool {
    match ThreadPool::builder().name("background").min_threads(0).max_threads(DEFAULT_MAX_THREADS).build() {
        Ok(pool) => pool,
        Err(error) => panic!("failed to create the default pool of a background: {error}"),
    }
}

impl fmt::Debug for BackgroundBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackgroundBuilder")
            .field("pool", &self.pool)
            .field("max_tasks", &self.max_tasks)
            .field("max_running", &self.max_running)
            .finish_non_exhaustive()
    }
}
