//! What a pool does for the latency of your neighbours, measured on this machine, as one HTML page:
//! `cargo run --release --example latency_report`.
//!
//! It is the benchmark of `benches/latency` (real axum servers, an open-loop generator) in a form that can be sent to somebody:
//! the page needs no other file and no script.

#[path = "../../benches/latency/mod.rs"]
mod latency;
mod page;
mod words;

use std::{fs, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use self::latency::{
    BoxError,
    arrivals::Arrivals,
    json, picture,
    plan::{Plan, Scene},
    platform,
    record::Record,
    report, server,
    session::Session,
    stop::Stop,
    variants,
};

/// Measures how long /ping takes beside heavy work, for each way to run the work, and writes a page about it.
#[derive(Parser)]
#[command(bin_name = "cargo run --release --example latency_report --")]
struct Arguments {
    /// Everything that the benchmark knows, in a quarter of an hour, instead of some of it in little over a minute
    #[arg(long)]
    full: bool,

    /// Let the jobs arrive at random (Poisson) instead of evenly
    #[arg(long)]
    poisson: bool,

    /// Leave out the overload and what comes after it
    #[arg(long)]
    no_recovery: bool,

    /// Leave out the jobs that sleep
    #[arg(long)]
    no_sleeping: bool,

    /// Measure nothing: make the page of what `--json` wrote, or `cargo bench --bench latency -- --json FILE`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["full", "poisson", "no_recovery", "no_sleeping", "json"])]
    from: Option<PathBuf>,

    /// Also write the figures to FILE, one JSON object a line
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Where the page goes
    #[arg(long, value_name = "FILE", default_value = "latency.html")]
    output: PathBuf,

    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// The server of one variant; this program starts itself like this
    #[command(hide = true)]
    Serve { variant: String, work: String },
}

fn main() -> ExitCode {
    // Before any thread starts, in both roles; see the function.
    let descriptors = platform::grow_file_table();
    let arguments = Arguments::parse();
    let stop = Stop::new();
    let outcome = match &arguments.role {
        Some(Role::Serve { variant, work }) => server::serve(variant, work),
        None => write(&arguments, descriptors, &stop),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if stop.is_wanted() => {
            eprintln!("error: interrupted; the servers are gone and nothing was written");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(arguments: &Arguments, descriptors: usize, stop: &Stop) -> Result<(), BoxError> {
    let cannot = |error| format!("cannot write {}: {error}", arguments.output.display());
    // Before anything is measured: a page that cannot be written is known at once.
    let is_new = !arguments.output.exists();
    fs::OpenOptions::new().append(true).create(true).open(&arguments.output).map_err(cannot)?;
    let records = match &arguments.from {
        Some(file) => json::read(file),
        None => measure(arguments, descriptors, stop),
    };
    if records.is_err() && is_new {
        let _ = fs::remove_file(&arguments.output);
    }
    let records = records?;
    print!("{}", report::text(&records));
    let page = page::of(&records, &picture::all(&records)?);
    fs::write(&arguments.output, page).map_err(cannot)?;
    println!("\nwritten to {}", arguments.output.display());
    Ok(())
}

fn measure(arguments: &Arguments, descriptors: usize, stop: &Stop) -> Result<Vec<Record>, BoxError> {
    if cfg!(debug_assertions) {
        return Err("built without optimisation, so that figures would mean nothing: say `cargo run --release`".into());
    }
    let mut json = arguments.json.as_deref().map(json::open_for_writing).transpose()?;
    let mut plan = if arguments.full { Plan::full() } else { Plan::quick() };
    plan.jobs = if arguments.poisson { Arrivals::Poisson } else { Arrivals::Constant };
    let left_out = |scene: Scene| match scene {
        Scene::Recovery => arguments.no_recovery,
        Scene::Sleeping => arguments.no_sleeping,
        Scene::Cpu | Scene::Target => false,
    };
    plan.parts.retain(|part| !left_out(part.scene));
    stop.on_interrupt()?;
    eprintln!(
        "this takes {}; the machine should have nothing else to do",
        if arguments.full { "a quarter of an hour" } else { "little over a minute" }
    );
    let records = Session::start(plan, descriptors, stop)?.measure(&variants::matching(&[])?)?;
    if let Some(file) = &mut json {
        json::write(file, &records)?;
    }
    Ok(records)
}
