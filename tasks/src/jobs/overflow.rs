use super::{Enqueue, Job};
#[cfg(feature = "after-response")]
use tower_offload::{
    after_response,
    background::{self, Reservation},
};

use crate::{AcceptError, Accepted, Failure, Json, record::Ending};

/// Sends to the queue what the background of this process has no place for.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// use tower_offload::AfterResponse;
/// use tower_offload_tasks::{jobs::{Durable, Job, OrEnqueue}, Accepted, AcceptError};
///
/// # #[derive(Serialize, Deserialize)]
/// # struct Mail { to: String }
/// # impl Job for Mail { const KIND: &'static str = "mail"; }
/// async fn invite(after: &AfterResponse, durable: &Durable) -> Result<Accepted, AcceptError> {
///     let mail = Mail { to: "ann@example.org".to_owned() };
///     after.task("invite").or_enqueue(durable.enqueue(mail)).await
/// }
/// ```
///
/// While there is a place, the [worker](super::Builder::sync_worker) for that kind of job does it in this process, as any other task: once, after the
/// response if it is a success, and if the process dies the task is [lost](crate::TaskState::Lost). Otherwise it is
/// [enqueued](super::Durable::enqueue), and **it may begin before the response, and although the handler then fails**: in the queue nobody waits for a
/// response. Either way there is one id, and one status. Who must not lose it enqueues it in the first place.
///
/// What is done here is done once, at once: priority, queue and attempts are for the queue. It is always enqueued if there is no worker for it in this process, if it should be [unique](Enqueue::unique), or begin
/// [later](Enqueue::at).
pub trait OrEnqueue: sealed::Sealed + Sized {
    /// Accepts the job here or there.
    ///
    /// # Errors
    ///
    /// As [`TrackBuilder::spawn_blocking`](crate::TrackBuilder::spawn_blocking) and [`Durable::enqueue`](super::Durable::enqueue); a full or closed background is none. A task for
    /// [flushed](tower_offload::after_response::ResponseTaskBuilder::on_flushed) responses is refused where the connection is not tracked.
    ///
    /// # Cancel safety
    ///
    /// As these.
    fn or_enqueue<J: Job>(self, job: Enqueue<'_, J>) -> impl Future<Output = Result<Accepted, AcceptError>> + Send;
}

#[cfg(feature = "after-response")]
impl OrEnqueue for after_response::ResponseTaskBuilder<'_> {
    fn or_enqueue<J: Job>(self, job: Enqueue<'_, J>) -> impl Future<Output = Result<Accepted, AcceptError>> + Send {
        let place = match job.limit_here().map(|limit| Ok(self.reserve()?.default_timeout(limit))) {
            Some(Ok(place)) => Ok(Some(place)),
            Some::<Result<_, after_response::RegisterError>>(Err(rejected)) if rejected.is_untracked() => {
                Err(AcceptError::invalid(rejected.to_string()))
            }
            Some(Err(_)) | None => Ok(None),
        };
        accept(place, job)
    }
}

impl OrEnqueue for background::TaskBuilder<'_> {
    fn or_enqueue<J: Job>(self, job: Enqueue<'_, J>) -> impl Future<Output = Result<Accepted, AcceptError>> + Send {
        let place = job.limit_here().and_then(|limit| Some(self.reserve().ok()?.default_timeout(limit)));
        accept(Ok(place), job)
    }
}

async fn accept<J: Job>(
    place: Result<Option<Reservation>, AcceptError>,
    enqueue: Enqueue<'_, J>,
) -> Result<Accepted, AcceptError> {
    match place? {
        Some(place) => here(place, enqueue).await,
        None => enqueue.await,
    }
}

async fn here<J: Job>(place: Reservation, enqueue: Enqueue<'_, J>) -> Result<Accepted, AcceptError> {
    let (durable, job, owner) = enqueue.into_parts();
    let worker = durable.shared().plan.worker::<J>().cloned();
    let work = move |progress| async move {
        let Some(worker) = worker else { return Err(Failure::new("refused", "there is no worker")) };
        match worker.start(job, progress, None).future.await {
            Ok(Ending::Succeeded(result)) => Ok::<Json, Failure>(result),
            Ok(Ending::Failed(failure)) => Err(failure),
            Ok(_) => Err(Failure::new("cancelled", "it was cancelled before it began")),
            Err(rejection) => Err(Failure::new("refused", format!("the pool did not run it: {rejection}"))),
        }
    };
    let track = durable.tasks().track(J::KIND);
    let track = match owner {
        Some(owner) => track.owner(owner),
        None => track,
    };
    track.validate()?;
    track.spawn_reserved(place, work).await
}

mod sealed {
    #[cfg(feature = "after-response")]
    use tower_offload::{after_response, background};

    pub trait Sealed {}
    #[cfg(feature = "after-response")]
    impl Sealed for after_response::ResponseTaskBuilder<'_> {}
    impl Sealed for background::TaskBuilder<'_> {}
}
