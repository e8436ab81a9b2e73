use std::time::Duration;

use http::{
    HeaderMap, Method, StatusCode, Version,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
};

use super::{Delivery, End, Outcome};
use crate::grpc::is_grpc;

/// How far a response has got by its own side: the handler, then the body. Pure.
///
/// Owned by whoever holds the response at the moment, so that nothing is locked while frames pass.
#[derive(Debug)]
pub(super) struct Progress {
    request: RequestLine,
    head: Option<Head>,
    /// Whether the HTTP implementation asked for a frame.
    polled: bool,
    /// Whether the body said that it is at its end.
    ended: bool,
    failed: bool,
    error: Option<String>,
    bytes: u64,
    trailing_status: Option<i32>,
}

/// What of the request the ends of responses depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestLine {
    pub(super) is_connect: bool,
    pub(super) is_head: bool,
    pub(crate) version: Version,
}

#[derive(Debug)]
struct Head {
    status: StatusCode,
    /// For whoever has registered by then. In a box: it is most of the size, and mostly not wanted.
    headers: Option<Box<HeaderMap>>,
    at: Duration,
    /// What `content-length` is or will be.
    declared: Option<u64>,
    /// Whether HTTP/1 may refuse to send it, as hyper does with lengths that contradict each other (`hyper/proto/h1/role.rs`,
    /// `Server::encode`): then it takes the head back, and nothing tells that from a head that was sent.
    is_doubtful: bool,
    /// Whether HTTP sends no body whatever there is (RFC 9110, section 6.4.1).
    without_body: bool,
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

    /// Whether streams are framed: then `content-length` is not enforced, and a body may end on its own.
    pub(super) fn is_multiplexed(self) -> bool {
        self.version >= Version::HTTP_2
    }

    /// Whether the response is but the opening of a tunnel (RFC 9110, section 9.3.6).
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

    /// The handler responded. `exact` is the length of the body if that says it.
    pub(super) fn responded(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        exact: Option<u64>,
        is_end_stream: bool,
        at: Duration,
    ) {
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            self.failed(Some(format!("{status} is no final response")));
            return; // hyper answers 500 in its stead
        }
        let is_chunked = headers.contains_key(TRANSFER_ENCODING);
        let length = headers.get(CONTENT_LENGTH).map(|length| length.to_str().ok()?.parse().ok());
        // HTTP/1 as hyper speaks it goes by what the body says of itself, whatever the field says.
        let declared = match length {
            _ if is_chunked => None,
            Some(length) if self.request.is_multiplexed() => length,
            Some(length) => exact.or(length),
            None => exact,
        };
        let has_one_length = headers.get_all(CONTENT_LENGTH).iter().nth(1).is_none();
        let may_have_length = !is_chunked && !self.request.opens_tunnel(status);
        let is_length = has_one_length && length != Some(None) && may_have_length;
        self.head = Some(Head {
            status,
            headers: None,
            at,
            declared,
            is_doubtful: length.is_some() && !is_length && !self.request.is_multiplexed(),
            without_body: self.request.is_head
                || self.request.opens_tunnel(status)
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

    /// Keeps the header fields for the outcome, for whoever has registered by now.
    pub(super) fn keep_headers(&mut self, headers: &HeaderMap) {
        if let Some(head) = &mut self.head {
            head.headers = (!headers.is_empty()).then(|| Box::new(headers.clone()));
        }
    }

    pub(super) fn polled(&mut self) {
        self.polled = true;
    }

    pub(super) fn data(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    pub(super) fn trailers(&mut self, trailers: &HeaderMap) {
        self.trailing_status = grpc_status(trailers);
        self.ended = true;
    }

    /// The body said that it is at its end.
    pub(super) fn ended(&mut self) {
        self.ended = true;
    }

    /// The handler or the body failed or panicked.
    pub(super) fn failed(&mut self, error: Option<String>) {
        self.failed = true;
        self.error = error;
    }

    /// Whether the body may be let go of without being asked for its end, while nothing is left to be written that would make
    /// the connection flush: when its length is satisfied, and where the end of the connection is the end of the body.
    pub(super) fn may_end_silently(&self) -> bool {
        let is_open = !self.ended && !self.request.is_multiplexed();
        is_open && (self.request.version == Version::HTTP_10 || self.declared().is_some())
    }

    /// How it ended, with what the wire said of it.
    pub(super) fn outcome(&self, end: End, delivery: Delivery, total: Duration) -> Outcome {
        let head = self.head.as_ref();
        Outcome {
            end,
            delivery,
            status: head.map(|head| head.status),
            headers: head.and_then(|head| head.headers.as_deref().cloned()).unwrap_or_default(),
            grpc_status: self.grpc_status(),
            body_bytes: self.body_bytes(),
            truncated: self.is_truncated(),
            error: self.error.clone(),
            time_to_head: head.map(|head| head.at),
            total,
            is_grpc: head.is_some_and(|head| head.grpc.is_some()),
        }
    }

    /// As many as were handed over, or as HTTP/1 sends of them.
    pub(super) fn body_bytes(&self) -> u64 {
        self.declared().filter(|_| self.is_truncated()).unwrap_or(self.bytes)
    }

    /// Whether nothing tells if it was sent at all.
    pub(super) fn is_doubtful(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.is_doubtful)
    }

    /// How it ended as far as this side knows, if whoever held it has let go of it now.
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

/// Without one, or with one that is no number, the status is unknown (gRPC over HTTP/2, "Responses").
fn grpc_status(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
