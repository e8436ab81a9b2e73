//! Runs hooks and tasks once their exchange has settled.

use std::{
    collections::VecDeque,
    pin::{Pin, pin},
    sync::{Arc, LazyLock},
    task::{Context, Poll},
    thread, vec,
};

use tokio::runtime::Handle;

use super::{
    Outcome,
    exchange::Exchange,
    guard::{AttemptState, InnerAttempt},
    mailbox::{Mailbox, Taken},
    pending::{Hooks, SpawnContext, TaskKey},
    run_queue::{RunQueue, Step},
    settled::{DueBatch, SettledExchanges},
    task::Condition,
};
use crate::panic::ignore_panic;
use crate::{
    background::{Completion, DrainGuard, Reservation, TaskBody},
    pool::call,
    sync::lock,
};

/// A hook, which runs in the span in which it was registered.
pub(super) struct Hook(Box<dyn FnOnce(&Outcome) + Send>);

impl Hook {
    pub(super) fn new(run: impl FnOnce(&Outcome) + Send + 'static) -> Self {
        match call::Context::capture_trace() {
            None => Self(Box::new(run)),
            Some(context) => Self(Box::new(move |outcome| {
                ignore_panic(|| context.enter_trace(|| run(outcome)));
                ignore_panic(|| drop(context));
            })),
        }
    }

    fn run(self, outcome: &Outcome) {
        ignore_panic(|| (self.0)(outcome));
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
    pub(super) key: TaskKey,
    pub(super) stop_on_error: bool,
}

impl RegisteredTask {
    /// Returns `false` if the task depends on a handler that has not ended.
    fn is_decided(&self, exchange: &Exchange) -> bool {
        !self.condition.depends_on_handler() || self.call(exchange).is_none_or(AttemptState::is_decided)
    }

    /// Returns `true` if the task runs, as far as its handler's response is concerned.
    fn has_succeeded(&self, outcome: &Outcome, exchange: &Exchange) -> bool {
        self.call(exchange).map_or_else(|| outcome.is_success(), AttemptState::is_success)
    }

    /// Returns the handler's call that decides, or `None` if the outcome does.
    fn call<'a>(&'a self, exchange: &'a Exchange) -> Option<&'a AttemptState> {
        match &self.attempt {
            Some(attempt) => Some(attempt.state(exchange)),
            None => exchange.own_call.offloaded(),
        }
    }
}

/// Hooks and tasks that are processed before the driver lets other tasks of its runtime run.
const STEPS_PER_POLL: usize = 32;

/// Hooks and tasks without a runtime. A thread that is started for the first of them runs them all.
static WITHOUT_RUNTIME: LazyLock<RunQueue<Drive>> = LazyLock::new(RunQueue::new);

/// Future that runs the hooks of settled exchanges and starts their tasks.
///
/// It is a task of its own, because an exchange settles in the middle of I/O, where no user code
/// may run.
pub(super) struct Driver {
    /// `None` while the driver waits, and once a thread has taken over.
    drive: Option<Drive>,
    /// `None` if the driver ends with its first batch.
    mailbox: Option<Arc<Mailbox<DueBatch>>>,
}

impl Driver {
    /// Starts the driver of one exchange.
    pub(super) fn start(exchange: Arc<Exchange>, context: SpawnContext) {
        SettledExchanges::default().push(exchange, context);
    }

    /// Starts the driver of a batch.
    pub(super) fn run(batch: DueBatch, runtime: Option<Handle>) {
        Self { drive: Some(Drive::new(batch)), mailbox: None }.spawn(runtime);
    }

    /// Starts a driver that takes batches out of this mailbox, which contains one.
    pub(super) fn serve(mailbox: Arc<Mailbox<DueBatch>>, runtime: Option<Handle>) {
        Self { drive: None, mailbox: Some(mailbox) }.spawn(runtime);
    }

