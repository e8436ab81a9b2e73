//! What the layer and the tracked connection cost a response, beside the same server without them.
//!
//! `cargo bench --bench response -- --help` lists the options; `benches/README.md` says how it measures and why so.
// A benchmark measures real time, so the ban on the standard library's clock is not for it.
#![allow(clippy::disallowed_types)]

#[path = "../hop/bystanders.rs"]
mod bystanders;
mod child;
mod client;
mod clock;
mod goals;
mod plan;
#[path = "../hop/platform.rs"]
mod platform;
mod report;
mod rows;
mod server;
mod session;
#[path = "../latency/spread.rs"]
mod spread;
mod variants;

use std::{error::Error, fs::OpenOptions, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use self::plan::Plan;

type BoxError = Box<dyn Error + Send + Sync>;

/// Counts only when told to: see there.
#[global_allocator]
static ALLOCATOR: platform::Counting = platform::Counting;

/// Measures what a response costs a server: plain, behind the layer, on a tracked connection, with a hook and with a task.
#[derive(Parser)]
#[command(bin_name = "cargo bench --bench response --")]
struct Arguments {
    /// Three short rounds of everything, within a minute
    #[arg(long)]
    quick: bool,

    /// Also write the figures to FILE, one JSON object a line
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Only the variants with this name, or with this in their name; may be given again. `plain` is always measured
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
    /// One round of a protocol; the benchmark starts itself like this
    #[command(hide = true)]
    Run { order: String },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.role {
        Some(Role::Run { order }) => child::obey(order),
        None => measure(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("response: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<(), BoxError> {
    if cfg!(debug_assertions) {
        // As in `cargo test --all-targets`, where minutes of useless figures would only hold everybody up.
        eprintln!("response: built without optimisation, so nothing is measured; use `cargo bench --bench response`");
        return Ok(());
    }
    let variants = variants::matching(&arguments.filter)?;
    let mut json = arguments.json.as_ref().map(open_for_writing).transpose()?;
    let plan = if arguments.quick { Plan::quick() } else { Plan::full() };

    let tables = session::measure_all(plan, &variants)?;

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
