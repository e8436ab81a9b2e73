use std::{convert::Infallible, error::Error, fmt};

use ::axum::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};

use super::into_response::try_later;
use crate::after_response::{AfterResponse, RegisterError};

impl<S: Sync> FromRequestParts<S> for AfterResponse {
    type Rejection = MissingAfterResponseLayer;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingAfterResponseLayer> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            let missing = MissingAfterResponseLayer(());
            #[cfg(feature = "tracing")]
            tracing::event!(tracing::Level::ERROR, uri = %parts.uri, "{missing}");
            missing
        })
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for AfterResponse {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned())
    }
}

/// Rejection of the [`AfterResponse`] extractor: the route has no
/// [`AfterResponseLayer`](crate::AfterResponseLayer).
///
/// It is a mistake of the program. The error names the remedy, and with feature `tracing` it is an
/// event of level `ERROR`. The response is a 500 whose body says what is missing in general terms,
/// because clients see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingAfterResponseLayer(());

impl fmt::Display for MissingAfterResponseLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the handler takes an `AfterResponse`, but its route has no `AfterResponseLayer`: add \
             `.layer(AfterResponseLayer::new(background))` to the router, after its routes",
        )
    }
}

impl Error for MissingAfterResponseLayer {}

impl IntoResponse for MissingAfterResponseLayer {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, MISSING_LAYER).into_response()
    }
}

/// Body of the response if the layer is missing.
const MISSING_LAYER: &str = "the handler needs a layer for work after the response, and its route has none";

/// Body of the response to a task that waits for what its connection does not report.
const UNTRACKED: &str = "a task waits until this response is delivered, which its connection does not report";

impl IntoResponse for RegisterError {
    /// Returns a 503 with `Retry-After`, or a 500 if the connection does not report what the task
    /// waits for.
    ///
    /// The latter is a mistake of the program, answered like a
    /// [missing layer](MissingAfterResponseLayer).
    fn into_response(self) -> Response {
        if self.is_untracked() {
            #[cfg(feature = "tracing")]
            tracing::event!(tracing::Level::ERROR, "{self}");
            (StatusCode::INTERNAL_SERVER_ERROR, UNTRACKED).into_response()
        } else {
            try_later()
        }
    }
}
