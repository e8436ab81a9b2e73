//! Runs workers for River.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use riverqueue::{
    Job as RiverJob, JobCancelError, JobRow, WorkCancelled, WorkContext, WorkError, WorkOutcome, WorkerTimeout,
    jiff::Timestamp,
};
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    Context, Job,
    attempt::{Attempt, MAX_UNASKED, RETURN_DELAY, Run, storable},
    events::warn,
    gate::Gate,
    insert::{Arguments, set_end, task_id},
    outcome::{End, Next, Outcome, Successors},
    queue::{Environment, Phase},
    running::{Claim, Entered},
    trace::AttemptTrace,
    worker::{Ticket, Worker},
};
use crate::{Progress, StoreError, TaskId};

/// River's worker for one kind of job.
///
/// River's own timeout would start a second attempt while a closure is still running the first one.
/// Therefore it is disabled, and `work` returns only after the work has ended.
pub(super) struct Adapter<J> {
    pub(super) worker: Worker<J>,
    pub(super) environment: Arc<Environment>,
    pub(super) phase: watch::Receiver<Phase>,
}

impl<J: Job> riverqueue::Worker<Arguments<J>> for Adapter<J> {
    type Error = Box<dyn Error + Send + Sync>;

    fn timeout(&self, _: &RiverJob<Arguments<J>>) -> WorkerTimeout {
        WorkerTimeout::Disabled
    }

    async fn work(&self, context: WorkContext, job: RiverJob<Arguments<J>>) -> Result<WorkOutcome, Self::Error> {
        let (environment, row) = (&*self.environment, &job.row);
        let started_at = Instant::now();
        if environment.paused.contains(&row.kind) {
            let claim = Claim::of_row(row);
            match environment.database.put_aside(&claim, &row.kind).await {
                // River then writes nothing, because the job is not running any longer.
                Ok(true) => return hand_back(&context, &claim, Duration::ZERO),
                Ok(false) => {} // it was resumed
                Err(error) => {
                    warn("failed to put a job of a paused kind aside", &error);
                    return hand_back(&context, &claim, RETURN_DELAY);
                }
            }
        }
        let id = match record_id(environment, row).await {
            Ok(id) => id,
            Err(error) => {
                warn("failed to insert the record of a job of another client", &error);
                return hand_back(&context, &Claim::of_row(row), RETURN_DELAY);
            }
        };
        let claim = Claim::of_row(row);
        let entry = match environment.running.enter(&claim, id) {
            Entered::New(entry) => entry,
            Entered::StillRunning => return hand_back(&context, &claim, RETURN_DELAY),
            Entered::GivenBack => return hand_back(&context, &claim, Duration::ZERO),
        };
        let cancel_request = entry.cancel_request.clone();
        let attempt = Arc::new(Attempt::new(id, row.attempt.into(), environment.progress.clone()));
        let (gate, stopped) = (Arc::new(Gate::default()), Arc::new(Notify::new()));
        if started_at.elapsed() > MAX_UNASKED || is_old(row) {
            gate.guard();
        }
        let trace = AttemptTrace::new(environment, row, id, started_at);
        // Both exist while an attempt runs. The queue may not know the client yet.
        let (Some(queue), Some(client)) = (environment.queue.upgrade(), context.client()) else {
            return hand_back(&context, &claim, RETURN_DELAY);
        };
        let work_context = Context::claimed(Progress::new(attempt.clone()), queue, row, &claim, self.worker.timeout);
        let ticket = Ticket { entry, gate: gate.clone(), stopped: stopped.clone(), trace: trace.clone() };
        let outcome = match self.worker.start(job.args.text(), work_context.clone(), ticket) {
            Ok(work) => {
                let Some(slots) = environment.slots.get(&row.queue) else {
                    return hand_back(&context, &claim, RETURN_DELAY); // River works only these queues
                };
                let run = Run {
                    environment,
                    slots,
                    client: Some(client),
                    claim: &claim,
                    attempt: &attempt,
                    stopped: &stopped,
                    outlives_future: self.worker.outlives_future,
                    enforces_timeout: self.worker.enforces_timeout,
                    timeout: self.worker.timeout,
                };
                let mut phase = self.phase.clone();
                let drains = async { drop(phase.wait_for(|phase| *phase >= Phase::Draining).await) };
                let token = context.cancellation_token();
                let stop = async {
                    tokio::select! {
                        () = token.cancelled() => {}
                        () = cancel_request.made() => {}
                    }
                };
                run.run(trace.instrument(work), &gate, stop, drains).await
            }
            Err(failure) => Outcome::Failed(failure),
        };
        let outcome = storable(outcome);
        trace.end(&outcome);
        let end = End {
            claim,
            id,
            max_attempts: i16::try_from(row.max_attempts).unwrap_or(i16::MAX),
            failures: u32::try_from(row.errors.len()).unwrap_or(u32::MAX),
            successors: Successors::new(work_context.take_successors(), client),
            outcome,
            progress: environment.progress.remove(attempt.progress_key),
        };
        environment.running.set_end(end.clone());
        finish(environment, &context, row, end, cancel_request.is_made()).await
    }
}

