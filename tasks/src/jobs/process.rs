//! Workers whose jobs run in processes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::Notify;
use tower_offload::{
    CallError,
    pool::CallOptions,
    process::{KilledBy, ProcessPool, Run, RunError, Work},
};

use super::{
    Context, Job,
    worker::{self, Ticket, WorkFuture, Worker, panic_to_failure},
};
use crate::{
    Failure, IntoFailure,
    panic::{catch_unwind, catch_unwind_future},
    record::Ending,
    work::ending,
};

impl<W> Worker<W>
where
    W: Job + Work,
    W::Error: IntoFailure,
{
    pub(super) fn process(pool: ProcessPool, timeout: Duration) -> Self {
        let max_threads = Some(pool.processes());
        let start = move |work: W, context: Context, ticket: Option<Ticket>| -> WorkFuture {
            Box::pin(run(pool.clone(), timeout, work, context, ticket))
        };
        Self { start: Arc::new(start), timeout, outlives_future: true, enforces_timeout: true, max_threads }
    }
}

/// Runs an attempt until its process no longer works on it. Returns an error if the attempt does
/// not count, and `None` if it was not permitted to begin.
async fn run<W>(
    pool: ProcessPool,
    timeout: Duration,
    work: W,
    context: Context,
    ticket: Option<Ticket>,
) -> Result<Option<Ending>, CallError>
where
    W: Job + Work,
    W::Error: IntoFailure,
{
    let stopped = ticket.as_ref().map(|ticket| ticket.stopped.clone());
    let is_refused = Arc::new(AtomicBool::new(false));
    // The ticket is the guard, so it is held while the process runs the job.
    let begin = {
        let (context, is_refused) = (context.clone(), is_refused.clone());
        move || {
            let may_begin = worker::begin(&context, ticket.as_ref());
            is_refused.store(!may_begin, Relaxed);
            may_begin.then_some(ticket)
        }
    };
    let run = pool.run_if(CallOptions::new(), begin, work).timeout(timeout);
    let run = run.on_progress(move |value, message| context.set(value, message));
    // Encoding and decoding run user code.
    let (result, is_stopped) = match catch_unwind_future(Box::pin(run_until_stopped(run, stopped))).await {
        Ok(ended) => ended,
        Err(payload) => return Ok(Some(panic_to_failure(Err(payload)))),
    };
    match result {
        Err(_) if is_refused.load(Relaxed) => Ok(None),
        Err(RunError::Rejected(error)) => Err(error),
        Err(RunError::NoProcess(_)) => Err(CallError::Overloaded),
        // The pool was shut down before the queue.
        Err(RunError::Killed { by: KilledBy::Cancelled }) if !is_stopped => Err(CallError::Closed),
        result => Ok(Some(panic_to_failure(catch_unwind(|| ending(result.map_err(Failure::from)))))),
    }
}

/// Runs a job to its end. Once the attempt is stopped, the job is cancelled, and its end awaited.
async fn run_until_stopped<W: Work>(
    mut run: Run<W>,
    stopped: Option<Arc<Notify>>,
) -> (Result<W::Output, RunError<W::Error>>, bool) {
    let Some(stopped) = stopped else { return (run.await, false) };
    tokio::select! {
        biased;
        ended = &mut run => (ended, false),
        () = stopped.notified() => {
            run.cancel();
            (run.await, true)
        }
    }
}
