//! Measures how a pool affects the latency of other requests on this machine, and writes the result
//! as one HTML page: `cargo run --release -p tower-offload-benches --example latency_report`.
//!
//! The measurement is the same as in `cargo bench --bench latency`: real axum servers and an
//! open-loop generator. The page needs no other file and no script.

mod page;

use std::{fs, path::PathBuf, process::ExitCode};

use clap::Parser;
use tower_offload_benches::{
    BoxError, Internal, check_writable, finish,
    latency::{self, Arrivals, Row, Scene, pictures, plan, report, session},
    platform, read_json, write_json,
};

/// Measures the latency of /ping during heavy work, for each way to run the work, and writes the
/// results as a page.
#[derive(Parser)]
#[command(bin_name = "cargo run --release -p tower-offload-benches --example latency_report --")]
struct Arguments {
    /// Run the full measurement, which takes a quarter of an hour, instead of the quick one, which
    /// takes little over a minute
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

    /// Measure nothing; make the page from a file that `--json` wrote, here or in `cargo bench
    /// --bench latency`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["full", "poisson", "no_recovery", "no_sleeping", "json"])]
    from: Option<PathBuf>,

    /// Also write the figures to FILE, one JSON object per row
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// The file of the page
    #[arg(long, value_name = "FILE", default_value = "latency.html")]
    output: PathBuf,

    #[command(flatten)]
    internal: Internal,
}

fn main() -> ExitCode {
    // Must be called before any thread starts.
    let descriptors = platform::grow_file_table();
    let arguments = Arguments::parse();
    finish("error", || match arguments.internal.order()? {
        Some(order) => latency::serve(order),
        None => write(&arguments, descriptors),
    })
}

fn write(arguments: &Arguments, descriptors: usize) -> Result<(), BoxError> {
    check_writable(&arguments.output)?;
    let rows = match &arguments.from {
        Some(file) => read_json(file)?,
        None => measure(arguments, descriptors)?,
    };
    print!("{}", report::text(&rows));
    let output = &arguments.output;
    fs::write(output, page::of(&rows, &pictures::all(&rows)?))
        .map_err(|error| format!("cannot write {}: {error}", output.display()))?;
    println!("\nwritten to {}", output.display());
    Ok(())
}

fn measure(arguments: &Arguments, descriptors: usize) -> Result<Vec<Row>, BoxError> {
    if cfg!(debug_assertions) {
        return Err("built without optimisation, so figures would mean nothing; use `cargo run --release`".into());
    }
    arguments.json.as_deref().map(check_writable).transpose()?;
    let mut rows = plan::rows(!arguments.full, &[]);
    rows.retain(|row| match row.scene.scene {
        Scene::Sleeping => !arguments.no_sleeping,
        Scene::Recovery => !arguments.no_recovery,
        Scene::Cpu | Scene::Quota | Scene::Target => true,
    });
    let arrivals = if arguments.poisson { Arrivals::Poisson } else { Arrivals::Constant };
    let duration = if arguments.full { "a quarter of an hour" } else { "little over a minute" };
    eprintln!("this takes {duration}; the machine should be otherwise idle");
    session::measure(&mut rows, plan::Plan::new(!arguments.full), arrivals, descriptors)?;
    arguments.json.as_deref().map(|path| write_json(path, "latency", &rows)).transpose()?;
    Ok(rows)
}
