use std::sync::Arc;

use super::exchange::Exchange;

/// The connection that a response takes, if it can tell when a response was flushed.
///
/// For each exchange that was made with it, it calls [`Exchange::told`] at some time, at the latest when the connection is gone.
pub(crate) trait Wire: Send + Sync {
    /// Notes that the head of an HTTP/1 response is ready. The HTTP implementation encodes it
    /// before it flushes again.
    fn head_ready(&self);

    /// Notes that the body of that response was dropped, complete or not. Called before
    /// [`await_flush`](Self::await_flush).
    fn body_dropped(&self);

    /// The body has ended, complete: from here on every byte of the response is in the hands of the HTTP implementation.
    /// Called on HTTP/1 only; on HTTP/2 the bytes on the wire say so.
    fn await_flush(&self, exchange: Arc<Exchange>);

    /// The response of that HTTP/2 stream is but the opening of a tunnel: what follows its head is not its own.
    fn ends_with_head(&self, stream: u32);

    /// Another number of bytes went over the wire than the body produced.
    fn mismatched(&self);
}

/// What the wire said of a response, in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "flush"), allow(dead_code, reason = "for tracked connections"))]
pub(crate) enum Verdict {
    /// All of it was accepted and flushed, with so many bytes of body if they can be told from the rest.
    Flushed { body_bytes: Option<u64> },
    /// The stream was reset, or the connection is gone.
    Lost,
    /// The wire cannot tell.
    Unsure,
}
