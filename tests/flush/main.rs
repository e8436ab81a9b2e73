//! Outcomes of responses on real sockets, on hyper, hyper-util, axum and TLS, with HTTP/1 and
//! HTTP/2, on tracked and untracked connections.
//!
//! The tests use no clock to find out whether a hook ran too early. They compare with the number of
//! bytes that the socket had accepted when the hook ran.
#![allow(clippy::unwrap_used)]

mod aborts;
#[cfg(target_os = "linux")]
mod acknowledged;
mod beside_plain;
mod endings;
mod floods;
mod http1;
mod http2;
mod isolation;
mod keep_alive;
mod mapping;
mod pipelining;
mod random;
mod refused;
mod set_up;
mod shutdown;
mod splits;
mod stalled;
mod stress;
mod support;
mod tasks;
mod timing;
mod unwritten;
mod upgrades;
