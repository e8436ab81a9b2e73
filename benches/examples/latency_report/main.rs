//! Measures how a pool affects the latency of other requests on this machine, and what a quiet
//! tenant notices of a greedy one, and writes the result as one HTML page: `cargo run --release -p
//! tower-offload-benches --example latency_report`.
//!
//! The measurements are the same as in `cargo bench --bench latency` and `--bench fairness`. The
//! page needs no other file and no script.

mod page;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use serde::Deserialize;
use tower_offload_benches::{
    BoxError, Internal, JsonRows, check_writable, fairness, finish, json_lines,
    latency::{self, Arrivals, Scene, plan, report, session},
    platform, write_text,
};

/// Measures the latency of /ping during heavy work, for each way to run the work, and the wait of a
/// quiet tenant beside a greedy one. Writes the results as a page.
#[derive(Parser)]
#[command(bin_name = "cargo run --release -p tower-offload-benches --example latency_report --")]
struct Arguments {
    /// Run the full measurement, which takes over half an hour, instead of the quick one, which
    /// takes about two minutes
    #[arg(long)]
    full: bool,

    /// Let the jobs arrive at random (Poisson) instead of evenly spaced
    #[arg(long)]
    poisson: bool,

    /// Leave out the overload and the recovery
    #[arg(long)]
    no_recovery: bool,

    /// Leave out the jobs that sleep
    #[arg(long)]
    no_sleeping: bool,

    /// Leave out the quiet and the greedy tenant
    #[arg(long)]
    no_fairness: bool,

    /// Measure nothing; make the page from a file that `--json` wrote, here or in `cargo bench
    /// --bench latency` or `--bench fairness`; may be repeated
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["full", "poisson", "no_recovery", "no_sleeping", "no_fairness", "json"]
    )]
    from: Vec<PathBuf>,

    /// Also write the figures to FILE, one JSON object per row
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// The file of the page
    #[arg(long, value_name = "FILE", default_value = "latency.html")]
    output: PathBuf,

    #[command(flatten)]
    internal: Internal,
}

/// What a child process does. The two have different fields.
#[derive(Deserialize)]
#[serde(untagged)]
enum Order {
    Latency(latency::ServerOrder),
    Fairness(fairness::Order),
}

/// The rows of a page.
struct Figures {
    latency: Vec<latency::Row>,
    fairness: Vec<fairness::Row>,
}

fn main() -> ExitCode {
    // Must be called before any thread starts.
    let descriptors = platform::grow_file_table();
    let arguments = Arguments::parse();
    finish("error", || match arguments.internal.order()? {
        Some(Order::Latency(order)) => latency::serve(order),
        Some(Order::Fairness(order)) => {
            println!("{}", serde_json::to_string(&fairness::run(order)?)?);
            Ok(())
        }
        None => write(&arguments, descriptors),
    })
}

fn write(arguments: &Arguments, descriptors: usize) -> Result<(), BoxError> {
    check_writable(&arguments.output)?;
    let figures = if arguments.from.is_empty() { measure(arguments, descriptors)? } else { read(&arguments.from)? };
    let Figures { latency, fairness } = &figures;
    if !latency.is_empty() {
        println!("{}", report::text(latency));
    }
    if !fairness.is_empty() {
        println!("{}", fairness::text(fairness));
    }
    write_text(&arguments.output, &page::of(&figures)?)?;
    println!("written to {}", arguments.output.display());
    Ok(())
}

fn read(files: &[PathBuf]) -> Result<Figures, BoxError> {
    let mut rows = JsonRows::default();
    files.iter().try_for_each(|file| rows.read(file))?;
    let figures = Figures { latency: rows.take("latency")?, fairness: rows.take("fairness")? };
    rows.finish()?;
    Ok(figures)
}

fn measure(arguments: &Arguments, descriptors: usize) -> Result<Figures, BoxError> {
    if cfg!(debug_assertions) {
        return Err("built without optimisation, so figures would mean nothing; use `cargo run --release`".into());
    }
    arguments.json.as_deref().map(check_writable).transpose()?;
    let mut latency = plan::rows(!arguments.full, &[]);
    latency.retain(|row| match row.scene.scene {
        Scene::Sleeping => !arguments.no_sleeping,
        Scene::Recovery => !arguments.no_recovery,
        Scene::Cpu | Scene::Quota | Scene::Target => true,
    });
    let arrivals = if arguments.poisson { Arrivals::Poisson } else { Arrivals::Constant };
    let duration = if arguments.full { "over half an hour" } else { "about two minutes" };
    eprintln!("this takes {duration}; the machine should be otherwise idle");
    session::measure(&mut latency, plan::Plan::new(!arguments.full), arrivals, descriptors)?;
    let mut fairness = if arguments.no_fairness { Vec::new() } else { fairness::rows() };
    fairness::measure(&mut fairness, !arguments.full)?;
    if let Some(path) = &arguments.json {
        write_text(path, &(json_lines("latency", &latency)? + &json_lines("fairness", &fairness)?))?;
    }
    Ok(Figures { latency, fairness })
}
