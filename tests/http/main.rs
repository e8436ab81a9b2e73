//! The layer in real HTTP stacks: axum, hyper, tonic and tower-http, over real sockets.
//!
//! The numbers in the comments (P3, E11, ..) are those of the acceptance list.
#![allow(clippy::unwrap_used)]

mod axum;
mod blocking_detector;
mod blocking_handler;
mod bounded;
mod carry;
mod disconnect;
mod filter;
mod hyper;
mod no_thread_held;
mod priority;
mod support;
mod sync_body;
mod tonic;
mod tower_http;
mod transparent;
