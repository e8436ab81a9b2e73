//! How many instructions a call costs, counted by valgrind: a figure that a busy machine does not change.
//!
//! `cargo bench --bench instructions -- --help` lists the options; `benches/README.md` says what is counted and what not.

mod baseline;
mod callgrind;
mod hardware;
mod peers;
mod report;
mod scenes;

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use self::{baseline::Baseline, scenes::Scene};

type BoxError = Box<dyn Error + Send + Sync>;

const BASELINE: &str = "benches/instructions/baseline.json";

/// Counts the instructions of a call: of the parts that run on one thread, exactly; beside other ways to a thread, roughly.
#[derive(Parser)]
#[command(bin_name = "cargo bench --bench instructions --")]
struct Arguments {
    /// Only what is exact, and fail if a call costs more than FILE says
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = BASELINE, conflicts_with = "write")]
    check: Option<PathBuf>,

    /// Only what is exact, and write it to FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = BASELINE)]
    write: Option<PathBuf>,

    /// Cargo passes it to every benchmark; it means nothing here
    #[arg(long, hide = true)]
    bench: bool,

    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// Makes so many calls; the benchmark starts itself like this, under valgrind
    #[command(hide = true)]
    Run { scene: String, calls: u64 },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.role {
        Some(Role::Run { scene, calls }) => Scene::named(scene).and_then(|scene| (scene.make)(*calls)).map(|()| true),
        None => count(&arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether all is well.
fn count(arguments: &Arguments) -> Result<bool, BoxError> {
    if cfg!(debug_assertions) {
        // As in `cargo test --all-targets`.
        eprintln!("instructions: built without optimisation, so nothing is counted; use `cargo bench`");
        return Ok(true);
    }
    if !callgrind::is_there() {
        eprintln!("instructions: SKIPPED, nothing was counted: there is no `valgrind` here");
        return Ok(true);
    }
    // First: an unreadable file is to be known before the minute of counting.
    let before = arguments.check.as_ref().map(|path| Baseline::read(path)).transpose()?;
    let now = Baseline::count()?;
    if let Some(path) = &arguments.write {
        now.write(path)?;
    }
    if let Some(before) = before {
        let (text, all_well) = report::comparison(&before, &now);
        print!("{text}");
        return Ok(all_well);
    }
    print!("{}", report::exact(&now));
    if arguments.write.is_none() {
        print!("{}", report::peers(&peers::count()?));
    }
    Ok(true)
}
