//! What a hop to a pool and back costs: our pools and layer beside every other way to get a closure off the event loop.
//!
//! `cargo bench --bench hop -- --help` lists the options; `benches/README.md` says how it measures and why so.
// A benchmark measures real time, so the ban on the standard library's clock is not for it.
#![allow(clippy::disallowed_types)]

#[path = "../common/alarm.rs"]
mod alarm;
#[path = "../common/bystanders.rs"]
mod bystanders;
#[path = "../common/child.rs"]
mod child;
#[path = "../common/command.rs"]
mod command;
#[path = "../common/filter.rs"]
mod filter;
mod goals;
mod hops;
mod job;
#[path = "../common/json.rs"]
mod json;
mod load;
mod plan;
#[path = "../common/platform.rs"]
mod platform;
mod report;
mod rows;
mod session;
#[path = "../common/spread.rs"]
mod spread;
mod stage;
mod variants;

use std::{error::Error, process::ExitCode};

use clap::Parser;

use self::{
    command::{Figures, Options},
    plan::Plan,
    report::Record,
    session::Session,
};

type BoxError = Box<dyn Error + Send + Sync>;

/// Counts only when told to: see there.
#[global_allocator]
static ALLOCATOR: platform::Counting = platform::Counting;

/// Measures a trivial closure's way to another thread and back: latency of one call, and calls a second of many.
#[derive(Parser)]
#[command(bin_name = "cargo bench --bench hop --")]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    command::run("hop", &Arguments::parse().options, stage::obey, measure)
}

fn measure(options: &Options) -> Result<Figures<Record>, BoxError> {
    let variants = variants::matching(&options.filter)?;
    let plan = if options.quick { Plan::quick() } else { Plan::full() };
    let tables = Session::start(plan).measure_all(&variants)?;
    Ok(Figures { text: report::text(&tables, plan), records: report::records(&tables) })
}
