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
//! a later flush has succeeded. Nothing of a response follows that flag (RFC 9113, section 5.1). To
//! find the stream of a request, at most one new stream is delivered to h2 at a time, apart from
//! streams that the client has already reset. h2 returns it from `poll_accept` in the same poll
//! (`h2/server.rs`), and hyper calls the service in the same loop (`hyper/proto/h2/server.rs`). The
//! bytes on the wire are the same as without tracking.
//!
//! # What is promised
//!
//! The flush is that of the wrapped transport: usually the kernel has all bytes then. It does not
//! mean that the client has received anything. If a tracked connection cannot prove that a response
//! was flushed, it reports [`HandedOver`](crate::after_response::Delivery::HandedOver) and counts
//! it in [`Tracker::stats`]: if the stream is unknown, if the bytes were not understood, or if
//! their length differs from that of the body.
//!
//! The limits of hyper and h2 protect a tracked connection like any other. h2 counts the requests
//! that a client resets at once (CVE-2023-44487) if the reset arrives together with the request and
//! at most 8 KiB behind it, up to hyper's `max_pending_accept_reset_streams`. If tracking hides
//! more than 20 resets from h2 without a pause, because they are further behind or ordinary
//! requests follow them, it stops delaying the streams of that client, so that h2 counts all
//! further resets. The responses to later requests on that connection are
//! [`HandedOver`](crate::after_response::Delivery::HandedOver).
//!
//! If the client resets a response or the connection closes before the flush, the response is
//! [`Aborted`](crate::after_response::End::Aborted), even if its body was handed over long before.
//! A tunnel (`CONNECT` or an upgrade) is flushed with its head.
//!
//! # When not to use it
//!
//! If [`HandedOver`](crate::after_response::Delivery::HandedOver) is enough, the layer alone
//! provides it. `tonic::transport::Server` cannot be tracked: serve tonic's `Routes` as above, or
//! convert them with `into_axum_router()`.

// `src/flush/ARCHITECTURE.md` describes the parts.

mod connection;
mod frames;
mod inbound;
mod io;
mod lookahead;
mod outbound;
mod preface;
mod reader;
mod service;
mod state;
mod status_line;
mod tracker;

#[cfg(feature = "axum")]
pub(crate) use self::connection::{Connection, Protocol};
pub use self::{
    io::{Parts, TrackedIo},
    service::TrackedService,
    tracker::{Tracker, TrackerStats},
};

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
