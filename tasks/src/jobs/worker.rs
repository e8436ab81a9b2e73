//! Workers: user code with its timeout, and where it runs.

use std::{pin::Pin, sync::Arc, time::Duration};

use serde::Serialize;
use tower_offload::{CallError, Pool};

use super::{Job, gate::Gate, running::RunningJob};
use crate::{
    Failure, IntoFailure, Progress, metrics,
    panic::{Payload, catch_unwind, catch_unwind_future, drop_payload, panic_message},
    record::Ending,
    work::ending,
};

/// Runs the jobs of one kind.
pub(super) struct Worker<J> {
    start: Arc<StartWork<J>>,
    /// Maximum time of an attempt, measured from the start of its work.
    pub(super) timeout: Duration,
    /// The pool of the closures. `None` if the work is a future.
    pool: Option<Arc<dyn Pool>>,
}

type StartWork<J> = dyn Fn(J, Progress, Option<Ticket>) -> WorkFuture + Send + Sync;

/// Completes after the work has ended. `None` if the work has not begun, because its ticket was
/// refused.
pub(super) type WorkFuture = Pin<Box<dyn Future<Output = Result<Option<Ending>, CallError>> + Send>>;

impl<J> Clone for Worker<J> {
    fn clone(&self) -> Self {
        Self { start: self.start.clone(), timeout: self.timeout, pool: self.pool.clone() }
    }
}

/// Permits the work of a claimed job to begin. It is held until the work has ended, even if it is a
/// closure whose attempt was stopped.
pub(super) struct Ticket {
    pub(super) entry: RunningJob,
    pub(super) gate: Arc<Gate>,
}

impl Ticket {
    fn begin(&self, kind: &str) -> bool {
        let may_begin = self.gate.pass();
        if may_begin {
            self.entry.begin();
            metrics::count_job("offload_jobs_begun_total", kind);
        }
        may_begin
    }
}

/// Class of the failure of an attempt whose arguments cannot be read.
pub(super) const ARGUMENTS_CLASS: &str = "arguments";

impl<J: Job> Worker<J> {
    /// Decodes the arguments and prepares the work, which starts at the first poll.
    pub(super) fn start(&self, arguments: &str, progress: Progress, ticket: Ticket) -> Result<WorkFuture, Failure> {
        match catch_unwind(|| serde_json::from_str::<J>(arguments)) {
            Ok(Ok(job)) => Ok((self.start)(job, progress, Some(ticket))),
            Ok(Err(error)) => Err(Failure::new(ARGUMENTS_CLASS, format!("invalid arguments: {error}"))),
            Err(payload) => {
                drop_payload(payload);
                Err(Failure::new(ARGUMENTS_CLASS, "deserializing the arguments panicked"))
            }
        }
    }

    /// Starts the work of a job that was not claimed from the queue.
    pub(super) fn start_here(&self, job: J, progress: Progress) -> WorkFuture {
        (self.start)(job, progress, None)
    }

    /// Returns `true` if the work is a closure.
    pub(super) fn is_blocking(&self) -> bool {
        self.pool.is_some()
    }

    /// Returns the maximum number of jobs that can run at the same time, if it is known.
    pub(super) fn max_threads(&self) -> Option<usize> {
        self.pool.as_ref().and_then(|pool| pool.max_threads())
    }

    pub(super) fn blocking<P, F, T, E>(pool: P, timeout: Duration, work: F) -> Self
    where
        P: Pool,
        F: Fn(J, Progress) -> Result<T, E> + Send + Sync + 'static,
        T: Serialize,
        E: IntoFailure,
    {
        let (pool, work) = (pool.into_shared(), Arc::new(work));
        let shared = pool.clone();
        let start = move |job, progress: Progress, ticket: Option<Ticket>| -> WorkFuture {
            let (pool, work) = (shared.clone(), work.clone());
            let closure = move || {
                // Held until the closure returns, even if its caller was dropped.
                let may_begin =
                    ticket.as_ref().map_or_else(|| !progress.is_cancelled(), |ticket| ticket.begin(J::KIND));
                may_begin.then(|| panic_to_failure(catch_unwind(|| ending(work(job, progress)))))
            };
            Box::pin(async move { pool.run(closure).await })
        };
        Self { start: Arc::new(start), timeout, pool: Some(pool) }
    }

    pub(super) fn future<F, A, T, E>(timeout: Duration, work: F) -> Self
    where
        F: Fn(J, Progress) -> A + Send + Sync + 'static,
        A: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize,
        E: IntoFailure,
    {
        let work = Arc::new(work);
        let start = move |job, progress, ticket: Option<Ticket>| -> WorkFuture {
            let work = work.clone();
            Box::pin(async move {
                if !ticket.as_ref().is_none_or(|ticket| ticket.begin(J::KIND)) {
                    return Ok(None);
                }
                Ok(Some(panic_to_failure(match catch_unwind(|| Box::pin(work(job, progress))) {
                    Ok(future) => catch_unwind_future(future).await.and_then(|result| catch_unwind(|| ending(result))),
                    Err(payload) => Err(payload),
                })))
            })
        };
        Self { start: Arc::new(start), timeout, pool: None }
    }
}

fn panic_to_failure(ended: Result<Ending, Payload>) -> Ending {
    ended.unwrap_or_else(|payload| {
        let failure = Failure::new("panic", panic_message(&*payload));
        drop_payload(payload);
        Ending::Failed(failure)
    })
}
