use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION, RETRY_AFTER},
};

use crate::{Status, TaskId};

/// An accepted task, whose record is stored. Converts to the 202 response for the client.
///
/// With feature `axum` it implements `IntoResponse`. [`Tasks::respond`](crate::Tasks::respond)
/// converts it for clients that prefer to wait:
///
/// ```
/// use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
/// use tower_offload::Background;
/// use tower_offload_tasks::{AcceptError, MemoryStore, Progress, Tasks};
///
/// async fn report(
///     tasks: &Tasks,
///     background: &Background,
///     headers: &HeaderMap,
/// ) -> Result<Response<bytes::Bytes>, AcceptError> {
///     let work = |_: Progress| Ok::<_, String>(3);
///     let accepted = tasks.track("report").spawn_blocking(background, work).await?;
///     Ok(tasks.respond(accepted, headers).await)
/// }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), AcceptError> {
/// let (tasks, background) = (Tasks::new(MemoryStore::new()), Background::default());
/// let prefer = |preference| {
///     let name = HeaderName::from_static("prefer");
///     HeaderMap::from_iter([(name, HeaderValue::from_static(preference))])
/// };
/// let response = report(&tasks, &background, &prefer("respond-async")).await?;
/// assert_eq!(response.status(), StatusCode::ACCEPTED);
///
/// let response = report(&tasks, &background, &prefer("wait=10")).await?;
/// assert_eq!(response.status(), StatusCode::OK); // the final status, within 10 seconds
/// assert_eq!(response.headers()["preference-applied"], "wait=10");
/// assert!(response.headers().contains_key("location"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
#[must_use = "the client needs the id of the task"]
pub struct Accepted {
    status: Status,
    location: HeaderValue,
    awaits_response: bool,
}

impl Accepted {
    pub(crate) fn new(status: Status, location: HeaderValue, awaits_response: bool) -> Self {
        Self { status, location, awaits_response }
    }

    /// Returns `true` if the task starts after the response of the current request.
    pub(crate) fn awaits_response(&self) -> bool {
        self.awaits_response
    }

    pub(crate) fn set_status(&mut self, status: Status) {
        self.status = status;
    }

    /// Returns the id of the task.
    pub fn id(&self) -> TaskId {
        self.status.id
    }

    /// Returns the status at the time of acceptance.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Returns the URL of the status: the [base path](crate::TasksBuilder::base_path) and the id.
    pub fn location(&self) -> &HeaderValue {
        &self.location
    }

    /// Returns a 202 response with the status as its JSON body, and with the headers `Location`,
    /// `Retry-After` and `Cache-Control: no-store`.
    pub fn into_response<B: From<Bytes>>(self) -> Response<B> {
        let body = serde_json::to_vec(&self.status).unwrap_or_default();
        let mut response = Response::new(B::from(Bytes::from(body)));
        *response.status_mut() = StatusCode::ACCEPTED;
        let headers = response.headers_mut();
        headers.insert(LOCATION, self.location);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(delay) = self.status.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(delay.as_secs()));
        }
        response
    }
}
