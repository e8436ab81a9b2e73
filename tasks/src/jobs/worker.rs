//! Workers: user code with its timeout, and where it runs.

use std::{pin::Pin, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::sync::Notify;
use tower_offload::{CallError, Pool};

use super::{Context, Job, gate::Gate, running::RunningJob, trace::AttemptTrace};
use crate::{
    Failure, IntoFailure,
    panic::{Payload, catch_unwind, catch_unwind_future, drop_payload, panic_message},
    record::Ending,
    work::ending,
};

/// Runs the jobs of one kind.
pub(super) struct Worker<J> {
    pub(super) start: Arc<StartWork<J>>,
    /// Maximum time of an attempt, measured from the start of its work.
    pub(super) timeout: Duration,
    /// `true` if the work continues when its future is dropped: it is a closure, or runs in a
    /// process.
    pub(super) outlives_future: bool,
    /// `true` if the work ends by itself at its timeout, because it runs in a process.
    pub(super) enforces_timeout: bool,
    /// Maximum number of jobs that can run at the same time, if it is known.
    pub(super) max_threads: Option<usize>,
}

pub(super) type StartWork<J> = dyn Fn(J, Context, Option<Ticket>) -> WorkFuture + Send + Sync;

/// Completes after the work has ended. `None` if the work has not begun, because its ticket was
/// refused.
pub(super) type WorkFuture = Pin<Box<dyn Future<Output = Result<Option<Ending>, CallError>> + Send>>;

impl<J> Clone for Worker<J> {
    fn clone(&self) -> Self {
        Self { start: self.start.clone(), ..*self }
    }
}

/// Permits the work of a claimed job to begin. It is held until the work has ended, even if the
/// work outlives its future.
pub(super) struct Ticket {
    pub(super) entry: RunningJob,
    pub(super) gate: Arc<Gate>,
    /// Notified when the attempt is stopped. At most one task waits: that of a process.
    #[cfg_attr(not(feature = "process"), expect(dead_code))]
    pub(super) stopped: Arc<Notify>,
    pub(super) trace: Arc<AttemptTrace>,
}

impl Ticket {
    pub(super) fn begin(&self) -> bool {
        let may_begin = self.gate.pass();
        if may_begin {
            self.entry.begin();
            self.trace.begin();
        }
        may_begin
    }
}

/// Class of the failure of an attempt whose arguments cannot be read.
pub(super) const ARGUMENTS_CLASS: &str = "arguments";

impl<J: Job> Worker<J> {
    /// Decodes the arguments and prepares the work, which starts at the first poll.
    pub(super) fn start(&self, arguments: &str, context: Context, ticket: Ticket) -> Result<WorkFuture, Failure> {
        match catch_unwind(|| serde_json::from_str::<J>(arguments)) {
            Ok(Ok(job)) => Ok((self.start)(job, context, Some(ticket))),
            Ok(Err(error)) => Err(Failure::new(ARGUMENTS_CLASS, format!("invalid arguments: {error}"))),
            Err(payload) => {
                drop_payload(payload);
                Err(Failure::new(ARGUMENTS_CLASS, "deserializing the arguments panicked"))
            }
        }
    }

    /// Starts the work of a job that was not claimed from the queue.
    pub(super) fn start_here(&self, job: J, context: Context) -> WorkFuture {
        (self.start)(job, context, None)
    }

    pub(super) fn blocking<P, F, T, E>(pool: P, timeout: Duration, work: F) -> Self
    where
        P: Pool,
        F: Fn(J, Context) -> Result<T, E> + Send + Sync + 'static,
        T: Serialize,
        E: IntoFailure,
    {
        let (pool, work) = (pool.into_shared(), Arc::new(work));
        let max_threads = pool.max_threads();
        let start = move |job, context: Context, ticket: Option<Ticket>| -> WorkFuture {
            let (pool, work) = (pool.clone(), work.clone());
            let closure = move || {
                // The ticket is held until the closure returns, even if its caller was dropped.
                begin(&context, ticket.as_ref()).then(|| panic_to_failure(catch_unwind(|| ending(work(job, context)))))
            };
            Box::pin(async move { pool.run(closure).await })
        };
        Self { start: Arc::new(start), timeout, outlives_future: true, enforces_timeout: false, max_threads }
    }

    pub(super) fn future<F, A, T, E>(timeout: Duration, work: F) -> Self
    where
        F: Fn(J, Context) -> A + Send + Sync + 'static,
        A: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize,
        E: IntoFailure,
    {
        let work = Arc::new(work);
        let start = move |job, context: Context, ticket: Option<Ticket>| -> WorkFuture {
            let work = work.clone();
            Box::pin(async move {
                if !begin(&context, ticket.as_ref()) {
                    return Ok(None);
                }
                Ok(Some(panic_to_failure(match catch_unwind(|| Box::pin(work(job, context))) {
                    Ok(future) => catch_unwind_future(future).await.and_then(|result| catch_unwind(|| ending(result))),
                    Err(payload) => Err(payload),
                })))
            })
        };
        let start = Arc::new(start);
        Self { start, timeout, outlives_future: false, enforces_timeout: false, max_threads: None }
    }
}

/// Returns `true` if the work of an attempt may begin, and begins it.
pub(super) fn begin(context: &Context, ticket: Option<&Ticket>) -> bool {
    let may_begin = ticket.map_or_else(|| !context.is_cancelled(), Ticket::begin);
    if may_begin {
        context.begin();
    }
    may_begin
}

pub(super) fn panic_to_failure(ended: Result<Ending, Payload>) -> Ending {
    ended.unwrap_or_else(|payload| {
        let failure = Failure::new("panic", panic_message(&*payload));
        drop_payload(payload);
        Ending::Failed(failure)
    })
}
