//! What is pure in `benches/latency`: schedules, counts, recovery, goals, tables, records. Nothing here measures time.

#![allow(clippy::unwrap_used)]

mod figures;
#[path = "../../benches/latency/mod.rs"]
mod latency;
mod plans;
mod records;
mod recovering;
mod support;
mod targets;
