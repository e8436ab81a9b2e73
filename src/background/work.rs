use std::{pin::Pin, sync::Arc, time::Duration};

use super::{control::Control, output::TaskOutput, running::Running, shared::Shared, ticket::Ticket, within};
use crate::pool::{
    Priority, Slot,
    call::{self, Admitted, Context, Departure, contained, guarded},
};

type Message = Result<(), String>;

/// The work of a task, as it waits for its permit.
pub(super) struct Work {
    pub(super) control: Arc<Control>,
    pub(super) context: Context,
    pub(super) limit: Option<Duration>,
    pub(super) body: Body,
}

/// What a task does, of either kind.
#[allow(missing_docs)]
pub enum Body {
    Async(Pin<Box<dyn Future<Output = Message> + Send>>),
    Sync(Box<dyn FnOnce() -> Message + Send>),
}

impl Body {
    #[allow(missing_docs)]
    pub fn of_closure<F, T>(work: F) -> Self
    where
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        Self::Sync(Box::new(|| work().into_message()))
    }

    #[allow(missing_docs)]
    pub fn of_future<F>(work: F) -> Self
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        Self::Async(Box::pin(async { work.await.into_message() }))
    }
}

impl Work {
    /// Hands the work over to where it runs, with the permit that it was given.
    pub(super) fn start(self, shared: &Arc<Shared>) {
        let Self { control, context, limit, body } = self;
        let is_blocking = matches!(body, Body::Sync(_));
        let ticket = Ticket::new(shared.clone(), control.clone(), limit, is_blocking);
        match body {
            Body::Sync(work) => on_pool(shared, &control, context, run(ticket, work)),
            Body::Async(future) => {
                let running = Running::new(ticket, future);
                match context.runtime().cloned() {
                    Some(runtime) => {
                        let task = runtime.spawn(OnRuntime { parts: Some((running, context)) });
                        control.is_on_runtime(task.abort_handle());
                    }
                    None => on_pool(shared, &control, context, running),
                }
            }
        }
    }
}

async fn run(mut ticket: Ticket, work: Box<dyn FnOnce() -> Message + Send>) {
    if ticket.begin() {
        let span = super::span::TaskSpan::begin(&ticket.control);
        let result = guarded(|| within::scope(&*ticket.shared, || span.enter(work)));
        span.end();
        ticket.end(result);
    }
}

fn on_pool(
    shared: &Arc<Shared>,
    control: &Arc<Control>,
    context: Context,
    future: impl Future<Output = ()> + Send + 'static,
) {
    let priority = Priority::Normal;
    match Slot::claim(shared.pool.clone(), priority) {
        Ok(slot) => {
            let admitted = Admitted { slot, place: None, priority };
            control.is_on_pool(call::spawn(admitted, context, Departure::CancelOnPool, future));
        }
        Err(rejection) => {
            let _ = control.refusal.set(rejection);
            contained(|| drop(future));
        }
    }
}

/// An async task on the runtime in which it was registered.
struct OnRuntime {
    parts: Option<(Running, Context)>,
}

impl Future for OnRuntime {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        let Some((running, context)) = &mut self.parts else { return std::task::Poll::Ready(()) };
        context.enter_trace(|| Pin::new(running).poll(cx))
    }
}

impl Drop for OnRuntime {
    /// A runtime that is gone drops what it is given, or had not come to: that runs on the pool.
    fn drop(&mut self) {
        let Some((running, context)) = self.parts.take() else { return };
        if running.is_unbegun() {
            let (shared, control) = running.owner();
            on_pool(&shared, &control, context.without_runtime(), running);
        } else {
            context.enter_trace(|| drop(running));
        }
    }
}
