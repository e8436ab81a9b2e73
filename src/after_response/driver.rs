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
use crate::panic::ignore_panic;
use crate::{
    background::{Completion, DrainGuard},
    sync::{Mutex, lock},
};

/// Runs the hooks of a settled exchange and starts its tasks: in a task of its own, never on the stack of whoever settled it.
pub(super) struct Driver {
    /// With what makes a drain wait for it, also if there are but hooks. `None` once it drives, or a thread does so in its place.
    work: Option<(Arc<Exchange>, DrainGuard)>,
}

impl Driver {
    /// On the runtime of the first registration; without any, on this thread's; without any, or if it is gone, on a thread of its
    /// own. Not on a pool: this may be the midst of I/O, where no foreign code may run, and a pool may be full or gone.
    pub(super) fn start(exchange: Arc<Exchange>) {
        let home = lock(&exchange.pending).home();
        let Some(Home { runtime, background }) = home else { return }; // nobody has registered anything
        let driver = Self { work: Some((exchange, background.drain_guard())) };
        match runtime.or_else(|| Handle::try_current().ok()) {
            Some(runtime) => ignore_panic(|| drop(runtime.spawn(driver))), // a runtime has hooks, which are foreign
            None => drop(driver),
        }
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if let Some((exchange, hold)) = self.work.take() {
            drive(&exchange, &hold);
        }
        Poll::Ready(())
    }
}

impl Drop for Driver {
    /// It did not get to drive: there is no runtime, or the one it was on is gone.
    fn drop(&mut self) {
        let Some((exchange, hold)) = self.work.take() else { return };
        let name = "after-response".to_owned();
        let _ = thread::Builder::new().name(name).spawn(move || drive(&exchange, &hold));
    }
}

/// Until nothing new was registered: runs the hooks, and gives the tasks that are wanted to the background.
fn drive(exchange: &Arc<Exchange>, hold: &DrainGuard) {
    let begins = lock(&exchange.pending).begin_driving();
    if !begins {
        return;
    }
    let outcome = exchange.outcome();
    loop {
        let taken = lock(&exchange.pending).take();
        let Some((hooks, tasks)) = taken else { return };
        hooks.for_each(|hook| hold.scope(|| hook.run(&outcome)));
        tasks.into_iter().for_each(|task| judge(task, &outcome, &exchange.pending));
        dispatch(exchange);
    }
}

fn judge(mut task: Task, outcome: &Outcome, pending: &Mutex<Pending<Hook, Task>>) {
    let concurrent = task.concurrent;
    let is_wanted = std::mem::take(&mut task.condition).holds(outcome, task.attempt.as_ref());
    let unwanted = if is_wanted { lock(pending).push_ready(task, concurrent) } else { Some(task) };
    if let Some(unwanted) = unwanted {
        skip(unwanted, pending);
    }
}

/// Drops it, which gives its place back and counts it as skipped.
fn skip(task: Task, pending: &Mutex<Pending<Hook, Task>>) {
    lock(pending).forget(task.reservation.id());
    ignore_panic(|| drop(task));
}

/// Starts the tasks that may.
pub(super) fn dispatch(exchange: &Arc<Exchange>) {
    let begins = lock(&exchange.pending).begin_dispatching();
    if !begins {
        return;
    }
    loop {
        let next = lock(&exchange.pending).next();
        let Some(Task { reservation, body, stop_on_error, .. }) = next else { return };
        let (exchange, id) = (exchange.clone(), reservation.id());
        let on_completion = move |completion: Completion| {
            let stop = stop_on_error && completion.is_failure();
            let never = {
                let mut pending = lock(&exchange.pending);
                pending.forget(id);
                pending.over(stop)
            };
            // One by one: a second panic while a first one unwinds would abort the process.
            never.into_iter().for_each(|(unwanted, _)| skip(unwanted, &exchange.pending));
            dispatch(&exchange);
        };
        reservation.on_completion(on_completion).submit(body);
    }
}
