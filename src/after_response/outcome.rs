use std::{fmt, time::Duration};

use http::{HeaderMap, StatusCode};

/// How a response ended, as far as this side of the connection can know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// What became of the response.
    pub end: End,
    /// How far it is known to have got.
    pub delivery: Delivery,
    /// The status; `None` if the handler produced no response.
    pub status: Option<StatusCode>,
    /// The header fields of the response. Empty if there was none, or if nothing had been registered when it began.
    pub headers: HeaderMap,
    /// The `grpc-status` of a response of type `application/grpc*`, from its headers or its trailers. `None` if it never came.
    pub grpc_status: Option<i32>,
    /// Bytes of the body that were handed to the HTTP implementation; of one that was too long for its `content-length`, those
    /// that HTTP/1 sends.
    pub body_bytes: u64,
    /// Whether the body was longer than its `content-length`, and HTTP/1 cut it off there.
    pub truncated: bool,
    /// What the handler's or the body's error said; `panicked` for a panic. `None` without error, or if nothing had been
    /// registered by then.
    pub error: Option<String>,
    /// From the request to the head of the response.
    pub time_to_head: Option<Duration>,
    /// From the request to the end.
    pub total: Duration,
    pub(super) is_grpc: bool,
}

impl Outcome {
    /// Whether the handler produced a response that is not an error, whatever became of it afterwards: a status below 400,
    /// and for gRPC a `grpc-status` of 0.
    pub fn is_success(&self) -> bool {
        let is_grpc_error = self.is_grpc && self.grpc_status != Some(0);
        self.status.is_some_and(|status| status.as_u16() < 400) && !is_grpc_error
    }

    /// Whether the whole response was flushed or handed over.
    pub fn is_complete(&self) -> bool {
        self.end == End::Complete
    }

    /// Whether the whole response was flushed.
    pub fn is_flushed(&self) -> bool {
        self.is_complete() && self.delivery == Delivery::Flushed
    }
}

/// What became of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum End {
    /// It began, and did not get to its end, or its end was not flushed: the client reset the stream or closed the connection, or the server did.
    Aborted,
    /// Its body failed.
    BodyError,
    /// Its body ended before its `content-length`. On HTTP/1 the connection is closed then, and nothing that was not written before is.
    BodyTooShort,
    /// Nothing of it is missing, and it went the way that [`Delivery`] says.
    Complete,
    /// The handler failed or panicked, and no response came of it; or it came with a status that is none of a final response,
    /// as 102.
    HandlerError,
    /// The handler was dropped before it responded, as when the client leaves; or its response was dropped unsent. A response without a
    /// body that an outer layer replaces cannot be told from one that was sent, unless the connection is tracked.
    NoResponse,
}

/// How far a response is known to have got. Neither says that the client received anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Delivery {
    /// The transport accepted every byte and flushed. Only a tracked connection can tell (feature `hyper`).
    Flushed,
    /// The HTTP implementation took all of it. What it had written by then is not known.
    HandedOver,
    /// It was not delivered, or not all of it.
    None,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aborted => "aborted",
            Self::BodyError => "body_error",
            Self::BodyTooShort => "body_too_short",
            Self::Complete => "complete",
            Self::HandlerError => "handler_error",
            Self::NoResponse => "no_response",
        })
    }
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flushed => "flushed",
            Self::HandedOver => "handed_over",
            Self::None => "none",
        })
    }
}
