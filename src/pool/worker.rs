use std::{
    fmt, io, mem,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{runtime::Handle, time::Instant};

use super::{
    Pool,
    admission::Admission,
    call::{CallerWaker, Runnable, RuntimeGuard},
    clock::Clock,
    error::CallError,
    metrics::PoolTime,
    policy::QueuePolicy,
    scheduler::{Action, Dequeued, Limits, Linger, QueueItem, Scheduler, WakeUp, WorkerState},
    stall::{Change, OBSERVATIONS, StallDetector},
    stats::PoolShutdownReport,
    wake_batch::{WakeBatcher, WakeList},
    watchdog::Watchdog,
};
use crate::panic::{catch_unwind, drop_payload, ignore_panic};

/// Number of intervals without a waiting call after which the monitor exits. A call that waits
/// later spawns a new thread.
const MAX_IDLE_INTERVALS: u32 = 60;

/// Time that a worker of a closed pool waits at once for calls that may be woken. Then it looks
/// whether there are any left.
const LINGER_INTERVAL: Duration = Duration::from_millis(100);
/// Number of such waits after which it exits. Calls that are woken during a shutdown therefore
/// start at most one thread per second.
const LINGER_INTERVALS: u32 = 10;

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

/// The work of one pool thread. If it is dropped without being run, for example by a runtime that
/// shuts down, it removes itself from the scheduler.
pub(super) struct Worker {
    pool: Arc<WorkerPool>,
    state: WorkerState<Runnable>,
    clock: Clock,
    has_exited: bool,
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

    #[cold]
    fn start_monitor(&self) {
        if !self.monitor.must_spawn() {
            return;
        }
        let (pool, interval) = (self.this.clone(), self.config.stall_timeout / OBSERVATIONS);
        let thread = std::thread::Builder::new().name("offload-monitor".to_owned());
        if thread.spawn(move || run_monitor(&pool, interval)).is_err() {
            self.monitor.try_exit(|| true); // The next call tries again.
        }
    }

    /// Looks for a stall. Called by the monitor, once per interval.
    fn observe(&self, detector: &mut StallDetector) {
        let metrics = self.admission.metrics();
        let nested = self.admission.nested_waits();
        let observation = metrics.observe();
        match detector.observe(Instant::now(), observation) {
            Change::None => {}
            Change::Stalled(since) => metrics.stalled(since, observation, nested.len()),
            Change::Recovered => metrics.recovered(),
        }
        if detector.is_slow() {
            self.executor.retry();
        }
        // A worker that is not active has been asked for, or has given its thread back to an
        // executor with other users. It may still get a thread once their work ends.
        let no_thread_to_come = observation.active > 0 && observation.active >= self.threads();
        if detector.is_stalled() && no_thread_to_come && nested.len() >= observation.active {
            let waits = nested.fail_all();
            if waits > 0 {
                metrics.deadlocked(waits);
            }
        }
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
        let longest_wait = longest_wait.get(admission.metrics().now(), || scheduler.longest_wait());
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

impl Worker {
    fn new(pool: Arc<WorkerPool>, state: WorkerState<Runnable>) -> Self {
        Self { pool, state, clock: Clock::default(), has_exited: false }
    }

    /// Makes the worker busy. Called on the worker's thread if the thread does something else
    /// before it runs calls.
    pub(super) fn on_start(&mut self) {
        if self.pool.scheduler.on_worker_start(&mut self.state) {
            self.pool.spawn_worker();
        }
    }

    /// Runs calls until the worker must exit. Never unwinds.
    pub(super) fn run(mut self) {
        let keep_alive = self.pool.config.keep_alive;
        let may_park = keep_alive != Some(Duration::ZERO);
        let mut action = self.pool.scheduler.next(&mut self.state, may_park);
        loop {
            action = match action {
                Action::Run(first) => match self.run_batch(first, may_park) {
                    Some(action) => action,
                    None => {
                        let pool = self.pool.clone();
                        let _ = pool.executor.spawn(self);
                        return;
                    }
                },
                Action::Search => {
                    self.pool.scheduler.search(&mut self.state);
                    self.pool.scheduler.next(&mut self.state, may_park)
                }
                Action::Park if self.park(keep_alive) => self.pool.scheduler.next(&mut self.state, may_park),
                Action::Exit if may_park && self.linger() => self.pool.scheduler.next(&mut self.state, may_park),
                Action::Park | Action::Exit => break,
            };
        }
        self.clock.flush(self.pool.admission.metrics());
        self.has_exited = true;
    }

    /// Parks until there is work. Returns `false` if the worker must exit.
    fn park(&mut self, keep_alive: Option<Duration>) -> bool {
        self.clock.flush(self.pool.admission.metrics());
        self.pool.scheduler.park(&mut self.state, keep_alive)
    }

    /// Waits for calls of a closed pool that may be woken, because each would otherwise start a
    /// thread. Returns `false` if the worker must exit.
    #[cold]
    fn linger(&mut self) -> bool {
        let WorkerPool { admission, scheduler, .. } = &*self.pool;
        self.clock.flush(admission.metrics());
        for _ in 0..LINGER_INTERVALS {
            match scheduler.linger(&mut self.state, LINGER_INTERVAL, || admission.metrics().in_flight() > 0) {
                Linger::Woken => return true,
                Linger::TimedOut => {}
                Linger::MustExit => break,
            }
        }
        if admission.metrics().in_flight() == 0 {
            scheduler.close(); // Ends the wait of a worker that lingers.
        }
        false
    }

    /// Runs calls as long as they were made in the same runtime and the worker need not park.
    /// Returns the action that ends the batch, or `None` if the worker must give its thread back.
    fn run_batch(&mut self, first: Dequeued<Runnable>, may_park: bool) -> Option<Action<Dequeued<Runnable>>> {
        let Self { pool, state, clock, .. } = self;
        let WorkerPool { admission, scheduler, config, wake_batcher, .. } = &**pool;
        let metrics = admission.metrics();
        let runtime = first.item.runtime().filter(|_| !config.is_borrowed).cloned();
        let mut batch = RunBatch::enter(runtime.as_ref(), wake_batcher);
        let mut dequeued = first;
        let end = loop {
            clock.start(metrics);
            metrics.progressed();
            let Dequeued { item: runnable, spawn_worker, has_more } = dequeued;
            if spawn_worker {
                pool.spawn_worker();
            }
            if let Some(limit) = admission.take_excess() {
                state.shed.extend(scheduler.shed_to(limit));
            }
            for shed in state.shed.drain(..) {
                clock.reset();
                ignore_panic(|| shed.refuse(CallError::Overloaded));
            }
            // A call catches the panics of its work. One that arrives here was raised by a metrics
            // recorder or a tracing subscriber.
            let caller = catch_unwind(|| runnable.run_without_wake(Some(&mut *clock))).unwrap_or_else(|payload| {
                drop_payload(payload);
                None
            });
            if let Some(caller) = caller {
                if batch.wake(caller, !has_more) {
                    clock.reset();
                }
            }
            clock.report(metrics);
            if config.is_borrowed && !admission.is_halted() && !scheduler.looks_empty() {
                metrics.progressed();
                break None;
            }
            let mut action = scheduler.next(state, may_park);
            while let Action::Search = action {
                clock.stop(metrics);
                scheduler.search(state);
                action = scheduler.next(state, may_park);
            }
            match action {
                Action::Run(next) if batch.covers(next.item.runtime()) => dequeued = next,
                action => break Some(action),
            }
        };
        clock.stop(metrics);
        // Tokio panics here if work has leaked the guard of a runtime that it entered.
        ignore_panic(|| drop(batch));
        end
    }
}

impl Worker {
    /// Removes a worker that has no thread. If it was the last one, queued calls fail with `error`.
    pub(super) fn refuse_calls(mut self, error: CallError) {
        self.lose(error);
    }

    fn lose(&mut self, error: CallError) {
        self.has_exited = true;
        self.clock.flush(self.pool.admission.metrics());
        let WorkerPool { admission, scheduler, .. } = &*self.pool;
        for runnable in scheduler.on_worker_lost(&self.state) {
            runnable.refuse(if admission.is_closed() { CallError::Closed } else { error });
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.has_exited {
            self.lose(self.pool.config.spawn_error);
        }
    }
}

/// The wait of the oldest call in the queue, as it was found in the current millisecond.
///
/// Finding it takes the locks of workers and submitters. Every rejected call asks for it, and a
/// flood of them must not slow down the calls that are admitted.
#[derive(Debug, Default)]
struct RecentWait(AtomicU64);

impl RecentWait {
    /// Returns the wait in whole milliseconds, at most 49 days. `find` is called in most cases once
    /// per millisecond.
    fn get(&self, now: PoolTime, find: impl FnOnce() -> Duration) -> Duration {
        // The upper half is the millisecond, which wraps around, and the lower half is the wait.
        let now = (now / 1_000_000) << 32;
        let recent = self.0.load(Relaxed);
        let wait = if recent >> 32 == now >> 32 {
            recent & u64::from(u32::MAX)
        } else {
            let wait = u64::from(u32::try_from(find().as_millis()).unwrap_or(u32::MAX));
            self.0.store(now | wait, Relaxed);
            wait
        };
        Duration::from_millis(wait)
    }
}

/// Runs on the monitor's thread, until the pool is dropped or no call has waited for a while.
fn run_monitor(pool: &Weak<WorkerPool>, interval: Duration) {
    let Some(timeout) = pool.upgrade().map(|pool| pool.config.stall_timeout) else { return };
    let (mut detector, mut idle_intervals) = (StallDetector::new(timeout), 0);
    loop {
        std::thread::sleep(interval);
        let Some(pool) = pool.upgrade() else { return };
        // A recorder or a subscriber may panic.
        ignore_panic(|| pool.observe(&mut detector));
        idle_intervals = if detector.is_idle() { idle_intervals + 1 } else { 0 };
        if idle_intervals >= MAX_IDLE_INTERVALS && pool.monitor.try_exit(|| pool.scheduler.is_empty()) {
            return;
        }
    }
}

/// Calls that a worker runs one after the other without parking, all made in one runtime. The
/// runtime is entered once for all of them, and their callers are woken together.
#[derive(Debug)]
struct RunBatch<'a> {
    guard: RuntimeGuard<'a>,
    runtime: Option<&'a Handle>,
    wake_batcher: &'a WakeBatcher,
    /// Looked up for the second caller, since most batches of a pool that is not busy have one
    /// call.
    wake_list: Option<Arc<WakeList>>,
    is_first: bool,
}

impl<'a> RunBatch<'a> {
    fn enter(runtime: Option<&'a Handle>, wake_batcher: &'a WakeBatcher) -> Self {
        Self { guard: RuntimeGuard::enter(runtime), runtime, wake_batcher, wake_list: None, is_first: true }
    }

    /// Returns `true` if a call made in `runtime` can be part of the batch.
    fn covers(&self, runtime: Option<&Handle>) -> bool {
        self.guard.covers(runtime)
    }

    /// Wakes a caller now, or together with others. `is_last` is `true` if no other call is queued.
    /// Returns `true` if a task was woken, which may have taken a while.
    fn wake(&mut self, caller: CallerWaker, is_last: bool) -> bool {
        let is_first = mem::replace(&mut self.is_first, false);
        match self.runtime {
            Some(runtime) if caller.is_maker && !is_first => {
                let list = self.wake_list.get_or_insert_with(|| self.wake_batcher.list(runtime));
                self.wake_batcher.wake(list, caller, is_last)
            }
            _ => {
                caller.wake();
                true
            }
        }
    }
}

impl Drop for RunBatch<'_> {
    /// Wakes the callers in the list, because this worker will not drain it later.
    fn drop(&mut self) {
        if let Some(list) = &self.wake_list {
            list.wake_all();
        }
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use std::{
        cell::Cell,
        pin::pin,
        sync::{
            atomic::{AtomicUsize, Ordering::SeqCst},
            mpsc,
        },
        task::{Context, Poll, Waker},
        thread::sleep,
    };

    use super::*;
    use crate::pool::{
        CallOptions, QueuePermit,
        call::{Context as CallContext, OnCallerDrop, spawn, spawn_in_place},
        permits::PermitKind,
        queue_permit::Admitted,
    };

    const LIMITS: Limits = Limits { min: 1, max: 1 };

    /// Returns a pool of one thread, and a counter of the threads that it has started.
    fn pool() -> (Arc<PoolHandle>, Arc<AtomicUsize>) {
        let started = Arc::new(AtomicUsize::new(0));
        let counter = started.clone();
        let config = WorkerConfig {
            limits: LIMITS,
            keep_alive: None,
            queue_policy: QueuePolicy::Fifo,
            is_borrowed: false,
            spin: false,
            stall_timeout: Duration::from_secs(10),
            spawn_error: CallError::Closed,
        };
        let executor = move |worker: Worker| {
            counter.fetch_add(1, SeqCst);
            std::thread::Builder::new().spawn(move || worker.run()).map(drop)
        };
        (WorkerPool::create(Admission::new("test", 8), config, executor), started)
    }

    fn admitted(pool: &Arc<PoolHandle>) -> Admitted {
        let (pool, options): (Arc<dyn Pool>, _) = (pool.clone(), CallOptions::default());
        let queue_permit = QueuePermit::try_acquire(&pool, options, PermitKind::Exempt).expect("the queue has room");
        Admitted { queue_permit, layer_permit: None, options }
    }

    fn until(condition: impl Fn() -> bool) {
        for _ in 0..30_000 {
            if condition() {
                return;
            }
            sleep(Duration::from_millis(1));
        }
        panic!("nothing happens");
    }

    #[test]
    fn only_workers_make_progress() {
        let (pool, _) = pool();
        let metrics = pool.admission().metrics();
        let (release, released) = mpsc::channel::<()>();
        let context = CallContext::capture;
        let blocked = spawn(admitted(&pool), context(), OnCallerDrop::Cancel, async move { released.recv().is_err() });
        until(|| metrics.stats().active == 1);
        let before = metrics.observe();
        let leaves = spawn(admitted(&pool), context(), OnCallerDrop::Cancel, async {});
        let queued = spawn(admitted(&pool), context(), OnCallerDrop::Cancel, async {});
        drop(leaves);
        let mut in_place = spawn_in_place(admitted(&pool), context(), OnCallerDrop::Cancel, async {});
        let mut cx = std::task::Context::from_waker(Waker::noop());
        assert!(matches!(Pin::new(&mut in_place).poll(&mut cx), Poll::Ready(Ok(()))));
        let after = metrics.observe();
        assert_eq!((before.progress, before.queued), (after.progress, after.queued - 1));
        drop(release);
        until(|| metrics.in_flight() == 0);
        assert_ne!(metrics.observe().progress, before.progress);
        drop((blocked, queued));
    }

    #[test]
    fn calls_that_are_woken_during_a_shutdown_start_no_threads() {
        const WAKES: usize = 20;
        let (pool, started) = pool();
        let (waker, woken) = mpsc::channel();
        let mut polls = 0;
        let work = std::future::poll_fn(move |cx: &mut Context<'_>| {
            polls += 1;
            let _ = waker.send(cx.waker().clone());
            if polls > WAKES { Poll::Ready(()) } else { Poll::Pending }
        });
        let call = spawn(admitted(&pool), CallContext::capture(), OnCallerDrop::Cancel, work);
        let mut waker = woken.recv().expect("the first poll");
        pool.workers.close();
        for _ in 0..WAKES {
            // A worker that has waited in vain exits, and the next wake-up starts another one.
            let scheduler = &pool.workers.scheduler;
            until(|| scheduler.has_idle_worker() || scheduler.workers() == 0);
            waker.wake();
            waker = woken.recv().expect("another poll");
        }
        until(|| pool.workers.scheduler.workers() == 0);
        assert!(pin!(call).poll(&mut Context::from_waker(Waker::noop())).is_ready());
        assert!(started.load(SeqCst) < WAKES / 2, "{} threads", started.load(SeqCst));
    }

    #[test]
    fn rejected_calls_look_at_the_queue_once_per_millisecond() {
        const MILLISECOND: PoolTime = 1_000_000;
        let (recent, found) = (RecentWait::default(), Cell::new(0));
        let get = |now| {
            recent.get(now, || {
                found.set(found.get() + 1);
                Duration::from_micros(1999 + 1000 * found.get())
            })
        };
        let day = 86_400_000 * MILLISECOND;
        assert_eq!([day, day + 1, day + MILLISECOND - 1].map(get), [Duration::from_millis(2); 3]);
        assert_eq!([day + MILLISECOND, day + MILLISECOND].map(get), [Duration::from_millis(3); 2]);
        assert_eq!(recent.get(day + 2 * MILLISECOND, || Duration::MAX), Duration::from_millis(u32::MAX.into()));
        assert_eq!(found.get(), 2);
    }
}
