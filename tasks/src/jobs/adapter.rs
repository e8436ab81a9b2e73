//! Runs workers for River.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use riverqueue::{Job as RiverJob, JobRow, WorkCancelled, WorkContext, WorkOutcome, WorkerTimeout};

use super::{
    Job,
    database::Database,
    insert::{Arguments, parse_storable, task_id},
    progress::ProgressBuffer,
    running::RunningJobs,
    worker::{Attempt, AttemptResult, Worker},
};
use crate::{
    Failure, Progress, StoreError, TaskId, Tasks,
    panic::{catch_unwind, drop_payload},
};

/// State shared by the attempts of a process. It outlives each River client.
pub(super) struct Environment {
    pub(super) tasks: Tasks,
    pub(super) database: Database,
    pub(super) running: RunningJobs,
    pub(super) progress: Arc<ProgressBuffer>,
}

/// Logs an error that no caller can handle.
pub(super) fn warn(message: &str, error: &StoreError) {
    #[cfg(feature = "tracing")]
    tracing::warn!(error = error as &dyn Error, "{message}");
    #[cfg(not(feature = "tracing"))]
    let _ = (message, error);
}

/// River's worker for one kind of job.
///
/// River's own timeout would start a second attempt while a closure is still running the first one.
/// Therefore it is disabled, and `work` returns only after the work has ended.
pub(super) struct Adapter<J> {
    pub(super) worker: Worker<J>,
    pub(super) environment: Arc<Environment>,
}

/// Delay before another try to run a job that could not start. The failed start does not count as
/// an attempt.
const SNOOZE_DELAY: Duration = Duration::from_secs(1);

impl<J: Job> riverqueue::Worker<Arguments<J>> for Adapter<J> {
    type Error = Box<dyn Error + Send + Sync>;

    fn timeout(&self, _: &RiverJob<Arguments<J>>) -> WorkerTimeout {
        WorkerTimeout::Disabled
    }

    async fn work(&self, context: WorkContext, job: RiverJob<Arguments<J>>) -> Result<WorkOutcome, Self::Error> {
        let environment = &*self.environment;
        let id = match record_id(environment, &job.row).await {
            Ok(id) => id,
            Err(error) => {
                warn("failed to insert the record of a job of another client", &error);
                return Ok(WorkOutcome::Snooze(SNOOZE_DELAY));
            }
        };
        let Some(running) = environment.running.enter(job.row.id, id) else {
            return Ok(WorkOutcome::Snooze(SNOOZE_DELAY)); // an earlier attempt is still running here
        };
        let number = i64::from(job.row.attempt);
        let attempt = Arc::new(Attempt::new(id, number, environment.progress.clone()));
        let result = match catch_unwind(|| job.args.decode()) {
            Ok(Ok(arguments)) => {
                let work = self.worker.start(arguments, Progress::new(attempt.clone()), Some(running));
                attempt.run(work, self.worker.timeout, context.cancellation_token().cancelled()).await
            }
            Ok(Err(error)) => AttemptResult::Failed(Failure::new("arguments", format!("invalid arguments: {error}"))),
            Err(payload) => {
                drop_payload(payload);
                AttemptResult::Failed(Failure::new("arguments", "deserializing the arguments panicked"))
            }
        };
        finish(environment, &context, &attempt, number, result).await
    }
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

/// Writes the last progress and the details of a failure, which River's row cannot hold, and
/// converts the result for River.
async fn finish(
    environment: &Environment,
    context: &WorkContext,
    attempt: &Attempt,
    number: i64,
    result: AttemptResult,
) -> Result<WorkOutcome, Box<dyn Error + Send + Sync>> {
    let (result, output) = match result {
        AttemptResult::Succeeded(json) => match parse_storable(json.as_str()) {
            Ok(output) => (AttemptResult::Succeeded(json), Some(output)),
            Err(message) => {
                let failure = Failure::new("result", format!("the result cannot be stored: {message}"));
                (AttemptResult::Failed(failure), None)
            }
        },
        result => (result, None),
    };
    // The attempt is not repeated if these writes fail. River stores the message of a failure too.
    if let Some(update) = environment.progress.remove(attempt.progress_key) {
        if let Err(error) = environment.database.write_progress(&[update]).await {
            warn("failed to write the last progress of an attempt", &error);
        }
    }
    if let AttemptResult::Failed(failure) = &result {
        if let Err(error) = environment.database.write_failure(attempt.id, number, failure).await {
            warn("failed to write the failure of an attempt", &error);
        }
    }
    match result {
        AttemptResult::NotRun(_) => Ok(WorkOutcome::Snooze(SNOOZE_DELAY)),
        AttemptResult::Stopped => Err(WorkCancelled.into()),
        AttemptResult::Failed(failure) => Err(FailureMessage(failure.message).into()),
        AttemptResult::Succeeded(_) => {
            context.record_output(output)?;
            Ok(WorkOutcome::Complete)
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
