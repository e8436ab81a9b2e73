//! The command line, and what happens around a measurement.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::{BoxError, json};

/// What each of these benchmarks takes.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A few short rounds of everything, within a minute or two; for seeing that things work, not for figures
    #[arg(long)]
    pub(crate) quick: bool,

    /// Also write the figures to FILE, one JSON object a line
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Only the variants with this name, or with this in their name; may be given again
    #[arg(long, value_name = "NAME")]
    pub(crate) filter: Vec<String>,

    /// Cargo passes it to every benchmark; it means nothing here
    #[arg(long, hide = true)]
    bench: bool,

    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// One run; the benchmark starts itself like this
    #[command(hide = true)]
    Run { order: String },
}

/// What was measured: for people, and a line of JSON each.
#[derive(Debug)]
pub(crate) struct Figures<R> {
    pub(crate) text: String,
    pub(crate) records: Vec<R>,
}

/// As the options say: all of it, or one run of it in this process.
// Ctrl-C needs no handling: it ends this process and the run's, and nothing is written before all is measured.
pub(crate) fn run<R: Serialize>(
    bench: &str,
    options: &Options,
    obey: impl FnOnce(&str) -> Result<(), BoxError>,
    measure: impl FnOnce(&Options) -> Result<Figures<R>, BoxError>,
) -> ExitCode {
    let outcome = match &options.role {
        Some(Role::Run { order }) => obey(order),
        None => show(bench, options, measure),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{bench}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show<R: Serialize>(
    bench: &str,
    options: &Options,
    measure: impl FnOnce(&Options) -> Result<Figures<R>, BoxError>,
) -> Result<(), BoxError> {
    if cfg!(debug_assertions) {
        // As in `cargo test --all-targets`, where minutes of useless figures would only hold everybody up.
        eprintln!("{bench}: built without optimisation, so nothing is measured; use `cargo bench --bench {bench}`");
        return Ok(());
    }
    let mut json = options.json.as_deref().map(json::open_for_writing).transpose()?;
    let figures = measure(options)?;
    print!("{}", figures.text);
    if let Some(file) = &mut json {
        json::write(file, &figures.records)?;
    }
    Ok(())
}
