//! Responses of the service.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, VARY, X_CONTENT_TYPE_OPTIONS},
};
use http_body::{Body, Frame, SizeHint};
use serde::Serialize;

use super::{access::Access, events::EventStream};
use crate::{Record, Status, StoreError, problem::Problem, store::Found};

pub(super) type Response = http::Response<ResponseBody>;

/// Body of the responses of a [`StatusService`](super::StatusService).
#[derive(Default)]
pub struct ResponseBody(Content);

#[derive(Default)]
enum Content {
    Full(Bytes),
    Events(Box<EventStream>),
    #[default]
    Ended,
}

impl From<Bytes> for ResponseBody {
    fn from(bytes: Bytes) -> Self {
        Self(if bytes.is_empty() { Content::Ended } else { Content::Full(bytes) })
    }
}

impl From<EventStream> for ResponseBody {
    fn from(stream: EventStream) -> Self {
        Self(Content::Events(Box::new(stream)))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let chunk = match &mut self.0 {
            Content::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Content::Ended;
                Some(bytes)
            }
            Content::Events(stream) => ready!(stream.poll_next(cx)),
            Content::Ended => None,
        };
        if chunk.is_none() {
            self.0 = Content::Ended; // releases the permit of the stream
        }
        Poll::Ready(chunk.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Content::Ended)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Events(_) => SizeHint::default(),
            Content::Ended => SizeHint::with_exact(0),
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("size_hint", &self.size_hint()).finish_non_exhaustive()
    }
}

/// Future returned by [`StatusService`](super::StatusService) and
/// [`StatusAlias`](super::StatusAlias).
///
/// The future is boxed, since clients poll a status about once a second.
pub struct ResponseFuture {
    response: Pin<Box<dyn Future<Output = Response> + Send>>,
    is_head: bool,
}

impl ResponseFuture {
    pub(super) fn new(response: impl Future<Output = Response> + Send + 'static) -> Self {
        Self { response: Box::pin(response), is_head: false }
    }

    pub(super) fn ready(response: Response) -> Self {
        Self::new(std::future::ready(response))
    }

    /// Removes the body of the response if the request is HEAD.
    pub(super) fn for_method(self, method: &Method) -> Self {
        Self { is_head: method == Method::HEAD, ..self }
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut response = ready!(self.response.as_mut().poll(cx));
        if self.is_head {
            let body = std::mem::take(response.body_mut());
            if let Some(length) = body.size_hint().exact().filter(|length| *length > 0) {
                response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
            }
        }
        response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        Poll::Ready(Ok(response))
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// Returns a response that must not be cached, because statuses change and are not public.
pub(super) fn uncached(content_type: &'static str, body: impl Into<ResponseBody>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(super) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => uncached("application/json", Bytes::from(text)),
        Err(_) => {
            let message = "the response cannot be serialized";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
        }
    }
}

pub(super) fn status(record: &Record) -> Response {
    let status = Status::from(record);
    let mut response = json(&status);
    if let Some(delay) = status.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(delay.as_secs()));
    }
    response
}

pub(super) fn method_not_allowed(allowed: &str) -> Response {
    let mut response = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed").into_response();
    Response::headers_mut(&mut response).extend(HeaderValue::from_str(allowed).ok().map(|allowed| (ALLOW, allowed)));
    response
}

pub(super) fn unknown_task() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no such task")
}

/// Reports a store error, and converts it to a response. The text of the store's error is not sent,
/// because it may name files and servers.
pub(super) fn store_problem(error: &StoreError) -> Problem {
    error.report_response();
    let is_temporary = error.is_unavailable() || error.is_full() || error.is_locked();
    let status = if is_temporary { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::INTERNAL_SERVER_ERROR };
    Problem::new(status, error.public_text())
}

/// Returns the record, if there is one and `access` permits it.
pub(super) fn visible(found: Result<Found, StoreError>, access: &Access) -> Result<Box<Record>, Problem> {
    match found {
        Ok(Found::Record(record)) if access.permits(record.owner.as_deref()) => Ok(record),
        Ok(Found::Evicted { owner }) if access.permits(owner.as_deref()) => {
            Err(Problem::new(StatusCode::GONE, "the record of the task was evicted"))
        }
        Ok(_) => Err(unknown_task()),
        Err(error) => Err(store_problem(&error)),
    }
}

/// Adds a header to `Vary`, because the response depends on it.
pub(super) fn vary_by<B>(response: &mut http::Response<B>, name: HeaderName) {
    response.headers_mut().append(VARY, HeaderValue::from_name(name));
}
