use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};

use super::{
    Reject, Watch,
    http::{HttpReject, Protocol, status},
};
use crate::pool::CallError;

/// Rejects like [`HttpReject`], with a body that states the reason: `application/problem+json`
/// ([RFC 9457]).
///
/// ```json
/// {
///   "type": "about:blank",
///   "title": "Service Unavailable",
///   "status": 503,
///   "detail": "the pool has no capacity for the call",
///   "reason": "overloaded"
/// }
/// ```
///
/// gRPC requests receive the response of [`HttpReject`].
///
/// [RFC 9457]: https://www.rfc-editor.org/rfc/rfc9457
#[derive(Debug, Clone, Copy, Default)]
pub struct ProblemJson;

impl<A, B, E> Reject<Request<A>, Response<B>, E> for ProblemJson
where
    B: Default + From<Bytes>,
{
    type Error = E;
    type Hint = Protocol;

    fn hint(&self, request: &Request<A>) -> Protocol {
        Protocol::of(request.headers())
    }

    fn watch(&self, request: &Request<A>) -> Option<Watch<Response<B>>> {
        Watch::of(request)
    }

    fn map_err(&self, error: E) -> E {
        error
    }

    fn reject(&self, protocol: Protocol, error: CallError, retry_after: Duration) -> Result<Response<B>, E> {
        let mut response = HttpReject::response::<B>(protocol, error, retry_after);
        if protocol == Protocol::Http {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
            *response.body_mut() = body(error).into();
        }
        Ok(response)
    }
}

/// Returns the body. It is formatted by hand because none of its strings needs an escape.
fn body(error: CallError) -> Bytes {
    let status = status(error);
    let (code, title) = (status.as_u16(), status.canonical_reason().unwrap_or_default());
    let reason = error.as_str();
    format!(r#"{{"type":"about:blank","title":"{title}","status":{code},"detail":"{error}","reason":"{reason}"}}"#)
        .into()
}
