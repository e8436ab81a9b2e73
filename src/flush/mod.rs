//! When is a response flushed? What the bytes on a connection say about it.
//!
//! The end of a body says nothing: hyper polls a body to its end before it writes, and h2 keeps what the peer's window does
//! not admit. What is exact is the wire. On HTTP/2 a response has been flushed once its frame with `END_STREAM` has been
//! accepted by the transport and a later flush has succeeded; nothing of a response follows that flag (RFC 9113, section
//! 5.1). Which request a stream is, is learnt by delivering at most one new stream at a time to h2, which pops it in the same
//! poll (`h2/server.rs`, `poll_accept`; `hyper/proto/h2/server.rs` calls the service in the same loop).
//!
//! Everything here is pure: no I/O, no locks, no tasks. Bytes go in, in any split, and facts come out. Where the bytes are in
//! doubt the parser gives up for good, and all that is still open is only handed over.
//!
//! - [`preface`]: HTTP/1 or HTTP/2, by the first bytes that arrive.
//! - [`frames`]: the frames in a direction of an HTTP/2 connection.
//! - [`outbound`]: the responses that have ended, been flushed, been reset.
//! - [`inbound`]: the streams that open, and where to stop reading for each.

mod frames;
mod inbound;
mod outbound;
mod preface;

#[cfg(test)]
mod against_h2;
#[cfg(test)]
mod generated;
#[cfg(test)]
mod properties;