    /// Spawns the driver on the runtime of the first registration, otherwise on the current one.
    /// Without a runtime, or if it has shut down, the driver runs on a thread, because a pool may
    /// be full or shut down.
    fn spawn(self, runtime: Option<Handle>) {
        match runtime.or_else(|| Handle::try_current().ok()) {
            Some(runtime) => ignore_panic(|| drop(runtime.spawn(self))), // the runtime's own task hooks are user code
            None => drop(self),
        }
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { drive, mailbox } = &mut *self;
        loop {
            if drive.as_mut().is_some_and(|drive| drive.step().is_pending()) {
                // Unlike a wake-up, this lets the runtime look at its sockets and timers first.
                return pin!(tokio::task::yield_now()).poll(cx);
            }
            ignore_panic(|| *drive = None); // may drop values of users
            match mailbox.as_ref().map(|mailbox| mailbox.take(cx.waker())) {
                Some(Taken::Batch(batch)) => *drive = Some(Drive::new(batch)),
                Some(Taken::Nothing) => return Poll::Pending,
                Some(Taken::Closed) | None => return Poll::Ready(()),
            }
        }
    }
}

impl Drop for Driver {
    /// Continues on a thread if the driver has not finished, because there is no runtime or the
    /// runtime has shut down.
    fn drop(&mut self) {
        let queue: &'static RunQueue<_> = &WITHOUT_RUNTIME;
        let run = |drive| queue.run(drive, |run| thread::Builder::new().name("after-response".to_owned()).spawn(run));
        self.drive.take().map(run);
        let untaken = self.mailbox.take().and_then(|mailbox| mailbox.retire());
        untaken.map(Drive::new).map(run);
    }
}

/// The progress of a driver, which drives one exchange after the other.
struct Drive {
    current: Current,
    later: vec::IntoIter<Arc<Exchange>>,
    /// Exchanges with many hooks, which let the others go first.
    paused: VecDeque<Current>,
    /// Makes a shutdown of the background wait for hooks.
    guard: DrainGuard,
}

/// The progress of one exchange.
struct Current {
    exchange: Arc<Exchange>,
    /// `None` unless the driver has begun and yielded. Boxed, because few exchanges have so many
    /// hooks.
    paused: Option<Box<Begun>>,
}

/// Registrations that were taken from an exchange. Its driver has not finished.
struct Begun {
    outcome: Outcome,
    /// Hooks that have not run.
    hooks: Hooks<Hook>,
    /// The number up to which tasks are selected once these hooks have run.
    bound: u64,
    /// `true` if only the driver refers to the exchange, so that nothing can be registered.
    is_last: bool,
}

impl Drive {
    fn new(DueBatch { batch, guard }: DueBatch) -> Self {
        Self { current: Current::new(batch.first), later: batch.later.into_iter(), paused: VecDeque::new(), guard }
    }
}

impl Step for Drive {
    /// Runs hooks and submits selected tasks until no registration is left, or until other tasks
    /// must have a turn.
    fn step(&mut self) -> Poll<()> {
        let mut steps = STEPS_PER_POLL;
        loop {
            let step = self.current.step(&self.guard, &mut steps);
            let next = self.later.next().map(Current::new).or_else(|| self.paused.pop_front());
            let Some(next) = next else { return step };
            let last = std::mem::replace(&mut self.current, next);
            if step.is_pending() {
                self.paused.push_back(last);
                return step;
            }
            ignore_panic(|| drop(last)); // may drop values of users
        }
    }
}

impl Current {
    fn new(exchange: Arc<Exchange>) -> Self {
        Self { exchange, paused: None }
    }

    /// Subtracts the hooks and tasks that were processed from `steps`. Returns `Pending` at zero.
    fn step(&mut self, guard: &DrainGuard, steps: &mut usize) -> Poll<()> {
        let begun = match self.paused.take() {
            Some(paused) => Some(*paused),
            None => Begun::begin(&mut self.exchange),
        };
        let Some(mut begun) = begun else { return Poll::Ready(()) };
        let step = begun.step(&self.exchange, guard, steps);
        if step.is_pending() {
            self.paused = Some(Box::new(begun));
        }
        step
    }
}

impl Begun {
    /// Makes this driver the one that drives the exchange. Returns `None` if there is nothing to
    /// do, or if another driver will do it.
    fn begin(exchange: &mut Arc<Exchange>) -> Option<Self> {
        if let Some((outcome, hooks)) = Arc::get_mut(exchange).and_then(Exchange::take_unshared) {
            return Some(Self { outcome, hooks, bound: 0, is_last: true });
        }
        let (hooks, bound) = lock(&exchange.pending).begin_driving(|task| task.is_decided(exchange))?;
        Some(Self { outcome: exchange.outcome(), hooks, bound, is_last: false })
    }

