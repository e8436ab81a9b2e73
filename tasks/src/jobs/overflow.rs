#[cfg(feature = "after-response")]
use tower_offload::after_response;
use tower_offload::background::{self, Reservation};

use super::{Context, Enqueue, Job, error::InsertError, events::warn, maintenance};
use crate::{AcceptError, Accepted, Failure, Json, StoreError, record::Ending};

/// Runs a job in this process, or enqueues it if the background is full.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// use tower_offload::AfterResponse;
/// use tower_offload_tasks::{AcceptError, Accepted, jobs::{Job, Jobs, OrEnqueue}};
///
/// # #[derive(Serialize, Deserialize)]
/// # struct Mail { to: String }
/// # impl Job for Mail { const KIND: &'static str = "mail"; }
/// async fn invite(after: &AfterResponse, jobs: &Jobs) -> Result<Accepted, AcceptError> {
///     let mail = Mail { to: "ann@example.org".to_owned() };
///     after.task("invite").or_enqueue(jobs.enqueue(mail)).await
/// }
/// ```
///
/// If the background accepts the task, the [worker](super::JobsBuilder::blocking_worker) of the job
/// runs in this process like the work of any other task: once, after a successful response, and the
/// task is [lost](crate::TaskState::Lost) if the process crashes. Priority, queue and number of
/// attempts have no effect.
///
/// Otherwise the job is [enqueued](super::Jobs::enqueue). It **may start before the response, and
/// it runs even if the handler fails**, because the queue does not wait for responses. In both
/// cases there is one id and one status. Enqueue a job directly if it must not be lost.
///
/// A [sequence](background::TaskBuilder::sequence) of the task orders what runs in this process. A
/// job that is enqueued, because the background or the sequence is full, may overtake it.
///
/// The job is always enqueued if this process has no worker for it, or if it is
/// [unique](Enqueue::unique), [delayed](Enqueue::at), in a [sequence](Enqueue::sequence) or
/// [limited](Enqueue::at_most).
pub trait OrEnqueue: sealed::Sealed + Sized {
    /// Accepts the job, as a task of this process or in the queue.
    ///
    /// # Errors
    ///
    /// Like [`TrackBuilder::spawn`](crate::TrackBuilder::spawn) and
    /// [`Jobs::enqueue`](super::Jobs::enqueue), except that a full or closed background is not an
    /// error. A task for [flushed][on_flushed] responses is rejected if the connection is not
    /// tracked.
    ///
    /// # Cancel safety
    ///
    /// Like [`TrackBuilder::spawn`](crate::TrackBuilder::spawn) and
    /// [`Jobs::enqueue`](super::Jobs::enqueue).
    ///
    /// [on_flushed]: tower_offload::after_response::ResponseTaskBuilder::on_flushed
    fn or_enqueue<J: Job>(self, job: Enqueue<'_, J>) -> impl Future<Output = Result<Accepted, AcceptError>> + Send;
}

#[cfg(feature = "after-response")]
impl OrEnqueue for after_response::ResponseTaskBuilder<'_> {
    fn or_enqueue<J: Job>(self, job: Enqueue<'_, J>) -> impl Future<Output = Result<Accepted, AcceptError>> + Send {
        let reservation = match job.can_run_here().then(|| self.reserve()) {
            Some(Ok(reservation)) => Ok(Some(job.limit(reservation))),
            Some(Err(error)) if error.is_untracked() => Err(AcceptError::invalid(
                "task for flushed responses, on a connection that is not tracked",
                error.to_string(),
            )),
            Some(_) | None => Ok(None),
        };
        accept(reservation, job)
    }
}

impl OrEnqueue for background::TaskBuilder<'_> {
    fn or_enqueue<J: Job>(self, job: Enqueue<'_, J>) -> impl Future<Output = Result<Accepted, AcceptError>> + Send {
        let reservation =
            job.can_run_here().then(|| self.reserve()).and_then(Result::ok).map(|reserved| job.limit(reserved));
        accept(Ok(reservation), job)
    }
}

async fn accept<J: Job>(
    reservation: Result<Option<Reservation>, AcceptError>,
    enqueue: Enqueue<'_, J>,
) -> Result<Accepted, AcceptError> {
    match reservation? {
        Some(reservation) => run_here(reservation, enqueue).await,
        None => enqueue.await,
    }
}

async fn run_here<J: Job>(reservation: Reservation, enqueue: Enqueue<'_, J>) -> Result<Accepted, AcceptError> {
    let Enqueue { queue, job, owner, parent, .. } = enqueue;
    let worker = queue.plan.worker::<J>().cloned();
    let context = {
        let (queue, owner) = (queue.clone(), owner.clone());
        move |progress, timeout| Context::here(progress, queue, owner, parent, timeout)
    };
    let work = move |progress| async move {
        let Some(worker) = worker else {
            return Err(Failure::new("refused", "this process has no worker for the job"));
        };
        let context = context(progress, worker.timeout);
        match worker.start_here(job, context.clone()).await {
            Ok(Some(Ending::Succeeded(result))) => {
                insert_successors(&context).await?;
                Ok::<Json, Failure>(result)
            }
            Ok(Some(Ending::Failed(failure))) => Err(failure),
            Ok(_) => Err(Failure::new("cancelled", "the task was cancelled before it started")),
            Err(error) => Err(Failure::new("refused", format!("the pool refused the task: {error}"))),
        }
    };
    let track = queue.environment.tasks.track(J::KIND);
    let track = match owner {
        Some(owner) => track.owner(owner),
        None => track,
    };
    track.validate()?;
    track.spawn_reserved(reservation, work).await
}

/// Enqueues the successors of a job that has run here.
async fn insert_successors(context: &Context) -> Result<(), Failure> {
    let jobs = context.take_successors();
    if jobs.is_empty() {
        return Ok(());
    }
    let jobs: Vec<_> = jobs.iter().collect();
    match maintenance::insert(context.queue(), &jobs, None).await {
        Ok(_) => Ok(()),
        Err(error) => {
            let error = match error {
                InsertError::Store(error) => error,
                error => StoreError::other(AcceptError::from(error)),
            };
            warn("failed to enqueue the successors of a job that has run here", &error);
            Err(Failure::new("successor", "the jobs that follow this one could not be enqueued"))
        }
    }
}

mod sealed {
    #[cfg(feature = "after-response")]
    use tower_offload::after_response;
    use tower_offload::background;

    pub trait Sealed {}
    #[cfg(feature = "after-response")]
    impl Sealed for after_response::ResponseTaskBuilder<'_> {}
    impl Sealed for background::TaskBuilder<'_> {}
}
