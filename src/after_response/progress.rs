use std::time::Duration;

use http::{
    HeaderMap, Method, StatusCode, Version,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
};

use super::{Delivery, End, Outcome};
use crate::grpc::is_grpc;

/// How far a response got on the server's side: the handler, then the body.
///
/// Pure: no lock, no clock, no user code. The [`Guard`](super::guard::Guard) owns it while the
/// response is open.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    request: RequestLine,
    head: Option<Head>,
    /// `true` once the HTTP implementation polled the body for a frame.
    polled: bool,
    /// `true` once the body reported its end.
    ended: bool,
    failed: bool,
    error: Option<String>,
    /// Length of all data frames so far.
    bytes: u64,
    /// The `grpc-status` of the trailers.
    trailing_status: Option<i32>,
}

/// The parts of the request that determine how its response is framed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestLine {
    pub(super) is_connect: bool,
    pub(super) is_head: bool,
    pub(crate) version: Version,
}

#[derive(Debug, Clone)]
struct Head {
    status: StatusCode,
    /// Kept only if something was registered by then. Boxed, because it is large and usually
    /// absent.
    headers: Option<Box<HeaderMap>>,
    /// Time since the request. Zero if nothing was registered by then and nothing can be.
    at: Duration,
    /// The `content-length` that is sent.
    declared: Option<u64>,
    /// `true` if HTTP/1 may refuse to send this head, as hyper does with lengths that contradict
    /// each other (`Server::encode` in `hyper/proto/h1/role.rs`). It takes the head back then,
    /// which looks like a head that was sent.
    is_doubtful: bool,
    /// `true` if HTTP sends no body, even if the response has a body (RFC 9110, section 6.4.1).
    without_body: bool,
    /// For gRPC, the `grpc-status` of the headers.
    grpc: Option<Option<i32>>,
}

impl RequestLine {
    pub(crate) fn new<B>(request: &http::Request<B>) -> Self {
        Self {
            is_connect: *request.method() == Method::CONNECT,
            is_head: *request.method() == Method::HEAD,
            version: request.version(),
        }
    }

    /// Returns `true` for HTTP/2, which does not enforce `content-length` and frames the end of a
    /// body.
    pub(super) fn is_multiplexed(self) -> bool {
        self.version >= Version::HTTP_2
    }

    /// Returns `true` if a response with this status opens a tunnel (RFC 9110, section 9.3.6).
    pub(super) fn opens_tunnel(self, status: StatusCode) -> bool {
        self.is_connect && status.is_success()
    }
}

impl Progress {
    pub(super) fn new(request: RequestLine) -> Self {
        Self {
            request,
            head: None,
            polled: false,
            ended: false,
            failed: false,
            error: None,
            bytes: 0,
            trailing_status: None,
        }
    }

    pub(super) fn request(&self) -> RequestLine {
        self.request
    }