/// Ends an attempt whose work has not begun. It has no effect if the claim was written back.
fn hand_back(
    context: &WorkContext,
    claim: &Claim,
    delay: Duration,
) -> Result<WorkOutcome, Box<dyn Error + Send + Sync>> {
    set_end(context, claim, delay)?;
    Ok(WorkOutcome::Snooze(delay))
}

/// Returns `true` if the job was claimed more than [`MAX_UNASKED`] ago by the database's clock. If
/// the clocks differ, the database is asked once more than necessary.
fn is_old(row: &JobRow) -> bool {
    let age = row.attempted_at.map(|at| Timestamp::now().duration_since(at));
    age.is_none_or(|age| age.as_millis() > i128::try_from(MAX_UNASKED.as_millis()).unwrap_or(i128::MAX))
}

/// Returns the id of the job's record. Inserts the record if another client inserted the job.
async fn record_id(environment: &Environment, row: &JobRow) -> Result<TaskId, StoreError> {
    match task_id(row) {
        Some(id) => Ok(id),
        None => {
            let id = TaskId::generate(environment.tasks.writer().now()).map_err(StoreError::other)?;
            environment.database.adopt(row, id).await
        }
    }
}

/// Writes what River's row cannot hold, and converts the end for River.
async fn finish(
    environment: &Environment,
    context: &WorkContext,
    row: &JobRow,
    end: End,
    is_cancel_requested: bool,
) -> Result<WorkOutcome, Box<dyn Error + Send + Sync>> {
    let output = end.result().map(|result| serde_json::from_str::<Value>(result.as_str())).transpose()?;
    // River's output is a `Value`, which has no integers above `u64` and no exact decimals.
    let is_exact = output.as_ref().is_none_or(|output| {
        serde_json::to_string(output).is_ok_and(|text| Some(&*text) == end.result().map(crate::Json::as_str))
    });
    // River waits for 10 ms before it writes an end, so that others share the transaction.
    // Followers need not wait for that. River then writes nothing, because the job is not running
    // any longer.
    let next = end.next(environment.backoff);
    let is_final = !matches!(next, Next::Queued(_));
    let is_followed = environment.tasks.followers().follows(end.id) && !context.cancellation_token().is_cancelled();
    let has_successors = end.successors().is_some();
    let mut is_written = false;
    if is_final && (is_followed || !is_exact || has_successors) {
        match environment.database.write_end(&end, environment.backoff).await {
            Ok(written) => {
                is_written = written;
                if let Some(queue) = environment.queue.upgrade().filter(|_| written) {
                    queue.on_successors(&end);
                }
            }
            Err(error) => warn("failed to write the end of a job, will retry", &error),
        }
        environment.tasks.followers().changed(end.id);
    } else if end.progress.is_some() || end.failure().is_some() {
        // The attempt is not repeated if this fails. River stores the message of a failure too.
        if let Err(error) = environment.database.describe(&end).await {
            warn("failed to write the details of the end of a job", &error);
        }
    }
    let delay = match (next, end.failure()) {
        (Next::Queued(_), Some(failure)) => {
            let error = WorkError::new(FailureMessage(failure.message.clone()));
            environment.backoff.retry_delay(row, &error, Timestamp::now())
        }
        (Next::Queued(delay), None) => delay,
        (Next::Completed | Next::Discarded, _) => Duration::ZERO,
    };
    // Also if the end is written: when River writes it, the job may have been retried and claimed
    // again. An end that River would round, or write without its successors, names no claim, and
    // the check of the claims writes it.
    let is_valid = is_written || is_exact && !has_successors;
    let claim = if is_valid { end.claim.clone() } else { Claim { attempted_at: 0, ..end.claim.clone() } };
    set_end(context, &claim, delay)?;
    match end.outcome {
        Outcome::Succeeded(_) => {
            if !is_written {
                context.record_output(output)?;
            }
            Ok(WorkOutcome::Complete)
        }
        Outcome::Failed(failure) => Err(FailureMessage(failure.message).into()),
        // River does not know of the request, since the client of the job has stopped.
        Outcome::Stopped if is_cancel_requested && !context.cancellation_token().is_cancelled() => {
            Err(JobCancelError::new("job cancelled remotely").into())
        }
        Outcome::Stopped => Err(WorkCancelled.into()),
        // River treats this like an interruption if it has stopped the attempt, and a cancelled job
        // as cancelled.
        Outcome::NotBegun(_) if context.cancellation_token().is_cancelled() => Err(WorkCancelled.into()),
        Outcome::NotBegun(delay) => Ok(WorkOutcome::Snooze(delay)),
    }
}

impl Claim {
    pub(super) fn of_row(row: &JobRow) -> Self {
        Self {
            river_id: row.id,
            attempt: i16::try_from(row.attempt).unwrap_or(i16::MAX),
            attempted_at: row.attempted_at.map(|at| at.as_microsecond()).unwrap_or_default(),
            client: row.attempted_by.last().map(String::as_str).unwrap_or_default().into(),
        }
    }
}

#[derive(Debug)]
struct FailureMessage(String);

impl fmt::Display for FailureMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for FailureMessage {}
