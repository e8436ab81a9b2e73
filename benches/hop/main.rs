//! What a hop to a pool and back costs: our pools and layer beside every other way to get a closure off the event loop.
//!
//! `cargo bench --bench hop -- --help` lists the options; `benches/README.md` says how it measures and why so.
// A benchmark measures real time, so the ban on the standard library's clock is not for it.
#![allow(clippy::disallowed_types)]

mod bystanders;
mod child;
mod goals;
mod hops;
mod job;
mod load;
mod plan;
mod platform;
mod report;
mod rows;
mod session;
mod variants;

use std::{error::Error, fs::OpenOptions, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use self::{plan::Plan, session::Session};

type BoxError = Box<dyn Error + Send + Sync>;

/// Counts only when told to: see there.
#[global_allocator]
static ALLOCATOR: platform::Counting = platform::Counting;

/// Measures a trivial closure's way to another thread and back: latency of one call, and calls a second of many.
#[derive(Parser)]
#[command(bin_name = "cargo bench --bench hop --")]
struct Arguments {
    /// Two short rounds of everything, within a minute
    #[arg(long)]
    quick: bool,

    /// Also write the figures to FILE, one JSON object a line
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Only the variants with this name, or with this in their name; may be given again
    #[arg(long, value_name = "NAME")]
    filter: Vec<String>,

    /// Cargo passes it to every benchmark; it means nothing here
    #[arg(long, hide = true)]
    bench: bool,

    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// One run of one variant; the benchmark starts itself like this
    #[command(hide = true)]
    Run { order: String },
}

// Ctrl-C needs no handling: it ends this process and the run's, and nothing is written before all is measured.
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.role {
        Some(Role::Run { order }) => child::obey(order),
        None => measure(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hop: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<(), BoxError> {
    if cfg!(debug_assertions) {
        // As in `cargo test --all-targets`, where ten minutes of useless figures would only hold everybody up.
        eprintln!("hop: built without optimisation, so nothing is measured; use `cargo bench --bench hop`");
        return Ok(());
    }
    let variants = variants::matching(&arguments.filter)?;
    let mut json = arguments.json.as_ref().map(open_for_writing).transpose()?;
    let plan = if arguments.quick { Plan::quick() } else { Plan::full() };

    let tables = Session::start(plan).measure_all(&variants)?;

    print!("{}", report::text(&tables, plan));
    if let Some(file) = &mut json {
        report::write_json(file, &tables)?;
    }
    Ok(())
}

/// Opens without emptying: an interrupted run leaves the figures of the last one alone.
fn open_for_writing(path: &PathBuf) -> Result<std::fs::File, BoxError> {
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .open(path)
        .map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}
