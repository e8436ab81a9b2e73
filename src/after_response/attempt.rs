use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use http::Response;

use super::exchange::Exchange;

const TAKEN: u8 = 1;
const SUCCEEDED: u8 = 1 << 1;

/// What became of a pass of a request through a layer that does not own the response: whoever is further out may have it
/// answered by another pass, or by somebody else.
#[derive(Debug, Default)]
pub(crate) struct Passed(AtomicU8);

impl Passed {
    fn take(&self) -> bool {
        self.0.fetch_or(TAKEN, Ordering::Relaxed) & TAKEN == 0
    }
}

/// Such a pass. Tasks that are for a successful response are for that of the handler that registered them.
#[derive(Debug, Clone)]
pub(crate) enum Attempt {
    /// Mostly there is one: it has its place in the exchange.
    First(Arc<Exchange>),
    Other(Arc<Passed>),
}

impl Attempt {
    pub(super) fn new(exchange: &Arc<Exchange>) -> Self {
        if exchange.passed.take() { Self::First(exchange.clone()) } else { Self::Other(Arc::default()) }
    }

    pub(super) fn responded<B>(&self, response: &Response<B>) {
        if response.status().as_u16() < 400 {
            self.passed().fetch_or(SUCCEEDED, Ordering::Release);
        }
    }

    pub(super) fn has_succeeded(&self) -> bool {
        self.passed().load(Ordering::Acquire) & SUCCEEDED != 0
    }

    fn passed(&self) -> &AtomicU8 {
        match self {
            Self::First(exchange) => &exchange.passed.0,
            Self::Other(passed) => &passed.0,
        }
    }
}
