//! What it costs to have a task accepted, for each store, and a durable job enqueued and worked off.
//!
//! `cargo bench --bench tasks -- --help` lists the options; `benches/README.md` says how it measures and why so.
// A benchmark measures real time, so the ban on the standard library's clock is not for it.
#![allow(clippy::disallowed_types)]

mod accept;
#[path = "../common/alarm.rs"]
mod alarm;
#[path = "../common/bystanders.rs"]
mod bystanders;
#[path = "../common/cells.rs"]
mod cells;
#[path = "../common/child.rs"]
mod child;
#[path = "../common/command.rs"]
mod command;
mod database;
mod durable;
#[path = "../common/filter.rs"]
mod filter;
mod fresh;
#[path = "../common/json.rs"]
mod json;
mod load;
mod ours;
mod plan;
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
};

type BoxError = Box<dyn Error + Send + Sync>;

/// Measures accepted tasks a second in memory, on SQLite and on Postgres, and how fast durable jobs are enqueued and worked off.
/// Postgres needs a server that DATABASE_URL names; each run has a database of its own there, which is dropped.
#[derive(Parser)]
#[command(bin_name = "cargo bench --bench tasks --")]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    command::run("tasks", &Arguments::parse().options, stage::obey, measure)
}

fn measure(options: &Options) -> Result<Figures<Record>, BoxError> {
    let variants = filter::matching(variants::VARIANTS, |variant| variant.name, &options.filter)?;
    let plan = if options.quick { Plan::quick() } else { Plan::full() };
    let server = std::env::var("DATABASE_URL").ok();
    let rows = session::measure_all(plan, &variants, server.as_deref())?;
    Ok(Figures { text: report::text(&rows, plan, &variants), records: rows.iter().map(Record::of).collect() })
}
