//! `tower_offload::axum::serve`: the app types it accepts, outcomes of responses on HTTP/1, HTTP/2
//! and TLS, limits of connections, and shutdown.
//!
//! The cases of `tests/flush` run on it too, as the stacks `AxumHttp1` and `AxumHttp2`, with the
//! bytes on the socket counted.
#![allow(clippy::unwrap_used)]

mod accept;
mod apps;
mod connect_info;
mod limits;
mod linger;
mod outcomes;
mod shutdown;
#[cfg(unix)]
mod signals;
mod support;
mod upgrades;
