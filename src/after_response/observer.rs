use std::fmt;

use http::Response;
use http_body::Body;

use super::{attempt::Attempt, guard::Guard};

/// What watches a handler's future.
#[derive(Debug)]
pub(crate) enum Observer {
    /// Further out somebody owns the response.
    Attempt(Attempt),
    /// It is over: its guard is the body's, or the response's end is known.
    Done,
    Owner(Guard),
}

impl Observer {
    /// Runs foreign code that makes the response.
    pub(crate) fn inside<T>(&mut self, foreign: impl FnOnce() -> T) -> T {
        match self {
            Self::Owner(guard) => guard.inside(foreign),
            Self::Attempt(_) | Self::Done => foreign(),
        }
    }

    /// The handler responded. The guard goes on with the body.
    pub(super) fn responded<B: Body>(&mut self, response: &Response<B>) -> Option<Guard> {
        match std::mem::replace(self, Self::Done) {
            Self::Attempt(attempt) => {
                attempt.responded(response);
                None
            }
            Self::Done => None,
            Self::Owner(mut guard) => {
                guard.responded(response);
                Some(guard)
            }
        }
    }

    /// The handler failed, and there will be no response.
    pub(super) fn failed(&mut self, error: &impl fmt::Display) {
        if let Self::Owner(mut guard) = std::mem::replace(self, Self::Done) {
            guard.failed(error);
        }
    }
}
