//! The harness that all benchmarks of this workspace share.
//!
//! A benchmark is a list of [`Row`]s, each of them a variant in a scene. [`Options::run`] filters
//! the rows, has them measured and writes the report and the JSON file; [`interleave`] measures
//! them round by round; [`child::run`] gives each run a process of its own; [`Table`] and [`Goal`]
//! print the result. A benchmark adds only what it measures.
//!
//! The modules `latency` and `fairness` are here because a benchmark and an example share them.
// Benchmarks measure real time, so the ban on the standard library's clock does not apply.
#![allow(clippy::disallowed_types)]

pub mod child;
mod cli;
#[cfg(feature = "latency")]
pub mod fairness;
mod goal;
#[cfg(feature = "latency")]
pub mod latency;
#[cfg(feature = "latency")]
mod picture;
pub mod platform;
mod rows;
mod stats;
mod table;

#[cfg(feature = "latency")]
pub use self::picture::{Part, Picture};
pub use self::{
    cli::{Internal, JsonRows, Options, check_writable, finish, json_lines, write_json, write_text},
    goal::{Compared, Goal, Limits},
    rows::{Round, Row, Unit, find, interleave, others_pct, others_text},
    stats::{Spread, number, range},
    table::{Cell, Table},
};

/// Any error, as in tower.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
