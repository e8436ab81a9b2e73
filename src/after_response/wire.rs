use std::sync::Arc;

use super::exchange::Exchange;

/// The connection that a response takes, if it can tell when a response was flushed.
///
/// For each exchange that was made with it, it calls [`Exchange::told`] at some time, at the latest when the connection is gone.
pub(crate) trait Wire: Send + Sync {
    /// The body has ended, complete: from here on every byte of the response is in the hands of the HTTP implementation.
    /// Not called if the HTTP implementation's bytes say so themselves.
    fn await_flush(&self, exchange: Arc<Exchange>);

    /// The response is but the opening of a tunnel: what follows its head is not its own.
    fn ends_with_head(&self, exchange: &Arc<Exchange>);

    /// Another number of bytes went over the wire than the body produced.
    fn mismatched(&self);
}

/// What the wire said of a response, in the end.
#[allow(dead_code, reason = "for tracked connections, which come next")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All of it was accepted and flushed, with so many bytes of body if they can be told from the rest.
    Flushed { body_bytes: Option<u64> },
    /// The stream was reset, or the connection is gone.
    Lost,
    /// The wire cannot tell.
    Unsure,
}
