use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};

use super::{
    Reject,
    http::{Http, Protocol, head, status},
};
use crate::pool::CallError;

/// As [`Http`], with a body that says why: `application/problem+json` ([RFC 9457]).
///
/// ```json
/// {"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the pool has no room for the call","reason":"overloaded"}
/// ```
///
/// gRPC requests get what [`Http`] gives them.
///
/// [RFC 9457]: https://www.rfc-editor.org/rfc/rfc9457
#[derive(Debug, Clone, Copy, Default)]
pub struct Problem;

impl<A, B, E> Reject<Request<A>, Response<B>, E> for Problem
where
    B: Default + From<Bytes>,
{
    type Error = E;
    type Hint = Protocol;

    fn hint(&self, request: &Request<A>) -> Protocol {
        Reject::<Request<A>, Response<B>, E>::hint(&Http, request)
    }

    fn map_err(&self, error: E) -> E {
        error
    }

    fn reject(&self, protocol: Protocol, rejection: CallError, retry_after: Duration) -> Result<Response<B>, E> {
        let mut response = Response::new(B::default());
        head(protocol, rejection, retry_after, &mut response);
        if protocol == Protocol::Http {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
            *response.body_mut() = body(rejection).into();
        }
        Ok(response)
    }
}

/// No JSON library: every string in it is one of ours and needs no escape.
fn body(rejection: CallError) -> Bytes {
    let status = status(rejection);
    let (code, title) = (status.as_u16(), status.canonical_reason().unwrap_or_default());
    let reason = rejection.as_str();
    format!(r#"{{"type":"about:blank","title":"{title}","status":{code},"detail":"{rejection}","reason":"{reason}"}}"#)
        .into()
}
