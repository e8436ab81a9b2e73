//! Connections that tell when a response was really flushed.
//!
//! Without it an [`Outcome`](crate::after_response::Outcome) says at most that the HTTP implementation has taken the whole
//! response: hyper polls a body to its end before it writes, and h2 keeps what the client's window does not admit. On a tracked connection it says
//! [`Flushed`](crate::after_response::Delivery::Flushed) once the transport has accepted every byte of *this* response and
//! flushed, on HTTP/1 and on HTTP/2.
//!
//! Two values for each connection, instead of the two that hyper would get:
//!
//! ```no_run
//! use hyper_util::{rt::{TokioExecutor, TokioIo}, server::conn::auto, service::TowerToHyperService};
//! use tower_offload::{AfterResponseLayer, Background, flush::Tracker};
//! # use axum::Router;
//!
//! # #[tokio::main]
//! # async fn main() -> std::io::Result<()> {
//! let app = Router::new().layer(AfterResponseLayer::new(Background::default())); // or any tower service, tonic's `Routes` too
//! let tracker = Tracker::new();
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! loop {
//!     let (stream, _) = listener.accept().await?;
//!     // With TLS: `acceptor.accept(stream).await?` first. Tracking belongs above it.
//!     let (io, service) = tracker.track(TokioIo::new(stream), TowerToHyperService::new(app.clone()));
//!     tokio::spawn(async move {
//!         let server = auto::Builder::new(TokioExecutor::new());
//!         let _ = server.serve_connection_with_upgrades(io, service).await;
//!     });
//! }
//! # }
//! ```
//!
//! The connection only tells; [`AfterResponseLayer`](crate::AfterResponseLayer) gives handlers the handle to register with. With
//! `axum::serve` it is `FlushListener` and `FlushMakeService`, in the module `axum`.
//!
//! # How
//!
//! On HTTP/1 a response has been flushed with the first flush that begins after its head was accepted and its body has ended, and succeeds: hyper
//! flushes the transport only once all that it wrote has been accepted (`hyper/proto/h1/io.rs`).
//!
//! On HTTP/2 only the wire can tell. A response has been flushed once its frame with `END_STREAM` has been accepted by the transport and
//! a later flush has succeeded; nothing of a response follows that flag (RFC 9113, section 5.1). Which request a stream is, is
//! learnt by delivering at most one new stream at a time to h2, which pops it in the same poll (`h2/server.rs`,
//! `poll_accept`; `hyper/proto/h2/server.rs` calls the service in the same loop). The bytes on the wire are the same with it and without.
//!
//! # What is promised
//!
//! A flush is one of the transport that is wrapped: usually, the kernel has it all. Nothing is said about the client. What is in
//! doubt is never called flushed: responses whose stream is not known, whose bytes were not understood, or of another length than
//! their body are [`HandedOver`](crate::after_response::Delivery::HandedOver), and counted in [`Stats`].
//!
//! The limits of hyper and h2 protect a tracked connection like any other. If a client opens and
//! resets more than 20 streams without a pause, tracking stops delaying its streams so that h2
//! counts the resets: the responses to later requests on that connection are
//! [`HandedOver`](crate::after_response::Delivery::HandedOver).
//!
//! A response that a client resets or whose connection ends before it was flushed is
//! [`Aborted`](crate::after_response::End::Aborted), also if its body had long been handed over. A tunnel (`CONNECT`, an upgrade) is flushed
//! with its head.
//!
//! # When not to use it
//!
//! Where [`HandedOver`](crate::after_response::Delivery::HandedOver) is enough: it needs nothing but the layer. And
//! `tonic::transport::Server` has no place for it: serve tonic's `Routes` as above, or with `into_axum_router()`.

// Five parsers, without I/O, locks and tasks. Bytes go in, in any split, and facts come out. A
// parser that is in doubt gives up for good. If the server's bytes are in doubt, every open
// response is handed over; if the client's are, only later requests are.
//
// - `preface`: HTTP/1 or HTTP/2, by the first bytes that arrive.
// - `heads`: whether a response has begun, on HTTP/1.
// - `frames`: the frames in a direction of an HTTP/2 connection.
// - `outbound`: the responses that have ended, been flushed, been reset.
// - `inbound`: the streams that open, and where to stop reading for each.
//
// And what joins them to a connection:
//
// - `connection`: the responses of one connection, and who is told what. Shared by its transport and its service.
// - `reader`: the gate.
// - `tracked_io`: the transport, wrapped. `service`: what answers on it.
// - `exchange`: a response as the connection sees it, and the connection as a response sees it.

mod connection;
mod exchange;
mod frames;
mod heads;
mod inbound;
mod outbound;
mod preface;
mod reader;
mod service;
mod slices;
mod stats;
mod tracked_io;
mod tracker;

#[cfg(feature = "axum")]
pub(crate) use self::{connection::Connection, exchange::begin, frames::StreamId};
pub use self::{
    service::TrackedService,
    stats::Stats,
    tracked_io::{Parts, TrackedIo},
    tracker::Tracker,
};

#[cfg(test)]
mod against_h2;
#[cfg(test)]
mod against_hyper;
#[cfg(test)]
mod generated;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod scripted;
