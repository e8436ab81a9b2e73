use std::{fmt, time::Duration};

use http::{HeaderMap, StatusCode};

/// How a response ended, as far as this side of the connection can know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// How far the response got.
    pub end: End,
    /// How far the response is known to have been delivered.
    pub delivery: Delivery,
    /// The status, or `None` if the handler returned no response.
    pub status: Option<StatusCode>,
    /// The header fields of the response. Empty if there was none, or if nothing was registered
    /// when the handler responded.
    pub headers: HeaderMap,
    /// The `grpc-status` of a response of type `application/grpc*`, from its headers or its
    /// trailers. `None` if it was not sent.
    pub grpc_status: Option<i32>,
    /// Body bytes handed to the HTTP implementation, capped at `content-length` on HTTP/1.
    pub body_bytes: u64,
    /// `true` if the body was longer than its `content-length` and HTTP/1 cut it off there.
    pub truncated: bool,
    /// The error of the handler or the body, `panicked` for a panic. `None` if there was none, or
    /// if nothing was registered at that time.
    pub error: Option<String>,
    /// Time from the request to the head of the response.
    pub time_to_head: Option<Duration>,
    /// Time from the request to the end. If an acknowledgement was requested, it includes the wait
    /// for it.
    pub total: Duration,
    pub(super) is_grpc: bool,
}

impl Outcome {
    /// Returns `true` if the handler's response is not an error: its status is below 400, and its
    /// `grpc-status`, if it is gRPC, is 0. The state of the connection does not matter.
    pub fn is_success(&self) -> bool {
        let is_grpc_error = self.is_grpc && self.grpc_status != Some(0);
        self.status.is_some_and(|status| status.as_u16() < 400) && !is_grpc_error
    }

    /// Returns `true` if the whole response was flushed or handed over.
    pub fn is_complete(&self) -> bool {
        self.end == End::Complete
    }

    /// Returns `true` if the whole response was flushed, whether it was acknowledged or not.
    pub fn is_flushed(&self) -> bool {
        self.is_complete() && matches!(self.delivery, Delivery::Flushed | Delivery::Acknowledged)
    }

    /// Returns `true` if the peer's TCP has acknowledged the whole response. See
    /// [`Delivery::Acknowledged`].
    pub fn is_acknowledged(&self) -> bool {
        self.is_complete() && self.delivery == Delivery::Acknowledged
    }
}

/// How a response ended. The variants are in the order in which a response can reach them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum End {
    /// The handler was dropped before it responded, for example because the client left, or its
    /// response was dropped before it was sent.
    ///
    /// A response without a body that an outer layer replaces looks like one that was sent, unless
    /// the connection is tracked.
    NoResponse,
    /// The handler failed or panicked, or returned an informational status such as 102.
    HandlerError,
    /// The response began but did not reach its end, or its end was not flushed: the stream was
    /// reset or the connection closed, by either side.
    Aborted,
    /// The body failed or panicked.
    BodyError,
    /// The body ended before its `content-length`. HTTP/1 closes the connection then, and drops
    /// what is still buffered.
    BodyTooShort,
    /// The response is complete. [`Delivery`] says how far it went.
    Complete,
}

/// How far a response is known to have been delivered, in ascending order. No variant means that
/// the client's application received anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Delivery {
    /// The response, or a part of it, was not delivered.
    NotDelivered,
    /// The HTTP implementation took all of the response. How much of it was written is unknown: the
    /// client may have left or reset the stream before.
    HandedOver,
    /// The transport accepted every byte and flushed. Only a tracked connection can know (feature
    /// `flush`).
    Flushed,
    /// The response was flushed, and the TCP of the peer has acknowledged every byte of it. Linux
    /// only, and only if it was
    /// [requested](super::AfterResponse::request_acknowledgement).
    ///
    /// The kernel of the peer has the bytes. It does not mean that the application has read them,
    /// or will: a process that is stopped (`SIGSTOP`) acknowledges whatever fits its receive
    /// buffer, and one that is killed a moment later leaves the same trace. If there is a proxy or
    /// load balancer in between, the peer is the proxy, and nothing is known about the client.
    Acknowledged,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoResponse => "no_response",
            Self::HandlerError => "handler_error",
            Self::Aborted => "aborted",
            Self::BodyError => "body_error",
            Self::BodyTooShort => "body_too_short",
            Self::Complete => "complete",
        })
    }
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotDelivered => "not_delivered",
            Self::HandedOver => "handed_over",
            Self::Flushed => "flushed",
            Self::Acknowledged => "acknowledged",
        })
    }
}
