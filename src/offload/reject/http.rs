use std::time::Duration;

use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};

use super::Reject;
use crate::{grpc::is_grpc, pool::CallError};

/// Answers with a response, on any HTTP stack. The default.
///
/// | [`CallError`] | HTTP | gRPC status |
/// |---|---|---|
/// | `Closed` | 503 | 14 `UNAVAILABLE` |
/// | `Expired`, `Overloaded` | 503 | 8 `RESOURCE_EXHAUSTED` |
/// | `NoRuntime`, `Panicked` | 500 | 13 `INTERNAL` |
///
/// A 503 carries `Retry-After` in whole seconds, at least 1 ([RFC 9110, section 10.2.3]); the body is empty. A request of
/// content-type `application/grpc*` gets a trailers-only answer ([gRPC over HTTP/2]): status 200, `grpc-status` and
/// `grpc-message` in the header. Error and body types of the stack stay as they are, so no `HandleErrorLayer` is needed.
///
/// [RFC 9110, section 10.2.3]: https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
/// [gRPC over HTTP/2]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses
#[derive(Debug, Clone, Copy, Default)]
pub struct Http;

impl<A, B, E> Reject<Request<A>, Response<B>, E> for Http
where
    B: Default,
{
    type Error = E;
    type Hint = Protocol;

    fn hint(&self, request: &Request<A>) -> Protocol {
        Protocol::of(request.headers())
    }

    fn map_err(&self, error: E) -> E {
        error
    }

    fn reject(&self, protocol: Protocol, rejection: CallError, retry_after: Duration) -> Result<Response<B>, E> {
        let mut response = Response::new(B::default());
        head(protocol, rejection, retry_after, &mut response);
        Ok(response)
    }
}

/// Which protocol the request speaks, and so what shape of answer it understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// gRPC: the request's content-type starts with `application/grpc`, and is not gRPC-Web.
    Grpc,
    /// Anything else.
    Http,
}

impl Protocol {
    fn of(headers: &HeaderMap) -> Self {
        if is_grpc(headers) { Self::Grpc } else { Self::Http }
    }
}

/// Writes status and header fields of the answer.
pub(super) fn head<B>(protocol: Protocol, rejection: CallError, retry_after: Duration, response: &mut Response<B>) {
    match protocol {
        Protocol::Grpc => {
            let (code, message) = grpc(rejection);
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from_static(code));
            headers.insert("grpc-message", HeaderValue::from_static(message));
        }
        Protocol::Http => {
            let status = status(rejection);
            *response.status_mut() = status;
            if status == StatusCode::SERVICE_UNAVAILABLE {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds(retry_after)));
            }
        }
    }
}

pub(super) fn status(rejection: CallError) -> StatusCode {
    match rejection {
        CallError::Closed | CallError::Expired | CallError::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
        CallError::NoRuntime | CallError::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Code and message; the messages are plain ASCII, as `grpc-message` wants them unless percent-encoded.
fn grpc(rejection: CallError) -> (&'static str, &'static str) {
    match rejection {
        CallError::Closed => ("14", "shutting down"),
        CallError::Expired => ("8", "waited too long in the queue"),
        CallError::Overloaded => ("8", "overloaded"),
        CallError::NoRuntime => ("13", "no runtime"),
        CallError::Panicked => ("13", "panicked"),
    }
}

/// Rounded up: a client that comes back earlier would come in vain.
fn seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_the_wait_in_whole_seconds_rounded_up_and_at_least_one() {
        for (milliseconds, expected) in [(0, "1"), (1, "1"), (1000, "1"), (1100, "2"), (59_001, "60")] {
            let mut response = Response::new(());
            head(Protocol::Http, CallError::Overloaded, Duration::from_millis(milliseconds), &mut response);
            assert_eq!(response.headers()[RETRY_AFTER], expected);
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
    }
}