    /// Records the head. `exact` is the length of the body if its size hint is exact.
    pub(super) fn respond(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        exact: Option<u64>,
        is_end_stream: bool,
        at: Duration,
    ) {
        if !is_final(status) {
            self.fail(Some(format!("{status} is not a final status")));
            return; // hyper sends 500 instead
        }
        let is_chunked = headers.contains_key(TRANSFER_ENCODING);
        let length = headers.get(CONTENT_LENGTH).map(|length| length.to_str().ok()?.parse().ok());
        // On HTTP/1 hyper prefers the exact size hint of the body to the field.
        let declared = match length {
            _ if is_chunked => None,
            Some(length) if self.request.is_multiplexed() => length,
            Some(length) => exact.or(length),
            None => exact,
        };
        let opens_tunnel = self.request.opens_tunnel(status);
        let is_length = || {
            let has_one_length = headers.get_all(CONTENT_LENGTH).iter().nth(1).is_none();
            has_one_length && length != Some(None) && !is_chunked && !opens_tunnel
        };
        self.head = Some(Head {
            status,
            headers: None,
            at,
            declared,
            is_doubtful: length.is_some() && !self.request.is_multiplexed() && !is_length(),
            without_body: self.request.is_head
                || opens_tunnel
                || status.is_informational()
                || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED),
            grpc: is_grpc(headers).then(|| grpc_status(headers)),
        });
        self.ended = is_end_stream;
    }

    /// Returns `true` if the handler responded with a final status.
    pub(super) fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Keeps the header fields for the outcome.
    pub(super) fn keep_headers(&mut self, headers: &HeaderMap) {
        if let Some(head) = &mut self.head {
            head.headers = (!headers.is_empty()).then(|| Box::new(headers.clone()));
        }
    }

    pub(super) fn set_polled(&mut self) {
        self.polled = true;
    }

    pub(super) fn add_data(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub(super) fn set_trailers(&mut self, trailers: &HeaderMap) {
        self.trailing_status = grpc_status(trailers);
        self.ended = true;
    }

    /// Records that the body reported its end.
    pub(super) fn end_body(&mut self) {
        self.ended = true;
    }

    /// Returns `true` if the body has reported its end, without an error.
    pub(super) fn has_ended(&self) -> bool {
        self.ended && !self.failed
    }

    /// Records that the handler or the body failed or panicked.
    pub(super) fn fail(&mut self, error: Option<String>) {
        self.failed = true;
        self.error = error;
    }

    /// Returns `true` if hyper may drop the body without polling its end, with nothing left to
    /// write that would lead to a flush: the declared length is reached, or the end of the
    /// connection is the end of the body.
    pub(super) fn may_end_silently(&self) -> bool {
        let is_open = !self.ended && !self.request.is_multiplexed();
        is_open && (self.request.version == Version::HTTP_10 || self.declared().is_some())
    }

    /// Returns the outcome. `end` and `delivery` already take the connection's report into account.
    pub(super) fn into_outcome(mut self, end: End, delivery: Delivery, total: Duration) -> Outcome {
        let headers = self.head.as_mut().and_then(|head| head.headers.take());
        let head = self.head.as_ref();
        Outcome {
            end,
            delivery,
            status: head.map(|head| head.status),
            headers: headers.map(|headers| *headers).unwrap_or_default(),
            grpc_status: self.grpc_status(),
            body_bytes: self.body_bytes(),
            truncated: self.is_truncated(),
            time_to_head: head.map(|head| head.at),
            total,
            is_grpc: head.is_some_and(|head| head.grpc.is_some()),
            error: self.error,
        }
    }

    /// Returns the body bytes handed to the HTTP implementation, capped at `content-length` on
    /// HTTP/1.
    pub(super) fn body_bytes(&self) -> u64 {
        self.declared().filter(|_| self.is_truncated()).unwrap_or(self.bytes)
    }

    /// Returns `true` if a flush does not prove that the response was sent.
    pub(super) fn is_doubtful(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.is_doubtful)
    }

    /// Returns how the response ends, as far as the server's side knows, if it is dropped now.
    pub(super) fn end(&self) -> End {
        let Some(head) = &self.head else {
            return if self.failed { End::HandlerError } else { End::NoResponse };
        };
        let is_satisfied = head.declared.is_some_and(|declared| self.bytes >= declared);
        if self.failed {
            End::BodyError
        } else if self.ended && !head.without_body && head.declared.is_some() && !is_satisfied {
            End::BodyTooShort
        } else if self.ended || is_satisfied || head.without_body && !self.polled {
            End::Complete
        } else if self.polled {
            End::Aborted
        } else {
            End::NoResponse
        }
    }

    fn is_truncated(&self) -> bool {
        !self.request.is_multiplexed() && self.declared().is_some_and(|declared| self.bytes > declared)
    }

    fn declared(&self) -> Option<u64> {
        self.head.as_ref().filter(|head| !head.without_body)?.declared
    }

    fn grpc_status(&self) -> Option<i32> {
        self.head.as_ref()?.grpc.map(|leading| leading.or(self.trailing_status))?
    }
}

fn is_final(status: StatusCode) -> bool {
    !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS
}

/// Returns whether a response with this head is a success, or `None` if its trailers decide.
pub(super) fn success_of_head(status: StatusCode, headers: &HeaderMap) -> Option<bool> {
    if !is_final(status) || status.as_u16() >= 400 {
        Some(false)
    } else if is_grpc(headers) {
        grpc_status(headers).map(|status| status == 0)
    } else {
        Some(true)
    }
}

/// Returns whether a gRPC response with these trailers is a success.
pub(super) fn success_of_trailers(trailers: &HeaderMap) -> bool {
    grpc_status(trailers) == Some(0)
}

/// Returns the `grpc-status`. Without one, or if it is not a number, the status is unknown
/// ("Responses" in gRPC over HTTP/2).
fn grpc_status(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
