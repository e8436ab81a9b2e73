use std::{borrow::Cow, fmt, sync::Arc};

use tokio::runtime;

use super::{
    Outcome, RegisterError, ResponseTaskBuilder,
    driver::{Hook, RegisteredTask, dispatch},
    exchange::Exchange,
    guard::{AttemptGuard, InnerAttempt},
    pending::{Pending, SpawnContext, TaskKey},
};
use crate::{
    background::{Background, TaskHandle, TaskOutput},
    panic::ignore_panic,
    sync::lock,
};

/// Registers work that runs after this request's response. It is a request extension. Clones refer
/// to the same request.
///
/// With feature `axum` it is an axum extractor. Without that feature, a handler that takes it does
/// not compile: the compiler reports that the trait `Handler` is not satisfied.
///
/// It may be used at any time and from any thread. Work that is registered after the response has
/// ended runs at once.
///
/// See the [module docs](crate::after_response).
#[derive(Clone)]
pub struct AfterResponse {
    exchange: Arc<Exchange>,
    background: Background,
    /// `None` in the layer that owns the response.
    attempt: Option<InnerAttempt>,
}

impl AfterResponse {
    pub(super) fn new(exchange: Arc<Exchange>, background: Background) -> Self {
        Self { exchange, background, attempt: None }
    }

    /// Makes this the handle of an inner layer, and returns the guard of the layer's call.
    pub(super) fn begin_attempt(&mut self) -> AttemptGuard {
        let (guard, attempt) = AttemptGuard::begin(&self.exchange);
        self.attempt = Some(attempt);
        guard
    }

    pub(super) fn exchange(&self) -> &Arc<Exchange> {
        &self.exchange
    }

    pub(super) fn background(&self) -> &Background {
        &self.background
    }

    pub(super) fn attempt(&self) -> Option<InnerAttempt> {
        self.attempt.clone()
    }

    /// Registers blocking work, which runs on the pool of the background if the response is a
    /// success.
    ///
    /// Shorthand for a [task](Self::task) without a name and options.
    ///
    /// # Errors
    ///
    /// Returns an error if the background is full or shut down. The work is dropped then. Nothing
    /// was promised to the client yet, so the handler may return the error, which is a 503 in axum.
    pub fn spawn_blocking<F, T>(&self, work: F) -> Result<TaskHandle, RegisterError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        self.task("").spawn_blocking(work)
    }

    /// Registers async work, which is polled on the pool of the background if the response is a
    /// success.
    ///
    /// Shorthand for a [task](Self::task) without a name and options. Work that blocks holds a
    /// thread of that pool and delays no other request. To run it on the runtime instead, use
    /// [`on_runtime`](ResponseTaskBuilder::on_runtime).
    ///
    /// # Errors
    ///
    /// Returns an error in the same cases as [`spawn_blocking`](Self::spawn_blocking).
    pub fn spawn<F>(&self, work: F) -> Result<TaskHandle, RegisterError>
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.task("").spawn(work)
    }

    /// Registers a closure that is called for every outcome. The request's closures are called in
    /// reverse order of registration.
    ///
    /// Hooks run before the request's tasks start, in a task of the runtime in which the request's
    /// first hook or task was registered. Responses of a connection that are flushed before it runs
    /// share it, and a tracked connection keeps it for later responses. After every 32 hooks that
    /// task yields. Without a runtime, or if it has shut down, hooks run on a thread
    /// named `after-response`, which all responses share. If the system starts no thread, they run
    /// where the response ends. A hook must be short and must not block: use [tasks](Self::task)
    /// for work. A panic in it is contained.
    ///
    /// A hook needs no permit, so it is never refused. A [shutdown](crate::Background::shutdown)
    /// waits for hooks that are due, but not for hooks of responses that are still open: close the
    /// connections first.
    ///
    /// The closure takes a `&Outcome`; any other argument is a compile error:
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

    /// Returns a builder for a task with options.
    ///
    /// The name appears in reports, spans and metrics, and identifies the task for
    /// [`cancel`](Self::cancel). It is a label of metrics, so there should be few different names.
    pub fn task(&self, name: impl Into<Cow<'static, str>>) -> ResponseTaskBuilder<'_> {
        ResponseTaskBuilder::new(self, name.into())
    }

    /// Cancels every incomplete task that this request registered under `name`. Returns the number
    /// of tasks that were cancelled.
    ///
    /// Work that has not started is dropped before this method returns. A panic of its destructor
    /// is contained.
    pub fn cancel(&self, name: &str) -> usize {
        let (ids, removed) = lock(&self.exchange.pending).tasks().remove_by_name(name);
        let cancelled = ids.into_iter().filter(|id| self.background.cancel_id(*id)).count();
        // Dropped after the ids were cancelled, otherwise the tasks would count as skipped.
        removed.into_iter().for_each(|task| ignore_panic(|| drop(task)));
        // A task that waited behind them may be able to start.
        dispatch(&self.exchange);
        cancelled
    }

    /// Lets the outcome of this response wait until the peer's TCP has acknowledged every byte of
    /// it. Then its delivery is [`Acknowledged`](crate::after_response::Delivery::Acknowledged).
    ///
    /// Returns `false`, without effect, if the connection cannot report acknowledgements, the
    /// response was flushed before the first request, or its outcome is known already. A connection
    /// can report them on Linux, if it is tracked and its TCP socket is known: with
    /// `tower_offload::axum::serve` (not that of axum) on a `TcpListener`, or with
    /// `TrackedIo::with_socket`.
    ///
    /// The kernel of the peer acknowledges, not the application: see
    /// [`Acknowledged`](crate::after_response::Delivery::Acknowledged) for what that means.
    ///
    /// Every hook and task of this request waits for it too, after a flush at most 30 seconds, and
    /// 5 seconds once the connection is shut down. If the acknowledgement has not arrived by then,
    /// or the connection fails before, the delivery is
    /// [`Flushed`](crate::after_response::Delivery::Flushed). The section on acknowledged responses
    /// of the module `flush` lists the reasons.
    pub fn request_acknowledgement(&self) -> bool {
        self.exchange.request_acknowledgement()
    }

    /// Returns `true` if, as far as is known, the outcome will report whether the response was
    /// flushed.
    pub fn is_tracked(&self) -> bool {
        self.exchange.is_tracked()
    }

    /// Registers a task with this id and name. `task` creates it from its key.
    pub(super) fn register_task(
        &self,
        name: Cow<'static, str>,
        id: u64,
        concurrent: usize,
        task: impl FnOnce(TaskKey) -> Box<RegisteredTask>,
    ) {
        self.register(|pending| pending.tasks().push(name, id, concurrent, task));
    }

    fn register(&self, add: impl FnOnce(&mut Pending<Hook, Box<RegisteredTask>>)) {
        let context =
            || SpawnContext { runtime: runtime::Handle::try_current().ok(), background: self.background.clone() };
        self.exchange.register(|pending| {
            pending.set_context(context);
            add(pending);
        });
    }
}

impl fmt::Debug for AfterResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AfterResponse").field("exchange", &self.exchange).finish_non_exhaustive()
    }
}
