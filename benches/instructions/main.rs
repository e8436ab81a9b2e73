//! Counts the instructions of a call with valgrind: a figure that other load on the machine does
//! not change.

mod baseline;
mod counters;
mod peers;
mod responses;
mod scenes;

use std::{
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use clap::Parser;
use tower_offload_benches::{BoxError, Internal, finish};

use self::{baseline::Baseline, scenes::Scene};

/// Path of the baseline, relative to the package, in which cargo runs benchmarks.
const BASELINE: &str = "instructions/baseline.json";

/// Counts the instructions of a call: exactly for calls that run on one thread, and roughly for
/// other ways to run a closure on another thread.
#[derive(Parser)]
#[command(bin_name = "cargo bench --bench instructions --")]
struct Arguments {
    /// Count only the exact scenes, and fail if a call costs more than FILE allows
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = BASELINE, conflicts_with = "write")]
    check: Option<PathBuf>,

    /// Count only the exact scenes, and write the counts to FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = BASELINE)]
    write: Option<PathBuf>,

    /// Print the scenes and count nothing
    #[arg(long)]
    list: bool,

    #[command(flatten)]
    internal: Internal,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    finish("instructions", || match arguments.internal.order::<(String, u64)>()? {
        Some((scene, calls)) => (Scene::named(&scene)?.make)(calls),
        None => count(&arguments),
    })
}

fn count(arguments: &Arguments) -> Result<(), BoxError> {
    if arguments.list {
        scenes::EXACT.iter().for_each(|scene| println!("instructions: exact: {}", scene.name));
        peers::SCENES.iter().for_each(|scene| println!("instructions: peers: {}", scene.name));
        return Ok(());
    }
    if cfg!(debug_assertions) {
        // `cargo test --all-targets` runs benchmarks without optimisation.
        eprintln!("instructions: built without optimisation, so nothing is counted; use `cargo bench`");
        return Ok(());
    }
    if !Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_ok_and(|it| it.success()) {
        eprintln!("instructions: SKIPPED, nothing was counted: `valgrind` is not installed");
        return Ok(());
    }
    // Reads the file first, so that an unreadable one is reported before a minute of counting.
    let before = arguments.check.as_ref().map(|path| Baseline::read(path)).transpose()?;
    let now = Baseline::count()?;
    if let Some(before) = before {
        return now.check(&before);
    }
    print!("{}", now.table());
    match &arguments.write {
        Some(path) => now.write(path),
        None => peers::print(),
    }
}
