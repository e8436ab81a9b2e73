//! What the layer and the tracked connection cost a response, beside the same server without them.
//!
//! `cargo bench --bench response -- --help` lists the options; `benches/README.md` says how it measures and why so.
// A benchmark measures real time, so the ban on the standard library's clock is not for it.
#![allow(clippy::disallowed_types)]

#[path = "../common/alarm.rs"]
mod alarm;
#[path = "../common/bystanders.rs"]
mod bystanders;
#[path = "../common/child.rs"]
mod child;
mod client;
mod clock;
#[path = "../common/command.rs"]
mod command;
#[path = "../common/filter.rs"]
mod filter;
mod goals;
#[path = "../common/json.rs"]
mod json;
mod plan;
#[path = "../common/platform.rs"]
mod platform;
mod report;
mod rows;
mod server;
mod session;
#[path = "../common/spread.rs"]
mod spread;
mod turns;
mod variants;

use std::{error::Error, process::ExitCode};

use clap::Parser;

use self::{
    command::{Figures, Options},
    plan::Plan,
    report::Record,
};

type BoxError = Box<dyn Error + Send + Sync>;

/// Counts only when told to: see there.
#[global_allocator]
static ALLOCATOR: platform::Counting = platform::Counting;

/// Measures what a response costs a server: plain, behind the layer, on a tracked connection, with a hook and with a task.
/// The plain one is always measured.
#[derive(Parser)]
#[command(bin_name = "cargo bench --bench response --")]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    command::run("response", &Arguments::parse().options, turns::obey, measure)
}

fn measure(options: &Options) -> Result<Figures<Record>, BoxError> {
    let variants = variants::matching(&options.filter)?;
    let plan = if options.quick { Plan::quick() } else { Plan::full() };
    let tables = session::measure_all(plan, &variants)?;
    Ok(Figures { text: report::text(&tables, plan), records: report::records(&tables) })
}
