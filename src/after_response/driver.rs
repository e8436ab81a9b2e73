//! Runs hooks and tasks once their exchange has settled.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread,
};

use tokio::runtime::Handle;

use super::{
    Outcome,
    exchange::Exchange,
    guard::InnerAttempt,
    pending::{Pending, SpawnContext},
    task::Condition,
};
use crate::panic::ignore_panic;
use crate::{
    background::{Completion, DrainGuard, Reservation, TaskBody},
    pool::call::{self},
    sync::{Mutex, lock},
};

/// A hook, and the context in which it was registered.
pub(super) struct Hook {
    context: call::Context,
    run: Box<dyn FnOnce(&Outcome) + Send>,
}

impl Hook {
    pub(super) fn new(run: impl FnOnce(&Outcome) + Send + 'static) -> Self {
        Self { context: call::Context::capture_for_background(), run: Box::new(run) }
    }

    fn run(self, outcome: &Outcome) {
        let Self { context, run } = self;
        ignore_panic(|| context.enter_trace(|| run(outcome)));
        ignore_panic(|| drop(context));
    }
}

/// A task that has a reservation and waits for the outcome.
pub(super) struct RegisteredTask {
    /// Declared before `reservation`, so that it is dropped first: when a shutdown sees the permit
    /// released, the values that the work captured have been dropped.
    pub(super) body: TaskBody,
    pub(super) reservation: Reservation,
    pub(super) condition: Condition,
    pub(super) attempt: Option<InnerAttempt>,
    /// The maximum number of the request's tasks, including this one, that may be running once it
    /// has started.
    pub(super) concurrent: usize,
    pub(super) stop_on_error: bool,
}

/// Future that runs the hooks of a settled exchange and starts its tasks.
///
/// It is a task of its own, because an exchange settles in the middle of I/O, where no user code
/// may run.
pub(super) struct Driver {
    /// The guard makes a shutdown of the background wait for hooks. `None` once the driver, or the
    /// thread that replaces it, has started.
    work: Option<(Arc<Exchange>, DrainGuard)>,
}

impl Driver {
    /// Spawns the driver on the runtime of the first registration, otherwise on the current one.
    /// Without a runtime, or if it has shut down, the driver runs on a new thread, because a pool
    /// may be full or shut down.
    pub(super) fn start(exchange: Arc<Exchange>) {
        let context = lock(&exchange.pending).context();
        let Some(SpawnContext { runtime, background }) = context else { return }; // nothing was registered
        let driver = Self { work: Some((exchange, background.drain_guard())) };
        match runtime.or_else(|| Handle::try_current().ok()) {
            Some(runtime) => ignore_panic(|| drop(runtime.spawn(driver))), // the runtime's own task hooks are user code
            None => drop(driver),
        }
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if let Some((exchange, guard)) = self.work.take() {
            run_pending(&exchange, &guard);
        }
        Poll::Ready(())
    }
}

impl Drop for Driver {
    /// Runs the driver on a new thread if it was never polled, because there is no runtime or the
    /// runtime has shut down.
    fn drop(&mut self) {
        let Some((exchange, guard)) = self.work.take() else { return };
        let name = "after-response".to_owned();
        let _ = thread::Builder::new().name(name).spawn(move || run_pending(&exchange, &guard));
    }
}

/// Runs hooks and submits selected tasks until no registration is left.
fn run_pending(exchange: &Arc<Exchange>, guard: &DrainGuard) {
    let begins = lock(&exchange.pending).begin_driving();
    if !begins {
        return;
    }
    let outcome = exchange.outcome();
    loop {
        let taken = lock(&exchange.pending).take();
        let Some((hooks, tasks)) = taken else { return };
        hooks.for_each(|hook| guard.scope(|| hook.run(&outcome)));
        tasks.into_iter().for_each(|task| select(task, &outcome, &exchange.pending));
        dispatch(exchange);
    }
}

/// Makes a task ready if its condition holds, otherwise skips it.
fn select(mut task: RegisteredTask, outcome: &Outcome, pending: &Mutex<Pending<Hook, RegisteredTask>>) {
    let concurrent = task.concurrent;
    let is_selected = std::mem::take(&mut task.condition).holds(outcome, task.attempt.as_ref());
    let skipped = if is_selected { lock(pending).push_ready(task, concurrent) } else { Some(task) };
    if let Some(skipped) = skipped {
        skip(skipped, pending);
    }
}

/// Drops a task, which releases its reservation and counts it as skipped.
fn skip(task: RegisteredTask, pending: &Mutex<Pending<Hook, RegisteredTask>>) {
    lock(pending).unindex(task.reservation.id());
    ignore_panic(|| drop(task));
}

/// Starts the ready tasks that their concurrency limits allow.
pub(super) fn dispatch(exchange: &Arc<Exchange>) {
    let begins = lock(&exchange.pending).begin_dispatching();
    if !begins {
        return;
    }
    loop {
        let next = lock(&exchange.pending).next_task();
        let Some(RegisteredTask { reservation, body, stop_on_error, .. }) = next else { return };
        let (exchange, id) = (exchange.clone(), reservation.id());
        let on_completion = move |completion: Completion| {
            let stop = stop_on_error && completion.is_failure();
            let stopped = {
                let mut pending = lock(&exchange.pending);
                pending.unindex(id);
                pending.finish_task(stop)
            };
            // One at a time: a panic while another one unwinds would abort the process.
            stopped.into_iter().for_each(|(task, _)| skip(task, &exchange.pending));
            dispatch(&exchange);
        };
        reservation.on_completion(on_completion).submit(body);
    }
}
