//! The harness that all benchmarks of this workspace share.
//!
//! A benchmark is a list of [`Row`]s, each of them a variant in a scene. [`Options::run`] filters
//! the rows, has them measured and writes the report and the JSON file; [`interleave`] measures
//! them round by round; [`child::run`] gives each run a process of its own; [`Table`] and [`Goal`]
//! print the result. A benchmark adds only what it measures.
//!
//! The module `latency` is here because a benchmark and an example share it.
// Benchmarks measure real time, so the ban on the standard library's clock does not apply.
#![allow(clippy::disallowed_types)]

pub mod child;
mod cli;
mod goal;
#[cfg(feature = "latency")]
pub mod latency;
pub mod platform;
mod rows;
mod stats;
mod table;

pub use self::{
    cli::{Internal, Options, check_writable, finish, read_json, write_json},
    goal::{Compared, Goal, Limits},
    rows::{Round, Row, Unit, find, interleave, others_pct, others_text},
    stats::{Spread, number, range},
    table::{Cell, Table},
};

/// Any error, as in tower.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
