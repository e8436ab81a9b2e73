//! Tracked connections, which report when a response was flushed.
//!
//! Without tracking, an [`Outcome`](crate::after_response::Outcome) says at most that the HTTP
//! implementation has taken the whole response: hyper polls a body to its end before it writes, and
//! h2 buffers what the window of the client does not allow. On a tracked connection, the outcome is
//! [`Flushed`](crate::after_response::Delivery::Flushed) once the transport has accepted every byte
//! of *this* response and was flushed, on HTTP/1 and on HTTP/2.
//!
//! [`Tracker::track`] wraps the transport and the service of a connection:
//!
//! ```no_run
//! use hyper_util::{
//!     rt::{TokioExecutor, TokioIo},
//!     server::conn::auto,
//!     service::TowerToHyperService,
//! };
//! use tower_offload::{AfterResponseLayer, Background, flush::Tracker};
//! # use axum::Router;
//!
//! # #[tokio::main]
//! # async fn main() -> std::io::Result<()> {
//! // Any tower service, for example a router or tonic's `Routes`.
//! let app = Router::new().layer(AfterResponseLayer::new(Background::default()));
//! let tracker = Tracker::new();
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! loop {
//!     let (stream, _) = listener.accept().await?;
//!     // With TLS, call `acceptor.accept(stream).await?` first: tracking belongs above it.
//!     let service = TowerToHyperService::new(app.clone());
//!     let (io, service) = tracker.track(TokioIo::new(stream), service);
//!     tokio::spawn(async move {
//!         let server = auto::Builder::new(TokioExecutor::new());
//!         let _ = server.serve_connection_with_upgrades(io, service).await;
//!     });
//! }
//! # }
//! ```
//!
//! The connection only reports. [`AfterResponseLayer`](crate::AfterResponseLayer) gives handlers
//! the handle to register hooks and tasks. With axum, `tower_offload::axum::serve` tracks every
//! connection.
//!
//! # How it works
//!
//! On HTTP/1, a response is flushed by the first successful flush that was called after its head
//! was accepted and its body ended, because hyper flushes the transport only once all its writes
//! were accepted (`hyper/proto/h1/io.rs`).
//!
//! On HTTP/2, a response is flushed once the transport has accepted its frame with `END_STREAM` and
//! a later flush has succeeded. Nothing of a response follows that flag (RFC 9113, section 5.1).
//! hyper does not pass on the stream of a request. So [`TrackedIo`] appends a field with it to each
//! request that it delivers, and [`TrackedService`] removes it. Nothing changes on the wire.
//!
//! # What is promised
//!
//! The flush is that of the wrapped transport: usually the kernel has all bytes then. It does not
//! mean that the client has received anything. In particular, a server that closes an HTTP/1
//! connection without having read the whole request may make the kernel reset it, and discard what
//! the client has not received; `tower_offload::axum::serve` reads a part of the rest before.
//!
//! If a tracked connection cannot prove that a response was flushed, it reports
//! [`HandedOver`](crate::after_response::Delivery::HandedOver) and counts it in [`Tracker::stats`]:
//! if the stream is unknown, if the server's bytes were not understood, or if their length differs
//! from that of the body. On HTTP/1 a head with several lengths, or with one that is not a number,
//! is handed over too, because hyper may send another response instead. It is counted as flushed.
//!
//! If the client resets a response or the connection closes before the flush, the response is
//! [`Aborted`](crate::after_response::End::Aborted), even if its body was handed over long before.
//! A tunnel (`CONNECT` or an upgrade) is flushed with its head.
//!
//! # Clients that do not read
//!
//! A response whose body has ended waits for its client. If the transport accepts less than 4 KiB
//! of it within 30 seconds, the response is
//! [`HandedOver`](crate::after_response::Delivery::HandedOver), so that its hooks and tasks run at
//! the latest a minute after the client has stopped. On HTTP/1 the whole connection must make that
//! progress. The response itself is not cut off. Outside a tokio runtime with time enabled, the
//! wait has no limit.
//!
//! A body that has not ended is not limited: a client can keep a stream open for as long as the
//! service lets it. At most 16 384 streams of an HTTP/2 connection and 1024 responses of an HTTP/1
//! connection are followed at once, which is far above the limits of hyper; others are handed over
//! only.
//!
//! # Acknowledged responses
//!
//! On Linux, a response can
//! [request](crate::after_response::AfterResponse::request_acknowledgement) that its outcome waits
//! until the peer's TCP has acknowledged every byte of it, and is
//! [`Acknowledged`](crate::after_response::Delivery::Acknowledged) then. Others pay one atomic
//! operation. `tower_offload::axum::serve` knows the socket of a `TcpStream`; otherwise it must be
//! named with [`TrackedIo::with_socket`]. TLS is supported: the wait is for the encrypted bytes.
//! The example `acknowledged` keeps an export until it is delivered.
//!
//! It means that the kernel of the peer has received the response. What it does not mean:
//!
//! - That the application has read the response. A stopped process (`SIGSTOP`, a debugger, a
//!   suspended container) acknowledges what fits its receive buffer, usually up to some megabytes,
//!   and a process that crashes a moment later leaves the same trace. A larger response waits until
//!   the process continues.
//! - That the client has received it, if there is a proxy, load balancer or tunnel in between: the
//!   peer is the proxy then, and it may hold the response in its own buffers.
//! - That a response without an acknowledgement was not received. The acknowledgement may have been
//!   lost, or come after the limit. So work that is repeated for such a response happens at least
//!   once, and not exactly once.
//!
//! Only a message of the application itself says more.
//!
//! The wait ends without an acknowledgement, and the outcome is
//! [`Flushed`](crate::after_response::Delivery::Flushed), in these cases, which
//! [`TrackerStats::unacknowledged`] counts:
//!
//! - 30 seconds have passed since the flush, or 5 seconds since the server shut down its side of
//!   the connection. The socket is closed after that wait, so a client that has vanished delays the
//!   close of its connection, and a graceful shutdown of the server, by up to 5 seconds.
//! - The connection has failed or was closed by the server.
//! - The socket is not TCP (Multipath TCP has other counters), the kernel is older than 4.1, or the
//!   task of the connection has no timer of tokio.
//! - 1024 responses of the connection wait already.
//!
//! A response is acknowledged together with everything that the socket had accepted before its
//! flush returned, so on a busy connection it may wait for bytes of others. An acknowledgement is
//! found at the flush or by a check: one round trip later, at least a millisecond, and then at
//! intervals that double up to 250 milliseconds.
//!
//! The task of the connection checks, so it must be polled. With `pipeline_flush(true)`, hyper does
//! not poll the transport while a handler runs and the client has sent further requests
//! (`hyper/proto/h1/io.rs`, `poll_flush`). Until that handler has ended, no acknowledgement is
//! found, and none of the limits on this page applies to that connection. hyper's default is
//! `false`, and `tower_offload::axum::serve` keeps it.
//!
//! # Hostile clients
//!
//! The limits of hyper and h2 protect a tracked connection like any other, because h2 reads the
//! same frames at the same time, among them the limits on resets (CVE-2023-44487), CONTINUATION
//! frames and malformed requests. The only difference is the appended field: it counts as 64 bytes
//! of the `max_header_list_size`, and a malformed request whose last frame is less than 19 bytes
//! shorter than 16 KiB ends its connection rather than its stream.
//!
//! # When not to use it
//!
//! If [`HandedOver`](crate::after_response::Delivery::HandedOver) is enough, the layer alone
//! provides it. `tonic::transport::Server` cannot be tracked: serve tonic's `Routes` as above, or
//! convert them with `into_axum_router()`.

// `src/flush/ARCHITECTURE.md` describes the parts.

mod acknowledge;
mod connection;
mod frames;
mod inbound;
mod io;
mod mark;
mod outbound;
mod preface;
mod reader;
mod service;
mod stall;
mod state;
mod status_line;
mod tcp;
mod timer;
mod tracker;

#[cfg(feature = "axum")]
pub(crate) use self::connection::{Connection, Protocol};
#[cfg(all(feature = "axum", target_os = "linux"))]
pub(crate) use self::tcp::FindSocket;
pub use self::{
    io::{Parts, TrackedIo},
    service::TrackedService,
    tracker::{Tracker, TrackerStats},
};

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
