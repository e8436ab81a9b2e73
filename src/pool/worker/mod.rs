//! The common part of the pools of this crate: admission, scheduler, and the loop of a worker.

mod monitor;
mod recent_wait;
mod run;
#[cfg(all(test, not(tower_offload_loom)))]
mod tests;

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::Instant;

use self::recent_wait::RecentWait;
pub(super) use self::run::Worker;
use super::{
    Pool,
    admission::Admission,
    call::Runnable,
    error::CallError,
    policy::QueuePolicy,
    scheduler::{Limits, QueueItem, Scheduler, WakeUp, WorkerState},
    stats::PoolShutdownReport,
    time,
    wake_batch::WakeBatcher,
    watchdog::Watchdog,
};

/// Common part of `ThreadPool`, `Rayon` and `TokioBlocking`: admission, a scheduler, and a way to
/// spawn a worker.
pub(super) struct WorkerPool {
    admission: Admission,
    scheduler: Scheduler<Runnable>,
    config: WorkerConfig,
    longest_wait: RecentWait,
    wake_batcher: WakeBatcher,
    executor: Box<dyn Executor>,
    /// The monitor is the thread that detects stalls. It runs while calls wait.
    monitor: Watchdog,
    /// Upgraded only to start a thread. A call holds its pool, so the pool exists then.
    this: Weak<Self>,
}

/// Threads that run workers.
pub(super) trait Executor: Send + Sync {
    /// Runs a worker on a thread. A worker for which there is no thread is dropped, or passed to
    /// [`Worker::refuse_calls`].
    fn spawn(&self, worker: Worker) -> io::Result<()>;

    /// Asks again for threads that were asked for and have not arrived. Called by the monitor while
    /// calls wait and make no progress.
    fn retry(&self) {}
}

impl<F: Fn(Worker) -> io::Result<()> + Send + Sync> Executor for F {
    fn spawn(&self, worker: Worker) -> io::Result<()> {
        self(worker)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct WorkerConfig {
    pub(super) limits: Limits,
    /// Time that a worker over the minimum waits for work. `None` waits forever.
    pub(super) keep_alive: Option<Duration>,
    pub(super) queue_policy: QueuePolicy,
    /// `true` if threads are borrowed from an executor that has other users. After each call, a
    /// worker then gives its thread back and asks for a new one if more calls wait.
    pub(super) is_borrowed: bool,
    /// `true` if a worker that looks for work spins for some microseconds.
    pub(super) spin: bool,
    /// Time without progress after which the pool is stalled.
    pub(super) stall_timeout: Duration,
    /// Error of queued calls when no worker can be spawned and none is left.
    pub(super) spawn_error: CallError,
}

impl QueueItem for Runnable {
    fn queued_at(&self) -> Instant {
        self.created()
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled()
    }

    fn is_exempt(&self) -> bool {
        self.is_exempt()
    }
}

impl WorkerPool {
    /// Creates a pool without threads. Returns its first handle.
    pub(super) fn create(
        admission: Admission,
        config: WorkerConfig,
        executor: impl Executor + 'static,
    ) -> Arc<PoolHandle> {
        let scheduler = Scheduler::new(config.limits, config.spin);
        let admission = admission.with_policy(config.queue_policy, config.limits.max);
        let workers = Arc::new_cyclic(|this| Self {
            admission,
            scheduler,
            config,
            longest_wait: RecentWait::default(),
            wake_batcher: WakeBatcher::new(),
            executor: Box::new(executor),
            monitor: Watchdog::new(),
            this: this.clone(),
        });
        Arc::new(PoolHandle { workers })
    }

    pub(super) fn threads(&self) -> usize {
        self.scheduler.workers()
    }

    /// Spawns one worker ahead of any work.
    pub(super) fn spawn_ahead(self: &Arc<Self>) -> io::Result<()> {
        if !self.scheduler.add_worker() {
            return Ok(());
        }
        self.executor.spawn(Worker::new(self.clone(), WorkerState::busy()))
    }

    /// Rejects new calls. Workers run the queued ones and exit.
    fn close(&self) {
        self.admission.close();
        self.scheduler.close();
    }

    /// Spawns a worker that the scheduler has asked for. If that fails, the drop of the worker
    /// removes it from the scheduler. Queued calls then wait for other workers, or fail if there
    /// are none.
    fn spawn_worker(&self) {
        let Some(pool) = self.this.upgrade() else { return };
        let worker = Worker::new(pool, WorkerState::notified());
        if self.admission.is_halted() {
            // The executor's own threads may be stuck in work that cannot be stopped.
            let _ = std::thread::Builder::new().name("offload-reaper".to_owned()).spawn(move || worker.run());
        } else {
            let _ = self.executor.spawn(worker);
        }
    }
}

/// The part of a pool that all its handles share, and that layers and calls hold. Its drop closes
/// the pool: workers run the queued calls and exit.
///
/// It is aligned to cache lines of its own, because an `Arc` stores it behind the reference counts,
/// which every call changes.
#[repr(align(128))]
pub(super) struct PoolHandle {
    pub(super) workers: Arc<WorkerPool>,
}

impl Pool for PoolHandle {
    fn admission(&self) -> &Admission {
        &self.workers.admission
    }

    fn schedule(&self, runnable: Runnable) {
        let WorkerPool { scheduler, monitor, .. } = &*self.workers;
        let class = runnable.class();
        let wake_up = scheduler.push(runnable, class);
        if wake_up == WakeUp::Spawn {
            self.workers.spawn_worker();
        }
        // An idle worker that was woken takes the entry soon. Otherwise the entry may wait for a
        // thread that is stuck, or for one that an executor never starts.
        if wake_up != WakeUp::Unpark(()) && !monitor.is_running() {
            self.workers.start_monitor();
        }
    }

    /// Returns the longer of two waits: that of the call that started last, and that of the oldest
    /// call in the queue.
    fn expected_wait(&self) -> Duration {
        let WorkerPool { admission, scheduler, longest_wait, .. } = &*self.workers;
        let longest_wait = longest_wait.get(time::now(), || scheduler.longest_wait());
        admission.expected_wait().max(longest_wait)
    }

    fn max_threads(&self) -> Option<usize> {
        Some(self.workers.config.limits.max)
    }

    fn shutdown(&self, timeout: Duration) -> Pin<Box<dyn Future<Output = PoolShutdownReport> + Send + '_>> {
        Box::pin(async move {
            let WorkerPool { admission, scheduler, .. } = &*self.workers;
            self.workers.close();
            let report = admission.shutdown(timeout).await;
            if scheduler.halt() {
                self.workers.spawn_worker();
            }
            report
        })
    }
}

impl Drop for PoolHandle {
    fn drop(&mut self) {
        self.workers.close();
    }
}

impl fmt::Debug for PoolHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.admission().name())
            .field("threads", &self.workers.threads())
            .field("stats", &self.admission().stats())
            .finish_non_exhaustive()
    }
}
