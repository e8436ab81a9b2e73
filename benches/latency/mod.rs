//! The measurement itself, apart from its command lines: `benches/latency/main.rs` and `examples/latency_report` share it,
//! and `tests/latency` tests what is pure in it. All of them call this module `latency`.
//!
//! A session starts servers and loads them; what a row of it saw becomes a `Record`, which is a line of JSON; and
//! everything that is shown (tables, goals, pictures, a page) is made of records alone, so that it can be made again later.
// A benchmark measures real time, so the ban on the standard library's clock is not for it.
#![allow(clippy::disallowed_types)]
// Each of the three needs another part of it.
#![allow(dead_code, unused_imports)]

pub(crate) mod arrivals;
pub(crate) mod bystanders;
pub(crate) mod capacity;
#[path = "../common/cells.rs"]
pub(crate) mod cells;
pub(crate) mod client;
pub(crate) mod conditions;
pub(crate) mod generator;
pub(crate) mod goals;
pub(crate) mod json;
#[path = "../common/json.rs"]
pub(crate) mod lines;
pub(crate) mod picture;
pub(crate) mod plan;
pub(crate) mod platform;
pub(crate) mod process;
pub(crate) mod record;
pub(crate) mod recovery;
pub(crate) mod report;
pub(crate) mod rows;
pub(crate) mod server;
pub(crate) mod session;
#[path = "../common/spread.rs"]
pub(crate) mod spread;
pub(crate) mod stop;
pub(crate) mod table;
pub(crate) mod tally;
pub(crate) mod target;
pub(crate) mod timeline;
pub(crate) mod variants;
pub(crate) mod work;

pub(crate) use tower::BoxError;
