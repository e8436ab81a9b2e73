//! The loop of a worker.

use std::{mem, sync::Arc, time::Duration};

use tokio::runtime::Handle;

use super::WorkerPool;
use crate::{
    panic::{catch_unwind, drop_payload, ignore_panic},
    pool::{
        call::{CallerWaker, Runnable, RuntimeGuard},
        clock::Clock,
        error::CallError,
        scheduler::{Action, Dequeued, Linger, WorkerState},
        wake_batch::{WakeBatcher, WakeList},
    },
};

/// Time that a worker of a closed pool waits at once for calls that may be woken. Then it looks
/// whether there are any left.
const LINGER_INTERVAL: Duration = Duration::from_millis(100);
/// Number of such waits after which it exits. Calls that are woken during a shutdown therefore
/// start at most one thread per second.
const LINGER_INTERVALS: u32 = 10;

/// The work of one pool thread. If it is dropped without being run, for example by a runtime that
/// shuts down, it removes itself from the scheduler.
pub(in crate::pool) struct Worker {
    pool: Arc<WorkerPool>,
    state: WorkerState<Runnable>,
    clock: Clock,
    has_exited: bool,
}

impl Worker {
    pub(super) fn new(pool: Arc<WorkerPool>, state: WorkerState<Runnable>) -> Self {
        Self { pool, state, clock: Clock::default(), has_exited: false }
    }

    /// Makes the worker busy. Called on the worker's thread if the thread does something else
    /// before it runs calls.
    pub(in crate::pool) fn on_start(&mut self) {
        if self.pool.scheduler.on_worker_start(&mut self.state) {
            self.pool.spawn_worker();
        }
    }

    /// Runs calls until the worker must exit. Never unwinds.
    pub(in crate::pool) fn run(mut self) {
        // Calls catch the panics of user code, so this is for what they miss, such as a waker that
        // panics when it is dropped with its call.
        let exits = loop {
            match catch_unwind(|| self.run_batches()) {
                Ok(exits) => break exits,
                Err(payload) => drop_payload(payload),
            }
        };
        if exits {
            self.clock.flush(self.pool.admission.metrics());
            self.has_exited = true;
        } else {
            let pool = self.pool.clone();
            let _ = pool.executor.spawn(self);
        }
    }

    /// Returns `true` if the worker must exit, and `false` if it must give its thread back.
    fn run_batches(&mut self) -> bool {
        let keep_alive = self.pool.config.keep_alive;
        let may_park = keep_alive != Some(Duration::ZERO);
        let mut action = self.pool.scheduler.next(&mut self.state, may_park);
        loop {
            action = match action {
                Action::Run(first) => match self.run_batch(first, may_park) {
                    Some(action) => action,
                    None => return false,
                },
                Action::Search => {
                    self.pool.scheduler.search(&mut self.state);
                    self.pool.scheduler.next(&mut self.state, may_park)
                }
                Action::Park if self.park(keep_alive) => self.pool.scheduler.next(&mut self.state, may_park),
                Action::Exit if may_park && self.linger() => self.pool.scheduler.next(&mut self.state, may_park),
                Action::Park | Action::Exit => return true,
            };
        }
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
            if !state.shed.is_empty() {
                clock.reset();
                state.shed.drain(..).for_each(|shed| ignore_panic(|| shed.refuse(CallError::Overloaded)));
            }
            if let Some(caller) = runnable.run_without_wake(Some(&mut *clock)) {
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
    pub(in crate::pool) fn refuse_calls(mut self, error: CallError) {
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
