use http::{HeaderMap, StatusCode};
use tower_offload::after_response::{Delivery, End, Outcome};

use super::listener::Peer;

/// An event on the server's side.
pub(crate) enum Event {
    /// A body was dropped.
    BodyDropped { path: String },
    /// A hook ran.
    Hook(Record),
}

/// An outcome, and the state of the socket when the hook ran.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// Path of the request, including the query.
    pub(crate) path: String,
    pub(crate) end: End,
    pub(crate) delivery: Delivery,
    pub(crate) status: Option<StatusCode>,
    pub(crate) headers: HeaderMap,
    pub(crate) body_bytes: u64,
    pub(crate) truncated: bool,
    pub(crate) grpc_status: Option<i32>,
    pub(crate) error: Option<String>,
    pub(crate) is_success: bool,
    /// `true` if the outcome has a time to the head.
    pub(crate) has_head: bool,
    /// The number of bytes that the kernel had accepted on this connection.
    pub(crate) taken: u64,
    pub(crate) peer: Peer,
}

impl Record {
    pub(crate) fn new(path: String, outcome: &Outcome, peer: Peer) -> Self {
        Self {
            path,
            end: outcome.end,
            delivery: outcome.delivery,
            status: outcome.status,
            headers: outcome.headers.clone(),
            body_bytes: outcome.body_bytes,
            truncated: outcome.truncated,
            grpc_status: outcome.grpc_status,
            error: outcome.error.clone(),
            is_success: outcome.is_success(),
            has_head: outcome.time_to_head.is_some(),
            taken: peer.wire.written(),
            peer,
        }
    }

    #[track_caller]
    pub(crate) fn is(&self, end: End, delivery: Delivery) {
        assert_eq!((self.end, self.delivery), (end, delivery), "{self:?}");
    }

    /// Checks that the response is complete and flushed, with this length of the body.
    #[track_caller]
    pub(crate) fn is_flushed(&self, body_bytes: u64) {
        self.is(End::Complete, Delivery::Flushed);
        assert_eq!(self.body_bytes, body_bytes, "{self:?}");
    }
}
