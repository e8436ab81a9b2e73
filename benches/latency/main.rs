//! Measures the latency of `/ping` while the same server does heavy jobs, for each way to run the
//! jobs.

use std::{num::NonZeroUsize, process::ExitCode};

use clap::Parser;
use tower_offload_benches::{
    Options, Picture,
    latency::{self, Arrivals, Scene, pictures, plan, report, session, target::TargetOptions},
    platform,
};

/// Measures the latency of /ping at 500 requests per second during heavy jobs, for each way to run
/// the jobs.
#[derive(Parser)]
#[command(bin_name = "cargo bench --bench latency --")]
struct Arguments {
    #[command(flatten)]
    options: Options,

    /// Let the jobs arrive at random (Poisson) instead of evenly spaced
    #[arg(long)]
    poisson: bool,

    /// Measure only this scene; may be repeated
    #[arg(long)]
    scene: Vec<Scene>,

    /// Measure each row N times, instead of one to three times
    #[arg(long, value_name = "N")]
    rounds: Option<NonZeroUsize>,

    #[command(flatten)]
    target: TargetOptions,
}

fn main() -> ExitCode {
    // Must be called before any thread starts.
    let descriptors = platform::grow_file_table();
    let Arguments { options, poisson, scene, rounds, target } = Arguments::parse();
    let arrivals = if poisson { Arrivals::Poisson } else { Arrivals::Constant };
    options.run(
        "latency",
        || {
            let mut rows = plan::rows(options.quick, &scene);
            if let Some(rounds) = rounds {
                rows.iter_mut().for_each(|row| row.scene.round_count = rounds.get());
            }
            rows
        },
        latency::serve,
        |rows| {
            match target.target {
                Some(address) => *rows = vec![target.measure(address, arrivals, descriptors)?],
                None => session::measure(rows, plan::Plan::new(options.quick), arrivals, descriptors)?,
            }
            Picture::write_all("latency", &pictures::all(rows)?)?;
            Ok(report::text(rows))
        },
    )
}
