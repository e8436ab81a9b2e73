use ::axum::response::{IntoResponse, Response};

use crate::{Accepted, Refused};

impl IntoResponse for Accepted {
    /// As [`Accepted::into_response`].
    fn into_response(self) -> Response {
        Accepted::into_response(self)
    }
}

impl IntoResponse for Refused {
    /// As [`Refused::into_response`].
    fn into_response(self) -> Response {
        Refused::into_response(self)
    }
}
