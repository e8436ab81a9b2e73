use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread,
};

use tokio::runtime::Handle;

use super::{
    Outcome,
    entry::{Hook, Task},
    exchange::Exchange,
    pending::{Home, Pending},
};
use crate::{
    background::Over,
    pool::{
        Priority, Slot,
        call::{self, Admitted, Departure, contained},
    },
    sync::{Mutex, lock},
};

/// Runs the hooks of a settled exchange and starts its tasks: in a task of its own, never on the stack of whoever settled it.
pub(super) struct Driver {
    /// `None` once it drives, or another does so in its place.
    exchange: Option<Arc<Exchange>>,
    is_on_pool: bool,
}

impl Driver {
    /// On the runtime of the first registration; without any, on this thread's; without any, or if it is gone, on the
    /// background's pool; if that is full or gone, on a thread of its own.
    pub(super) fn start(exchange: Arc<Exchange>) {
        let runtime = lock(&exchange.pending).home().and_then(|home| home.runtime);
        let driver = Self { exchange: Some(exchange), is_on_pool: false };
        match runtime.or_else(|| Handle::try_current().ok()) {
            Some(runtime) => drop(runtime.spawn(driver)),
            None => drop(driver),
        }
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if let Some(exchange) = self.exchange.take() {
            drive(&exchange);
        }
        Poll::Ready(())
    }
}

impl Drop for Driver {
    /// It did not get to drive: there is no runtime, or the one it was on is gone, or the pool it was on was shut down.
    fn drop(&mut self) {
        let Some(exchange) = self.exchange.take() else { return };
        if self.is_on_pool {
            on_a_thread(exchange);
            return;
        }
        let Some(Home { background, .. }) = lock(&exchange.pending).home() else { return };
        // Nobody waits for more than it takes; tasks have places that drains wait for.
        match Slot::claim(background.pool(), Priority::Release) {
            Ok(slot) => {
                let driver = Self { exchange: Some(exchange), is_on_pool: true };
                let admitted = Admitted { slot, place: None, priority: Priority::Release };
                let context = call::Context::capture_for_background();
                // A pool is foreign code, and this may be the unwinding of a handler's panic.
                contained(|| drop(call::spawn(admitted, context, Departure::Detach, driver)));
            }
            Err(_) => on_a_thread(exchange),
        }
    }
}

/// What was promised to run on every path, when no pool takes it.
fn on_a_thread(exchange: Arc<Exchange>) {
    let name = "after-response".to_owned();
    let _ = thread::Builder::new().name(name).spawn(move || drive(&exchange));
}

/// Until nothing new was registered: runs the hooks, and gives the tasks that are wanted to the background.
fn drive(exchange: &Arc<Exchange>) {
    let begins = lock(&exchange.pending).begin_driving();
    if !begins {
        return;
    }
    let outcome = exchange.outcome();
    loop {
        let taken = lock(&exchange.pending).take();
        let Some((hooks, tasks)) = taken else { return };
        hooks.for_each(|hook| hook.run(outcome));
        tasks.into_iter().for_each(|task| judge(task, outcome, &exchange.pending));
        dispatch(exchange);
    }
}

fn judge(mut task: Task, outcome: &Outcome, pending: &Mutex<Pending<Hook, Task>>) {
    let concurrent = task.concurrent;
    let is_wanted = std::mem::take(&mut task.condition).holds(outcome);
    let unwanted = if is_wanted { lock(pending).push_ready(task, concurrent) } else { Some(task) };
    if let Some(unwanted) = unwanted {
        skip(unwanted, pending);
    }
}

/// Drops it, which gives its place back and counts it as skipped.
fn skip(task: Task, pending: &Mutex<Pending<Hook, Task>>) {
    lock(pending).forget(task.reservation.id());
    contained(|| drop(task));
}

/// Starts the tasks that may.
fn dispatch(exchange: &Arc<Exchange>) {
    let begins = lock(&exchange.pending).begin_dispatching();
    if !begins {
        return;
    }
    loop {
        let next = lock(&exchange.pending).next();
        let Some(Task { reservation, body, stop_on_error, .. }) = next else { return };
        let (exchange, id) = (exchange.clone(), reservation.id());
        let over = move |over| {
            let stop = stop_on_error && over == Over::Failed;
            lock(&exchange.pending).forget(id);
            let never = lock(&exchange.pending).over(stop);
            // One by one: a second panic while a first one unwinds would abort the process.
            never.into_iter().for_each(|(unwanted, _)| skip(unwanted, &exchange.pending));
            dispatch(&exchange);
        };
        reservation.on_over(over).spend(body);
    }
}
