use ::axum::response::{IntoResponse, Response};

use crate::tasks::{Accepted, Refused};

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
