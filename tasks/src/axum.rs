use ::axum::response::{IntoResponse, Response};

use crate::{AcceptError, Accepted};

impl IntoResponse for Accepted {
    /// Like [`Accepted::into_response`].
    fn into_response(self) -> Response {
        Accepted::into_response(self)
    }
}

impl IntoResponse for AcceptError {
    /// Like [`AcceptError::into_response`].
    fn into_response(self) -> Response {
        AcceptError::into_response(self)
    }
}
