//! Handlers of the operations on one task.

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{
    access::Access,
    config::Config,
    events::{Event, EventId, EventStream},
    negotiate::{PREFER, Prefer, set_preference_applied},
    response::{self, Response, ResponseBody, store_problem, uncached, unknown_task, vary_by, visible},
};
use crate::{Accepted, Status, StoreError, TaskId, problem::Problem, store::Found};

/// Returns the status of a task: at once, or when the task has finished or `wait` has elapsed.
pub(super) async fn show(config: Config, id: TaskId, access: Access, wait: Option<Duration>) -> Response {
    let wait = Wait::start(&config, wait);
    let found = match &wait {
        Some(wait) => wait.until_finished(&config, id, &access).await,
        None => config.source.get(id).await,
    };
    let mut response = match visible(found, &access) {
        Ok(record) => response::status(&record),
        Err(problem) => return problem.into_response(),
    };
    set_preference_applied(response.headers_mut(), wait.map(|wait| wait.preference()));
    vary_by(&mut response, PREFER);
    response
}

/// Requests cancellation. Returns 202 while the task is still running, and 200 once it has
/// finished.
pub(super) async fn cancel(config: Config, id: TaskId, access: Access) -> Response {
    try_cancel(config, id, &access).await.unwrap_or_else(Problem::into_response)
}

async fn try_cancel(config: Config, id: TaskId, access: &Access) -> Result<Response, Problem> {
    config.check_open()?;
    visible(config.source.get(id).await, access)?; // the caller may not cancel the tasks of others
    let record = visible(config.source.cancel(id).await, access)?;
    let mut response = response::status(&record);
    if !record.state.is_final() {
        *response.status_mut() = StatusCode::ACCEPTED;
    }
    Ok(response)
}

/// Returns a stream of the events after `last`. If the task has no more events, the response is
/// 204, which keeps browsers from reconnecting.
pub(super) async fn events(config: Config, id: TaskId, access: Access, last: Option<EventId>) -> Response {
    open_events(config, id, &access, last).await.unwrap_or_else(Problem::into_response)
}

async fn open_events(config: Config, id: TaskId, access: &Access, last: Option<EventId>) -> Result<Response, Problem> {
    let record = visible(config.source.get(id).await, access)?;
    if record.state.is_final() && last.is_some() && Event::after(last, &record).is_empty() {
        let mut response = Response::new(ResponseBody::default());
        *response.status_mut() = StatusCode::NO_CONTENT;
        return Ok(response);
    }
    let too_many = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many streams are open");
    let permit = config.limits.try_acquire_stream().ok_or_else(too_many)?;
    let Some(changes) = config.source.subscribe(id).await.map_err(|error| store_problem(&error))? else {
        // The record was evicted in between.
        visible(config.source.get(id).await, access)?;
        return Err(unknown_task());
    };
    visible(Ok(Found::Record(Box::new(changes.record().clone()))), access)?;
    let stream = EventStream::new(changes, last, config.keep_alive, config.source.streams_ended(), permit);
    Ok(uncached("text/event-stream", stream))
}

/// Converts an accepted task to a response; see
/// [`StatusService::respond`](super::StatusService::respond).
pub(super) async fn respond<B: From<Bytes>>(
    config: &Config,
    mut accepted: Accepted,
    headers: &HeaderMap,
) -> http::Response<B> {
    let prefer = Prefer::parse(headers);
    let wait = Wait::start(config, prefer.wait.filter(|_| !accepted.awaits_response()));
    if let Some(wait) = &wait {
        match wait.until_finished(config, accepted.id(), &Access::All).await {
            Ok(Found::Record(record)) => accepted.set_status(Status::from(&*record)),
            Ok(_) => {} // evicted: the status at acceptance remains
            Err(error) => error.report_response(),
        }
    }
    let is_finished = wait.is_some() && accepted.status().state.is_final();
    let mut response = accepted.into_response();
    if is_finished {
        *response.status_mut() = StatusCode::OK;
    }
    let respond_async = (prefer.respond_async && !is_finished).then(|| "respond-async".to_owned());
    let wait = wait.map(|wait| wait.preference());
    set_preference_applied(response.headers_mut(), respond_async.into_iter().chain(wait));
    vary_by(&mut response, PREFER);
    response
}

/// Permission of a request to wait until a task has finished. It holds a stream permit.
struct Wait {
    timeout: Duration,
    _permit: OwnedSemaphorePermit,
}

impl Wait {
    /// Limits the wait to the maximum of the service. Returns `None` if the client does not want to
    /// wait, or if no permit is free: then it gets the current status.
    fn start(config: &Config, wanted: Option<Duration>) -> Option<Self> {
        let timeout = wanted?.min(config.max_wait);
        Some(Self { timeout, _permit: config.limits.try_acquire_stream()? })
    }

    /// Returns the value for
    /// [`Preference-Applied`](https://www.rfc-editor.org/rfc/rfc7240#section-3).
    fn preference(&self) -> String {
        format!("wait={}", self.timeout.as_secs())
    }

    /// Waits until the task has finished, the timeout has elapsed, or streams are ended, and
    /// returns the latest record. If the store fails meanwhile, that is the last one that was read.
    /// Does not wait for a task that `access` does not permit.
    async fn until_finished(&self, config: &Config, id: TaskId, access: &Access) -> Result<Found, StoreError> {
        let found = config.source.get(id).await?;
        let must_wait = matches!(&found, Found::Record(record)
            if !record.state.is_final() && access.permits(record.owner.as_deref()));
        if !must_wait {
            return Ok(found);
        }
        let mut changes = match config.source.subscribe(id).await {
            Ok(Some(changes)) => changes,
            Ok(None) => return config.source.get(id).await,
            Err(error) => {
                error.report_response();
                return Ok(found);
            }
        };
        let finished = async {
            while !changes.record().state.is_final() {
                match changes.changed().await {
                    Ok(true) => {}
                    Ok(false) => return false,
                    Err(error) => {
                        error.report_response();
                        break;
                    }
                }
            }
            true
        };
        match timeout(self.timeout, unless(config.source.streams_ended(), finished)).await {
            Ok(Some(false)) => config.source.get(id).await, // the record was evicted
            Ok(None | Some(true)) | Err(_) => Ok(Found::Record(Box::new(changes.record().clone()))),
        }
    }
}

/// Awaits `work`, or returns `None` when `stop` completes first. `work` is polled first.
async fn unless<T>(stop: impl Future<Output = ()>, work: impl Future<Output = T>) -> Option<T> {
    let (mut stop, mut work) = (pin!(stop), pin!(work));
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => stop.as_mut().poll(cx).map(|()| None),
    })
    .await
}
