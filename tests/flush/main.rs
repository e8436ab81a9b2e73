//! How responses end, on real sockets: hyper, hyper-util, axum and TLS, HTTP/1 and HTTP/2, with and without a tracked
//! connection.
//!
//! Numbers such as A3 or P11 are those of the acceptance list (cases taken from other frameworks' own test suites). Whether a
//! hook came too early is never asked of a clock: it is asked of the bytes that the socket had taken when it ran.
#![allow(clippy::unwrap_used)]

mod aborts;
mod couplings;
mod endings;
mod floods;
mod http1;
mod http2;
mod isolation;
mod keep_alive;
mod late_calls;
mod pipelining;
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
