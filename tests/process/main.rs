//! Pools of real processes, which are really killed.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod admission;
mod bad_children;
mod endings;
mod kills;
mod output;
mod parent;
mod progress;
mod recycling;
mod soak;
mod start;
mod support;
mod workers;
