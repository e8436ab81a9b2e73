use std::collections::HashMap;

use tower_offload::after_response::{Delivery, End};

use crate::support::Record;

/// A request, and what the client received of its response.
#[derive(Debug)]
pub(super) struct Sent {
    /// Unique.
    pub(super) path: String,
    pub(super) expected: Expected,
    pub(super) seen: Seen,
    /// Only on HTTP/2 without TLS, where the wire can be inspected.
    pub(super) stream: Option<u32>,
}

/// The end of the response if nothing interferes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    BodyError,
    /// With the length of the body.
    Complete(u64),
    HandlerError,
    /// The request reaches no handler, because it is malformed or too large.
    Refused,
    TooShort,
    /// Only the client can end it.
    Unending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// The client dropped the response, or the connection closed.
    Cancelled,
    /// The response ended with an error.
    Failed,
    /// The whole response, with the length of the body.
    Whole(u64),
    /// Like `Whole`, on a connection that the client then closed while the server was writing. The
    /// response may not have been flushed yet.
    WholeAndGone(u64),
}

impl Seen {
    /// Converts to the result on a connection that the client closed.
    pub(super) fn and_gone(self) -> Self {
        match self {
            Self::Cancelled | Self::Failed => Self::Cancelled,
            Self::Whole(bytes) | Self::WholeAndGone(bytes) => Self::WholeAndGone(bytes),
        }
    }
}

#[derive(Default)]
pub(super) struct Ledger {
    asked: HashMap<String, Sent>,
    records: HashMap<String, Record>,
}

impl Ledger {
    pub(super) fn ask(&mut self, asked: Vec<Sent>) {
        for asked in asked {
            assert!(self.asked.insert(asked.path.clone(), asked).is_none(), "paths are unique");
        }
    }

    pub(super) fn tell(&mut self, records: Vec<Record>) {
        for record in records {
            let path = record.path.clone();
            assert!(self.records.insert(path, record).is_none(), "a response has one outcome");
        }
    }

    pub(super) fn settle(&self, round: &str) {
        for path in self.records.keys() {
            assert!(self.asked.contains_key(path), "{round}: no request for {path}");
        }
        for asked in self.asked.values() {
            let record = self.records.get(&asked.path);
            if let Err(wrong) = asked.judge(record) {
                panic!("{round}: {wrong}: {asked:?}, record {record:?}");
            }
        }
    }
}

impl Sent {
    fn judge(&self, record: Option<&Record>) -> Result<(), &'static str> {
        let Some(record) = record else {
            let may_be_missing = self.expected == Expected::Refused || self.seen == Seen::Cancelled;
            return if may_be_missing { Ok(()) } else { Err("no outcome") };
        };
        if record.delivery == Delivery::Flushed {
            self.judge_flush(record)?;
        }
        let end = (record.end, record.delivery);
        let gone = [(End::Aborted, Delivery::NotDelivered), (End::NoResponse, Delivery::NotDelivered)];
        let is_right = match (self.expected, self.seen) {
            (Expected::Refused, _) => false,
            (Expected::Complete(bytes), Seen::Whole(seen)) => {
                bytes == seen && record.body_bytes == bytes && end == (End::Complete, Delivery::Flushed)
            }
            (Expected::Complete(bytes), Seen::WholeAndGone(seen)) if bytes != seen => false,
            (Expected::Complete(bytes), Seen::Cancelled | Seen::WholeAndGone(_)) => {
                end == (End::Complete, Delivery::Flushed) && record.body_bytes == bytes || gone.contains(&end)
            }
            (Expected::BodyError, Seen::Failed) => end == (End::BodyError, Delivery::NotDelivered),
            (Expected::BodyError, Seen::Cancelled) => {
                end == (End::BodyError, Delivery::NotDelivered) || gone.contains(&end)
            }
            (Expected::HandlerError, Seen::Failed) => end == (End::HandlerError, Delivery::NotDelivered),
            (Expected::HandlerError, Seen::Cancelled) => {
                end == (End::HandlerError, Delivery::NotDelivered) || gone.contains(&end)
            }
            (Expected::TooShort, Seen::Whole(_)) => record.end == End::BodyTooShort,
            // A client that compares lengths resets the stream, perhaps before the flush.
            (Expected::TooShort, _) => record.end == End::BodyTooShort || gone.contains(&end),
            (Expected::Unending, Seen::Cancelled) => gone.contains(&end),
            _ => false,
        };
        if is_right { Ok(()) } else { Err("a wrong outcome") }
    }

    /// Checks that the end of a flushed response was on the wire before its outcome.
    fn judge_flush(&self, record: &Record) -> Result<(), &'static str> {
        let Some(stream) = self.stream else { return Ok(()) };
        match record.peer.wire.end_of(stream) {
            None => Err("flushed, but its end was never on the wire"),
            Some(end) if end > record.taken => Err("flushed before its end was on the wire"),
            Some(_) => Ok(()),
        }
    }
}
