use std::sync::atomic::{AtomicBool, Ordering};

use http::Response;

/// One pass of a request through a layer that does not own the response: whoever is further out may have it answered by
/// another pass, or by somebody else.
///
/// Tasks that are for a successful response are for that of the handler that registered them.
#[derive(Debug, Default)]
pub(crate) struct Attempt {
    /// Set at the head of its response.
    succeeded: AtomicBool,
}

impl Attempt {
    pub(super) fn responded<B>(&self, response: &Response<B>) {
        self.succeeded.store(response.status().as_u16() < 400, Ordering::Release);
    }

    pub(super) fn has_succeeded(&self) -> bool {
        self.succeeded.load(Ordering::Acquire)
    }
}
