use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION, RETRY_AFTER},
};

use super::{Status, TaskId};

/// The answer to whoever asked for a task that was accepted: its record is written by now. Without one there is no way to a 202.
///
/// With feature `axum` a handler returns it as it is: 202 at once. A client may [prefer](crate::service::StatusService::respond) to wait:
///
/// ```
/// use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
/// use tower_offload::Background;
/// use tower_offload_tasks::{MemoryStore, Progress, Refused, Tasks};
///
/// async fn report(tasks: &Tasks, background: &Background, headers: &HeaderMap) -> Result<Response<bytes::Bytes>, Refused> {
///     let accepted = tasks.track("report").run(background, |_: Progress| Ok::<_, String>(3)).await?;
///     Ok(tasks.respond(accepted, headers).await)
/// }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Refused> {
/// let (tasks, background) = (Tasks::new(MemoryStore::new()), Background::default());
/// let prefer = |what| HeaderMap::from_iter([(HeaderName::from_static("prefer"), HeaderValue::from_static(what))]);
/// let response = report(&tasks, &background, &prefer("respond-async")).await?;
/// assert_eq!(response.status(), StatusCode::ACCEPTED);
///
/// let response = report(&tasks, &background, &prefer("wait=10")).await?;
/// assert_eq!(response.status(), StatusCode::OK); // with the final status, within 10 seconds
/// assert_eq!(response.headers()["preference-applied"], "wait=10");
/// assert!(response.headers().contains_key("location"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
#[must_use = "whoever asked for the task wants to know its id"]
pub struct Accepted {
    status: Status,
    location: HeaderValue,
    awaits_response: bool,
}

impl Accepted {
    pub(crate) fn new(status: Status, location: HeaderValue, awaits_response: bool) -> Self {
        Self { status, location, awaits_response }
    }

    /// It does not begin before the response of this request is over.
    pub(super) fn awaits_response(&self) -> bool {
        self.awaits_response
    }

    /// What is known by now.
    pub(super) fn tell(&mut self, status: Status) {
        self.status = status;
    }

    /// The id of the task.
    pub fn id(&self) -> TaskId {
        self.status.id
    }

    /// The status at that moment.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Where its status is told: what [`Tasks::mounted_at`](super::Tasks::mounted_at) said, and the id.
    pub fn location(&self) -> &HeaderValue {
        &self.location
    }

    /// 202 with `Location`, `Retry-After`, `Cache-Control: no-store`, and the status as JSON.
    pub fn into_response<B: From<Bytes>>(self) -> Response<B> {
        let body = serde_json::to_vec(&self.status).unwrap_or_default();
        let mut response = Response::new(B::from(Bytes::from(body)));
        *response.status_mut() = StatusCode::ACCEPTED;
        let headers = response.headers_mut();
        headers.insert(LOCATION, self.location);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = self.status.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response
    }
}
