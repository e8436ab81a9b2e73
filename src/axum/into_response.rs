use std::time::Duration;

use ::axum::response::{IntoResponse, Response};
use http::Request;

use crate::{
    background,
    offload::{Http, Reject},
    pool::CallError,
};

impl IntoResponse for CallError {
    /// As [`Http`] answers a request that is not gRPC, with the smallest `Retry-After`: here no pool is at hand that
    /// could tell more. So that `?` works in handlers on what [`run`](crate::pool::run()) and
    /// [`SyncBody`](crate::offload::SyncBody) return.
    fn into_response(self) -> Response {
        respond(self, Duration::ZERO)
    }
}

pub(super) fn respond(rejection: CallError, retry_after: Duration) -> Response {
    let hint = Reject::<_, Response, std::convert::Infallible>::hint(&Http, &Request::new(()));
    let answer: Result<Response, std::convert::Infallible> =
        Reject::<Request<()>, _, _>::reject(&Http, hint, rejection, retry_after);
    match answer {
        Ok(response) => response,
        Err(impossible) => match impossible {},
    }
}

impl IntoResponse for crate::offload::SyncBody {
    /// A 200 with this body.
    fn into_response(self) -> Response {
        Response::new(::axum::body::Body::new(self))
    }
}

impl IntoResponse for background::Rejected {
    /// A 503 with `Retry-After`.
    fn into_response(self) -> Response {
        try_later()
    }
}

/// Nobody knows how long tasks take; a second is the least that can be said.
pub(super) fn try_later() -> Response {
    respond(CallError::Overloaded, Duration::ZERO)
}
