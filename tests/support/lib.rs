//! Support that several test binaries of the workspace share.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod program;
mod random;
mod wait;

pub use self::{
    program::{PATIENCE, Reply, Server, example, lines_of, run},
    random::Random,
    wait::{eventually, eventually_within},
};
