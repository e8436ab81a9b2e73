use std::{fmt, sync::Arc, time::Duration};

use super::{
    Background, TaskFailure,
    shared::{FailureFn, Shared},
    state::Limits,
};
use crate::pool::{Pool, ThreadPool, ThreadPoolBuilder};

/// Configures a [`Background`]. Returned by [`Background::builder`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct BackgroundBuilder {
    pool: Option<Arc<dyn Pool>>,
    on_failure: Option<FailureFn>,
    limits: Limits,
    blocking_threshold: Duration,
}

/// Accepts a burst that a process can work off. Equal to the default queue capacity of the pools.
const DEFAULT_MAX_TASKS: usize = 1024;

/// High, since a client decides how long such a task waits, and low enough to bound the memory: a
/// task takes less than 1 KiB beside what its work captured.
const DEFAULT_MAX_AWAITING_RESPONSE: usize = 16_384;

/// More than the 40 threads of Starlette, from which many programs come, but low enough that each
/// task can open a connection: databases and mail servers limit the connections of one process.
const DEFAULT_MAX_RUNNING: usize = 64;

/// Upper limit of the threads of the default pool, equal to that of tokio's blocking threads.
const MAX_DEFAULT_THREADS: usize = 512;

/// Equal to the default of the blocking detector.
const DEFAULT_BLOCKING_THRESHOLD: Duration = Duration::from_millis(10);

impl BackgroundBuilder {
    pub(super) fn new() -> Self {
        Self {
            pool: None,
            on_failure: None,
            limits: Limits {
                max_tasks: DEFAULT_MAX_TASKS,
                max_awaiting_response: DEFAULT_MAX_AWAITING_RESPONSE,
                max_running: DEFAULT_MAX_RUNNING,
            },
            blocking_threshold: DEFAULT_BLOCKING_THRESHOLD,
        }
    }

    /// Sets the pool that runs the tasks, which no layer should share. Default: a pool named
    /// `background` with up to [`max_running`](Self::max_running) threads, at most 512, so that a
    /// task that blocks delays no other running task. Threads are started on demand and stopped
    /// after 10 s without work.
    ///
    /// Tasks that compute delay requests if they outnumber the processors. Give them a
    /// [`ThreadPool::cpu`]. With [`Inline`](crate::pool::Inline), which has no threads, futures run
    /// on the runtime.
    pub fn pool(self, pool: impl Pool) -> Self {
        Self { pool: Some(pool.into_shared()), ..self }
    }

    /// Sets the maximum number of tasks that are reserved, queued or running. Default: 1024. Tasks
    /// that wait for a response are [counted separately](Self::max_awaiting_response) until the
    /// response ends. They are then queued even beyond this limit, since they were admitted before.
    ///
    /// # Panics
    ///
    /// Panics if `max_tasks` is 0.
    #[track_caller]
    pub fn max_tasks(self, max_tasks: usize) -> Self {
        assert!(max_tasks > 0, "`max_tasks` must be at least 1: with 0 every task is rejected");
        Self { limits: Limits { max_tasks, ..self.limits }, ..self }
    }

    /// Sets the maximum number of tasks that wait for the end of a response: those of
    /// `AfterResponse`. Default: 16 384.
    ///
    /// A client can delay the end of its response, by not reading it. This limit bounds what such
    /// clients can hold. It is separate from [`max_tasks`](Self::max_tasks), so that they cannot
    /// use up the capacity of all others.
    ///
    /// # Panics
    ///
    /// Panics if `tasks` is 0.
    #[track_caller]
    pub fn max_awaiting_response(self, tasks: usize) -> Self {
        assert!(tasks > 0, "`max_awaiting_response` must be at least 1: with 0 every such task is rejected");
        Self { limits: Limits { max_awaiting_response: tasks, ..self.limits }, ..self }
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
        Self { limits: Limits { max_running, ..self.limits }, ..self }
    }

    /// Sets the duration above which a poll of a task [on the
    /// runtime](super::TaskBuilder::on_runtime) is reported, because it blocks the runtime.
    /// Default: 10 ms.
    ///
    /// Such polls are counted in [`BackgroundStats::blocked_polls`](super::BackgroundStats). With
    /// the features `tracing` and `metrics` they are reported like the findings of the
    /// [blocking detector](https://docs.rs/tower-offload/latest/tower_offload/blocking_detector).
    pub fn blocking_threshold(self, threshold: Duration) -> Self {
        Self { blocking_threshold: threshold, ..self }
    }

    /// Sets a callback that is called once per failed task, in addition to the event of level
    /// `ERROR` with feature `tracing`, and to [`BackgroundStats::failed`](super::BackgroundStats).
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
        let Self { pool, on_failure, limits, blocking_threshold } = self;
        let pool = pool.unwrap_or_else(|| default_pool(limits.max_running).into_shared());
        let max_running = limits.max_running.min(pool.admission().queue_capacity());
        let limits = Limits { max_running, ..limits };
        Background { shared: Arc::new(Shared::new(pool, on_failure, blocking_threshold, limits)) }
    }
}

fn default_pool(max_running: usize) -> ThreadPool {
    match default_pool_builder(max_running).build() {
        Ok(pool) => pool,
        Err(error) => panic!("failed to create the default pool of a background: {error}"),
    }
}

fn default_pool_builder(max_running: usize) -> ThreadPoolBuilder {
    ThreadPool::builder().name("background").min_threads(0).max_threads(max_running.min(MAX_DEFAULT_THREADS))
}

impl fmt::Debug for BackgroundBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackgroundBuilder")
            .field("pool", &self.pool)
            .field("limits", &self.limits)
            .field("blocking_threshold", &self.blocking_threshold)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let limits = "Limits { max_tasks: 1024, max_awaiting_response: 16384, max_running: 64 }";
        let expected = format!("BackgroundBuilder {{ pool: None, limits: {limits}, blocking_threshold: 10ms, .. }}");
        assert_eq!(format!("{:?}", BackgroundBuilder::new()), expected);
    }

    #[test]
    fn default_pool_has_up_to_512_threads_and_none_without_work() {
        for (max_running, max_threads) in [(3, 3), (512, 512), (513, 512)] {
            let text = format!("{:?}", default_pool_builder(max_running));
            assert!(text.contains(&format!("min_threads: Some(0), max_threads: Some({max_threads})")), "{text}");
        }
    }
}
