use std::{borrow::Cow, fmt, sync::Arc};

use tokio::runtime;

use super::{
    Outcome, Rejected, Task,
    attempt::Attempt,
    driver::dispatch,
    entry::{self, Hook},
    exchange::Exchange,
    pending::{Home, Pending},
};
use crate::panic::ignore_panic;
use crate::{
    background::{Background, TaskHandle, TaskOutput},
    sync::lock,
};

/// Registers what is to run after this request's response. A request extension, and an axum extractor with feature `axum`; clones are
/// the same.
///
/// It may be used at any time, from any thread: what is registered when the response is over runs at once.
///
/// See the [module docs](crate::after_response).
#[derive(Clone)]
pub struct AfterResponse {
    exchange: Arc<Exchange>,
    background: Background,
    /// `None` in the layer that owns the response.
    attempt: Option<Attempt>,
}

impl AfterResponse {
    pub(super) fn new(exchange: Arc<Exchange>, background: Background) -> Self {
        Self { exchange, background, attempt: None }
    }

    /// For a pass through a layer that does not own the response.
    pub(super) fn for_attempt(self) -> (Self, Attempt) {
        let attempt = Attempt::new(&self.exchange);
        (Self { attempt: Some(attempt.clone()), ..self }, attempt)
    }

    pub(super) fn attempt(&self) -> Option<Attempt> {
        self.attempt.clone()
    }

    /// Registers sync work, to run on the pool of the background if the response is a success: a [task](Self::task) without name
    /// and options.
    ///
    /// # Errors
    ///
    /// If every place of the background is taken, or it is closed. The work is dropped then; nothing was promised yet, so
    /// the handler may well answer with the error, which is a 503 in axum.
    pub fn run<F, T>(&self, work: F) -> Result<TaskHandle, Rejected>
    where
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        self.task("").run(work)
    }

    /// Registers async work, to run on the current runtime if the response is a success: a [task](Self::task) without name and options.
    ///
    /// It must not block: it is a task of the runtime like any other. Work that blocks is for [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn spawn<F>(&self, work: F) -> Result<TaskHandle, Rejected>
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.task("").spawn(work)
    }

    /// Calls this when the outcome is known, whatever it is. The last one registered is called first.
    ///
    /// It runs in a task of the runtime in which the request's first hook or task was registered (on a thread of its own if there is
    /// none, or it is gone), before the request's tasks start. So it must be short, and must not block: work is for [tasks](Self::task). A
    /// panic in it is contained. It takes no place, so it is never refused; a [drain](crate::Background::drain) waits for those that are due,
    /// and not for those of a response that is still open: end the connections first.
    ///
    /// An argument of another kind does not compile:
    ///
    /// ```compile_fail
    /// # use tower_offload::after_response::AfterResponse;
    /// fn register(after: AfterResponse) {
    ///     after.hook(|status: http::StatusCode| println!("{status}"));
    /// }
    /// ```
    pub fn hook(&self, hook: impl FnOnce(&Outcome) + Send + 'static) {
        let hook = Hook::new(hook);
        self.register(|pending| pending.push_hook(hook));
    }

    /// A task of that name, to be given options and work.
    ///
    /// The name stands in reports, spans and metrics, and [cancels](Self::cancel); as a label of metrics it should be one of few.
    pub fn task(&self, name: impl Into<Cow<'static, str>>) -> Task<'_> {
        Task::new(self, name.into())
    }

    /// Cancels every task of that name which this request registered and which is not over. Returns how many these were.
    ///
    /// What has not started is dropped here and now; a panic in that is contained.
    pub fn cancel(&self, name: &str) -> usize {
        let (ids, withdrawn) = lock(&self.exchange.pending).withdraw(name, |task| task.reservation.id());
        let cancelled = ids.into_iter().filter(|id| self.background.cancel_id(*id)).count();
        withdrawn.into_iter().for_each(|task| ignore_panic(|| drop(task))); // after that, or it would count as skipped
        dispatch(&self.exchange); // one that waited behind them may start now
        cancelled
    }

    /// Whether the outcome will tell that the response was flushed, as far as is known.
    pub fn is_tracked(&self) -> bool {
        self.exchange.is_tracked()
    }

    pub(super) fn background(&self) -> &Background {
        &self.background
    }

    pub(super) fn register_task(&self, name: Cow<'static, str>, id: u64, task: entry::Task) {
        self.register(|pending| {
            if !name.is_empty() {
                pending.push_name(name, id);
            }
            pending.push_task(task);
        });
    }

    fn register(&self, add: impl FnOnce(&mut Pending<Hook, entry::Task>)) {
        let home = || Home { runtime: runtime::Handle::try_current().ok(), background: self.background.clone() };
        self.exchange.register(|pending| {
            pending.set_home(home);
            add(pending);
        });
    }
}

impl fmt::Debug for AfterResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AfterResponse").field("exchange", &self.exchange).finish_non_exhaustive()
    }
}
