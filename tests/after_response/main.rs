//! Tests of work after the response, through the public API.
//!
//! A hook is an `FnOnce`, so it cannot be called twice. Each test waits for the calls that it
//! expects.
#![allow(clippy::unwrap_used)]

mod apart;
mod attempts;
mod axum;
mod conditions;
mod ends;
mod ends_badly;
mod handler_end;
mod late;
mod layers;
mod limits;
mod memory;
mod order;
mod panics;
mod random;
mod runtimes;
mod support;
mod tasks;
mod tonic;
mod wire;
