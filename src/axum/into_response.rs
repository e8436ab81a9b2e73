use std::time::Duration;

use ::axum::response::{IntoResponse, Response};

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

pub(super) fn respond(error: CallError, retry_after: Duration) -> Response {
    HttpReject::response(Protocol::Http, error, retry_after)
}

/// Returns a 503 with the shortest `Retry-After`, since the duration of tasks is not known.
pub(super) fn try_later() -> Response {
    respond(CallError::Overloaded, Duration::ZERO)
}
