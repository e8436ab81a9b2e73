use std::collections::HashMap;

use tower_offload::after_response::{Delivery, End};

use crate::support::Record;

/// What a client asked for, and what it saw of the answer.
#[derive(Debug)]
pub(super) struct Asked {
    /// No other request has it.
    pub(super) path: String,
    pub(super) expected: Expected,
    pub(super) seen: Seen,
    /// HTTP/2 without TLS: whose wire can be asked.
    pub(super) stream: Option<u32>,
}

/// How the response ends if nobody interferes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    BodyError,
    /// With so many bytes of body.
    Complete(u64),
    HandlerError,
    /// No handler gets to see it: malformed, or too large.
    Refused,
    TooShort,
    /// Only the client can end it.
    Unending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// The client has let go of it at some time, or the connection has.
    Cancelled,
    /// It came to an end that was none.
    Failed,
    /// To its very end, with so many bytes of body.
    Whole(u64),
    /// As `Whole`, on a connection that the client then tore down while the server wrote on it: with bytes of other responses
    /// behind this one's it may have waited for its flush.
    WholeAndGone(u64),
}

impl Seen {
    /// The same, of a connection that the client tore down.
    pub(super) fn and_gone(self) -> Self {
        match self {
            Self::Cancelled | Self::Failed => Self::Cancelled,
            Self::Whole(bytes) | Self::WholeAndGone(bytes) => Self::WholeAndGone(bytes),
        }
    }
}

#[derive(Default)]
pub(super) struct Ledger {
    asked: HashMap<String, Asked>,
    told: HashMap<String, Record>,
}

impl Ledger {
    pub(super) fn ask(&mut self, asked: Vec<Asked>) {
        for asked in asked {
            assert!(self.asked.insert(asked.path.clone(), asked).is_none(), "paths are unique");
        }
    }

    pub(super) fn tell(&mut self, records: Vec<Record>) {
        for record in records {
            let path = record.path.clone();
            assert!(self.told.insert(path, record).is_none(), "a response has two outcomes");
        }
    }

    pub(super) fn settle(&self, round: &str) {
        for path in self.told.keys() {
            assert!(self.asked.contains_key(path), "{round}: nobody asked for {path}");
        }
        for asked in self.asked.values() {
            let told = self.told.get(&asked.path);
            if let Err(wrong) = asked.judge(told) {
                panic!("{round}: {wrong}: {asked:?}, told {told:?}");
            }
        }
    }
}

impl Asked {
    fn judge(&self, told: Option<&Record>) -> Result<(), &'static str> {
        let Some(told) = told else {
            let may_be_missing = self.expected == Expected::Refused || self.seen == Seen::Cancelled;
            return if may_be_missing { Ok(()) } else { Err("no outcome") };
        };
        if told.delivery == Delivery::Flushed {
            self.judge_flush(told)?;
        }
        let end = (told.end, told.delivery);
        let gone = [(End::Aborted, Delivery::NotDelivered), (End::NoResponse, Delivery::NotDelivered)];
        let is_right = match (self.expected, self.seen) {
            (Expected::Refused, _) => false,
            (Expected::Complete(bytes), Seen::Whole(seen)) => {
                bytes == seen && told.body_bytes == bytes && end == (End::Complete, Delivery::Flushed)
            }
            (Expected::Complete(bytes), Seen::WholeAndGone(seen)) if bytes != seen => false,
            (Expected::Complete(bytes), Seen::Cancelled | Seen::WholeAndGone(_)) => {
                end == (End::Complete, Delivery::Flushed) && told.body_bytes == bytes || gone.contains(&end)
            }
            (Expected::BodyError, Seen::Failed) => end == (End::BodyError, Delivery::NotDelivered),
            (Expected::BodyError, Seen::Cancelled) => {
                end == (End::BodyError, Delivery::NotDelivered) || gone.contains(&end)
            }
            (Expected::HandlerError, Seen::Failed) => end == (End::HandlerError, Delivery::NotDelivered),
            (Expected::HandlerError, Seen::Cancelled) => {
                end == (End::HandlerError, Delivery::NotDelivered) || gone.contains(&end)
            }
            (Expected::TooShort, Seen::Whole(_)) => told.end == End::BodyTooShort,
            // A client that counts resets the stream, which may be before the flush.
            (Expected::TooShort, _) => told.end == End::BodyTooShort || gone.contains(&end),
            (Expected::Unending, Seen::Cancelled) => gone.contains(&end),
            _ => false,
        };
        if is_right { Ok(()) } else { Err("a wrong outcome") }
    }

    /// What is flushed has gone out by then.
    fn judge_flush(&self, told: &Record) -> Result<(), &'static str> {
        let Some(stream) = self.stream else { return Ok(()) };
        match told.peer.wire.end_of(stream) {
            None => Err("flushed, and its end was never on the wire"),
            Some(end) if end > told.taken => Err("flushed before its end was on the wire"),
            Some(_) => Ok(()),
        }
    }
}
