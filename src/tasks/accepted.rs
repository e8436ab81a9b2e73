use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION, RETRY_AFTER},
};

use super::{Status, TaskId};

/// The answer to whoever asked for a task that was accepted: its record is written by now. Without one there is no way to a 202.
///
/// With feature `axum` a handler returns it as it is.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "whoever asked for the task wants to know its id"]
pub struct Accepted {
    status: Status,
    location: HeaderValue,
}

impl Accepted {
    pub(crate) fn new(status: Status, location: HeaderValue) -> Self {
        Self { status, location }
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
