use std::time::Duration;

use ::axum::response::{IntoResponse, Response};
#[cfg(feature = "process")]
use http::StatusCode;

#[cfg(feature = "process")]
use crate::process::{KilledBy, RunError};
use crate::{
    background,
    offload::{BlockingBody, HttpReject, Protocol},
    pool::CallError,
};

impl IntoResponse for CallError {
    /// Returns the response of [`HttpReject`] to a request that is not gRPC. `Retry-After` is 1
    /// second, because the wait of the pool is not known here.
    ///
    /// It lets handlers use `?` on the results of [`Pool::run`](crate::pool::Pool::run) and
    /// [`BlockingBody`].
    fn into_response(self) -> Response {
        respond(self, Duration::ZERO)
    }
}

impl IntoResponse for BlockingBody {
    /// Returns a 200 with this body.
    fn into_response(self) -> Response {
        Response::new(::axum::body::Body::new(self))
    }
}

impl IntoResponse for background::SubmitError {
    /// Returns a 503 with `Retry-After`.
    fn into_response(self) -> Response {
        try_later()
    }
}

#[cfg(feature = "process")]
impl<E> IntoResponse for RunError<E> {
    /// Returns a 503 with `Retry-After` if the job was rejected or no process could be started, a
    /// 504 if it exceeded its timeout or deadline, and a 500 otherwise. The body is empty, because
    /// the messages are for the operator.
    fn into_response(self) -> Response {
        match self {
            Self::Rejected(error) => error.into_response(),
            Self::NoProcess(_) => try_later(),
            Self::Killed { by: KilledBy::Timeout } => CallError::DeadlineExceeded.into_response(),
            _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }
}

pub(super) fn respond(error: CallError, retry_after: Duration) -> Response {
    HttpReject::response(Protocol::Http, error, retry_after)
}

/// Returns a 503 with the shortest `Retry-After`, since the duration of tasks is not known.
pub(super) fn try_later() -> Response {
    respond(CallError::Overloaded, Duration::ZERO)
}
