use std::{
    error::Error,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use riverqueue::{Job as RiverJob, JobRow, WorkCancelled, WorkContext, WorkOutcome, WorkerTimeout};

use super::{Arguments, insert::noted_id};
use crate::{
    Failure, Progress, StoreError, TaskId,
    jobs::{
        Job,
        attempt::{Attempt, Verdict},
        kept,
        shared::Shared,
        worker::Worker,
    },
    panic::catch_unwind,
};

/// Works the jobs of one kind for River.
///
/// River's own time limit and its way with jobs that do not stop would give a job a second attempt while a sync closure still works on the
/// first. So there is none ([`WorkerTimeout::Disabled`]), and `work` ends only when the work has really ended.
pub(super) struct Adapter<J> {
    pub(super) worker: Worker<J>,
    /// River has it, and we have River.
    pub(super) shared: Weak<Shared>,
}

/// The pool had no room, or the last attempt still goes on here: not counted as an attempt.
const LATER: Duration = Duration::from_secs(1);

impl<J: Job> riverqueue::Worker<Arguments<J>> for Adapter<J> {
    type Error = Box<dyn Error + Send + Sync>;

    fn timeout(&self, _: &RiverJob<Arguments<J>>) -> WorkerTimeout {
        WorkerTimeout::Disabled
    }

    async fn work(&self, context: WorkContext, job: RiverJob<Arguments<J>>) -> Result<WorkOutcome, Self::Error> {
        let shared = self.shared.upgrade().ok_or(WorkCancelled)?;
        let id = match id(&shared, &job.row).await {
            Ok(id) => id,
            Err(error) => {
                shared.complain("a job has no record, and none could be made", &error);
                return Ok(WorkOutcome::Snooze(LATER));
            }
        };
        let Some(alive) = shared.jobs.enter(job.row.id, id) else { return Ok(WorkOutcome::Snooze(LATER)) };
        let attempt = Arc::new(Attempt::new(id, job.row.attempt.into(), shared.clerk.clone()));
        shared.clerk.begins(id, &attempt);
        let verdict = match catch_unwind(|| job.args.decode()) {
            Ok(Ok(value)) => {
                let work = self.worker.start(value, Progress::new(attempt.clone()), Some(alive));
                attempt.run(work, self.worker.limit, context.cancellation_token().cancelled()).await
            }
            Ok(Err(error)) => {
                Verdict::Failed(Failure::new("arguments", format!("the job is of another type: {error}")))
            }
            Err(_) => Verdict::Failed(Failure::new("arguments", "reading the job panicked")),
        };
        end(&shared, &context, &attempt, id, verdict).await
    }
}

async fn id(shared: &Shared, row: &JobRow) -> Result<TaskId, StoreError> {
    match noted_id(row) {
        Some(id) => Ok(id),
        None => {
            let fresh = TaskId::generate(shared.now()).map_err(StoreError::other)?;
            shared.database.adopt(row, fresh).await
        }
    }
}

async fn end(
    shared: &Shared,
    context: &WorkContext,
    attempt: &Arc<Attempt>,
    id: TaskId,
    verdict: Verdict,
) -> Result<WorkOutcome, Box<dyn Error + Send + Sync>> {
    let (verdict, output) = match verdict {
        Verdict::Succeeded(result) => match kept::check(result.as_str()) {
            Ok(output) => (Verdict::Succeeded(result), Some(output)),
            Err(why) => {
                let failure = Failure::new("result", format!("what the job returned is not kept: {why}"));
                (Verdict::Failed(failure), None)
            }
        },
        verdict => (verdict, None),
    };
    // What cannot be written is no reason to do the work once more: River has a word of its own for a failure.
    if let Some(news) = shared.clerk.ends(id, attempt) {
        if let Err(error) = shared.database.report(&[news]).await {
            shared.complain("what an attempt said last could not be written", &error);
        }
    }
    if let Verdict::Failed(failure) = &verdict {
        if let Err(error) = shared.database.fail(id, attempt.number(), failure).await {
            shared.complain("how an attempt failed could not be written", &error);
        }
    }
    match verdict {
        Verdict::Failed(failure) => Err(Failed(failure.message).into()),
        Verdict::NotRun(_) => Ok(WorkOutcome::Snooze(LATER)),
        Verdict::Stopped => Err(WorkCancelled.into()),
        Verdict::Succeeded(_) => {
            context.record_output(output)?;
            Ok(WorkOutcome::Complete)
        }
    }
}

#[derive(Debug)]
struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Failed {}
