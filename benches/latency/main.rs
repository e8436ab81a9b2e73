//! What `/ping` feels while a server computes: real axum servers, an open-loop generator, one row for each way to run work.
//!
//! `cargo bench --bench latency -- --help` lists the options; `benches/README.md` says how it measures and why so.
// A benchmark measures real time, so the ban on the standard library's clock is not for it.
#![allow(clippy::disallowed_types)]

mod arrivals;
mod bystanders;
mod capacity;
mod client;
mod generator;
mod picture;
mod plan;
mod platform;
mod process;
mod report;
mod rows;
mod server;
mod session;
mod stop;
mod tally;
mod variants;
mod work;

use std::{error::Error, fs::OpenOptions, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use self::{arrivals::Arrivals, plan::Plan, session::Session, stop::Stop};

type BoxError = Box<dyn Error + Send + Sync>;

/// Measures the latency of /ping at 500 requests a second beside 5 ms CPU jobs, for each way to run the jobs.
#[derive(Parser)]
#[command(bin_name = "cargo bench --bench latency --")]
struct Arguments {
    /// One short round of everything, within a minute
    #[arg(long)]
    quick: bool,

    /// Let the jobs arrive at random (Poisson) instead of evenly
    #[arg(long)]
    poisson: bool,

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
    /// The server of one variant; the benchmark starts itself like this
    #[command(hide = true)]
    Serve { variant: String, iterations: u64 },
}

fn main() -> ExitCode {
    // Before any thread starts, in both roles; see the function.
    let descriptors = platform::grow_file_table();
    let arguments = Arguments::parse();
    let stop = Stop::new();
    let outcome = match &arguments.role {
        Some(Role::Serve { variant, iterations }) => serve(variant, *iterations),
        None => measure(&arguments, descriptors, &stop),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if stop.is_wanted() => {
            eprintln!("latency: interrupted; the servers are gone and nothing was written");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("latency: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(variant: &str, iterations: u64) -> Result<(), BoxError> {
    let variant = variants::named(variant).ok_or_else(|| format!("there is no variant `{variant}`"))?;
    server::serve(variant, work::Work::of(iterations))
}

fn measure(arguments: &Arguments, descriptors: usize, stop: &Stop) -> Result<(), BoxError> {
    if cfg!(debug_assertions) {
        // As in `cargo test --all-targets`, where ten minutes of useless figures would only hold everybody up.
        eprintln!("latency: built without optimisation, so nothing is measured; use `cargo bench --bench latency`");
        return Ok(());
    }
    let variants = variants::matching(&arguments.filter)?;
    let mut json = arguments.json.as_ref().map(open_for_writing).transpose()?;
    let mut plan = if arguments.quick { Plan::quick() } else { Plan::full() };
    if arguments.poisson {
        plan.jobs = Arrivals::Poisson;
    }
    stop.on_interrupt()?;

    let session = Session::start(plan, descriptors, stop)?;
    let rows = session.measure_all(&variants)?;
    let capacity_after = session.measure_capacity()?;

    print!("{}", report::table(&rows, session.conditions(), capacity_after));
    if let Some(file) = &mut json {
        report::write_json(file, &rows, session.conditions())?;
    }
    let path = picture::default_path();
    picture::draw(&path, &rows, session.conditions())?;
    eprintln!("latency: picture in {}", path.display());
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
