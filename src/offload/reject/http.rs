use std::time::Duration;

use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};

use super::{Reject, Watch};
use crate::{grpc::is_grpc, pool::CallError};

/// Rejects with a response, on any HTTP stack. The default strategy.
///
/// | [`CallError`] | HTTP | gRPC status |
/// |---|---|---|
/// | `Closed` | 503 | 14 `UNAVAILABLE` |
/// | `Overloaded` | 503 | 8 `RESOURCE_EXHAUSTED` |
/// | `KeyLimited` | 429 | 8 `RESOURCE_EXHAUSTED` |
/// | `DeadlineExceeded` | 504 | 4 `DEADLINE_EXCEEDED` |
/// | `NoRuntime`, `Deadlock`, `Panicked` | 500 | 13 `INTERNAL` |
///
/// The body is empty. A 503 or 429 has `Retry-After` in whole seconds, at least 1 ([RFC 9110,
/// section 10.2.3]). A passed deadline is a 504, the status that [`google.rpc.Code`] maps it to,
/// and not a 503: the work may have run, and a retry after some time does not make it faster. A
/// request with the content type `application/grpc*` receives a trailers-only response ([gRPC over
/// HTTP/2]): status 200, with `grpc-status` and `grpc-message` in the header. Error and body types
/// of the stack do not change, so no `HandleErrorLayer` is needed.
///
/// [`google.rpc.Code`]: https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
/// [RFC 9110, section 10.2.3]: https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
/// [gRPC over HTTP/2]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses
#[derive(Debug, Clone, Copy, Default)]
pub struct HttpReject;

impl<A, B, E> Reject<Request<A>, Response<B>, E> for HttpReject
where
    B: Default,
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
        Ok(Self::response(protocol, error, retry_after))
    }
}

impl HttpReject {
    /// Returns the response to a rejected call, without a body.
    pub(crate) fn response<B: Default>(protocol: Protocol, error: CallError, retry_after: Duration) -> Response<B> {
        let mut response = Response::new(B::default());
        match protocol {
            Protocol::Http => {
                let status = status(error);
                *response.status_mut() = status;
                if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
                    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(whole_seconds(retry_after)));
                }
            }
            Protocol::Grpc => {
                let (code, message) = grpc_status(error);
                let headers = response.headers_mut();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                headers.insert("grpc-status", HeaderValue::from_static(code));
                headers.insert("grpc-message", HeaderValue::from_static(message));
            }
        }
        response
    }
}

/// The protocol of a request, which decides the form of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// Any request that is not gRPC, gRPC-Web included.
    Http,
    /// gRPC: the content type starts with `application/grpc` and is not that of gRPC-Web.
    Grpc,
}

impl Protocol {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        if is_grpc(headers) { Self::Grpc } else { Self::Http }
    }
}

pub(super) fn status(error: CallError) -> StatusCode {
    match error {
        CallError::Closed | CallError::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
        CallError::KeyLimited => StatusCode::TOO_MANY_REQUESTS,
        CallError::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        CallError::NoRuntime | CallError::Deadlock | CallError::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Returns code and message. The messages are printable ASCII without `%`, so `grpc-message` needs
/// no percent-encoding.
fn grpc_status(error: CallError) -> (&'static str, &'static str) {
    match error {
        CallError::Closed => ("14", "shutting down"),
        CallError::Overloaded => ("8", "overloaded"),
        CallError::KeyLimited => ("8", "too many calls of one key"),
        CallError::DeadlineExceeded => ("4", "deadline exceeded"),
        CallError::NoRuntime => ("13", "no runtime"),
        CallError::Deadlock => ("13", "deadlock"),
        CallError::Panicked => ("13", "panicked"),
    }
}

/// Rounds up, so that a client does not retry too early.
fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_rounded_up_to_whole_seconds() {
        for (milliseconds, expected) in [(0, "1"), (1, "1"), (1000, "1"), (1100, "2"), (59_001, "60")] {
            let wait = Duration::from_millis(milliseconds);
            let response: Response<()> = HttpReject::response(Protocol::Http, CallError::Overloaded, wait);
            assert_eq!(response.headers()[RETRY_AFTER], expected);
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
    }
}
