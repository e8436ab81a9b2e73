//! Support that several test binaries of the workspace share.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod port;
mod program;
mod random;
mod skip;
mod wait;

pub use self::{
    port::ReservedPort,
    program::{PATIENCE, Reply, Server, example, lines_of, run},
    random::Random,
    skip::skip,
    wait::{eventually, eventually_within},
};
