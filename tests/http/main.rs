//! Tests of the layer in axum, hyper, tonic and tower-http, over real sockets.
#![allow(clippy::unwrap_used)]

mod axum;
mod blocking_body;
mod blocking_detector;
mod blocking_handler;
mod bounded;
mod deadline;
mod disconnect;
mod filter;
mod hyper;
mod no_thread_held;
mod priority;
mod propagate;
mod support;
mod tonic;
mod tower_http;
mod transparent;
mod types;
