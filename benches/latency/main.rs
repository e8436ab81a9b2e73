//! What `/ping` feels while a server computes: real axum servers, an open-loop generator, one row for each way to run work.
//!
//! `cargo bench --bench latency -- --help` lists the options; `benches/README.md` says how it measures and why so.

// Beside this file, so that others can have it without this command line.
#[path = "mod.rs"]
mod latency;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use self::latency::{
    BoxError,
    arrivals::Arrivals,
    client::Order,
    json, picture,
    plan::{Plan, Scene},
    platform, report, server,
    session::Session,
    stop::Stop,
    target::{self, Load, Target},
    variants,
};

/// Measures the latency of /ping at 500 requests a second beside heavy jobs, for each way to run the jobs.
#[derive(Parser)]
#[command(bin_name = "cargo bench --bench latency --")]
struct Arguments {
    /// Some variants and one short round, in little over a minute
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

    /// Only this scene; may be given again
    #[arg(long)]
    scene: Vec<Scene>,

    #[command(flatten)]
    target: TargetArguments,

    /// Cargo passes it to every benchmark; it means nothing here
    #[arg(long, hide = true)]
    bench: bool,

    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(clap::Args)]
#[command(next_help_heading = "A server of yours")]
struct TargetArguments {
    /// Load this server on this machine instead, such as http://127.0.0.1:3000
    #[arg(long, value_name = "URL", conflicts_with_all = ["quick", "filter", "scene"])]
    target: Option<Target>,

    /// What should stay quick
    #[arg(long, value_name = "PATH", default_value = "/ping", requires = "target")]
    ping_path: String,

    /// The heavy work
    #[arg(long, value_name = "PATH", default_value = "/job", requires = "target")]
    job_path: String,

    /// POST this text to the job's path, instead of GET
    #[arg(long, value_name = "TEXT", requires = "target")]
    job_body: Option<String>,

    /// How many of the first a second
    #[arg(long, value_name = "RATE", default_value_t = 500.0, requires = "target")]
    pings: f64,

    /// How many of the second a second
    #[arg(long, value_name = "RATE", default_value_t = 50.0, requires = "target")]
    jobs: f64,

    /// For how long, at most an hour
    #[arg(long, default_value_t = 10, requires = "target", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

#[derive(Subcommand)]
enum Role {
    /// The server of one variant; the benchmark starts itself like this
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

fn measure(arguments: &Arguments, descriptors: usize, stop: &Stop) -> Result<(), BoxError> {
    if cfg!(debug_assertions) {
        // As in `cargo test --all-targets`, where a quarter of an hour of useless figures would only hold everybody up.
        eprintln!("latency: built without optimisation, so nothing is measured; use `cargo bench --bench latency`");
        return Ok(());
    }
    let mut json = arguments.json.as_deref().map(json::open_for_writing).transpose()?;
    let arrivals = if arguments.poisson { Arrivals::Poisson } else { Arrivals::Constant };
    stop.on_interrupt()?;

    let records = match &arguments.target.target {
        Some(target) => target::measure(target, &arguments.target.load(arrivals), descriptors, stop)?,
        None => {
            let variants = variants::matching(&arguments.filter)?;
            let mut plan = if arguments.quick { Plan::quick() } else { Plan::full() };
            plan.jobs = arrivals;
            plan.keep(&arguments.scene);
            Session::start(plan, descriptors, stop)?.measure(&variants)?
        }
    };

    print!("{}", report::text(&records));
    if let Some(file) = &mut json {
        json::write(file, &records)?;
    }
    for path in picture::write(&picture::default_directory(), &picture::all(&records)?)? {
        eprintln!("latency: picture in {}", path.display());
    }
    Ok(())
}

impl TargetArguments {
    fn load(&self, arrivals: Arrivals) -> Load {
        let job = Order { path: self.job_path.clone(), body: self.job_body.clone().map(Into::into) };
        let ping = Order::get(self.ping_path.as_str());
        Load { ping, job, pings: self.pings, jobs: self.jobs, arrivals, seconds: self.seconds }
    }
}