    /// Like [`Current::step`].
    fn step(&mut self, exchange: &Arc<Exchange>, guard: &DrainGuard, steps: &mut usize) -> Poll<()> {
        let Self { outcome, hooks, bound, is_last } = self;
        loop {
            while let Some(hook) = hooks.pop() {
                guard.scope(|| hook.run(outcome));
                *steps -= 1;
                if *steps == 0 {
                    return Poll::Pending;
                }
            }
            if *is_last {
                return Poll::Ready(());
            }
            let mut has_selected = false;
            while *steps > 0 && *bound > 0 {
                let next = lock(&exchange.pending).tasks().take_unselected(*bound, |task| task.is_decided(exchange));
                let Some((task, concurrent)) = next else { break };
                select(task, concurrent, outcome, exchange);
                has_selected = true;
                *steps -= 1;
            }
            if has_selected {
                dispatch(exchange);
            }
            if *steps == 0 {
                return Poll::Pending;
            }
            match lock(&exchange.pending).take(|task| task.is_decided(exchange)) {
                Some(taken) => (*hooks, *bound) = taken,
                None => return Poll::Ready(()),
            }
        }
    }
}

/// Makes a task ready if its condition holds, otherwise skips it.
fn select(mut task: Box<RegisteredTask>, concurrent: usize, outcome: &Outcome, exchange: &Exchange) {
    let has_succeeded = task.has_succeeded(outcome, exchange);
    let is_selected = std::mem::take(&mut task.condition).holds(outcome, has_succeeded);
    let skipped = if is_selected {
        task.reservation.end_response();
        let key = task.key.clone();
        lock(&exchange.pending).tasks().select(&key, task, concurrent)
    } else {
        log_skipped(&task, outcome);
        Some(task)
    };
    if let Some(skipped) = skipped {
        skip(skipped, exchange);
    }
}

/// Drops a task, which releases its reservation and counts it as skipped.
fn skip(task: Box<RegisteredTask>, exchange: &Exchange) {
    lock(&exchange.pending).tasks().unindex(&task.key);
    ignore_panic(|| drop(task));
}

/// Emits an event for a task that does not run because of the outcome. The level is `INFO` if the
/// client left before the handler responded, which the author of the handler may not expect.
/// Without feature `tracing` it has no effect.
#[cfg_attr(not(feature = "tracing"), expect(unused_variables))]
fn log_skipped(task: &RegisteredTask, outcome: &Outcome) {
    #[cfg(feature = "tracing")]
    ignore_panic(|| {
        let (id, name, end) = (task.reservation.id(), task.reservation.name(), outcome.end);
        let status = outcome.status.map(|status| status.as_u16());
        if status.is_none() && end == super::End::NoResponse {
            tracing::info!(id, name, "background task skipped: its request ended before the handler responded");
        } else {
            tracing::debug!(id, name, %end, status, "background task skipped: its condition does not hold");
        }
    });
}

/// Starts the ready tasks that their concurrency limits allow.
pub(super) fn dispatch(exchange: &Arc<Exchange>) {
    let begins = lock(&exchange.pending).tasks().begin_dispatching();
    if !begins {
        return;
    }
    loop {
        let next = lock(&exchange.pending).tasks().next_task();
        let Some(task) = next else { return };
        let RegisteredTask { reservation, body, key, stop_on_error, .. } = *task;
        let exchange = exchange.clone();
        let on_completion = move |completion: Completion| {
            let stop = stop_on_error && completion.is_failure();
            let stopped = {
                let mut pending = lock(&exchange.pending);
                let tasks = pending.tasks();
                tasks.unindex(&key);
                tasks.finish_task(stop)
            };
            // One at a time: a panic while another one unwinds would abort the process.
            stopped.into_iter().for_each(|task| skip(task, &exchange));
            dispatch(&exchange);
        };
        reservation.on_completion(on_completion).submit(body);
    }
}

#[cfg(all(test, feature = "flush", not(tower_offload_loom)))]
mod tests;
