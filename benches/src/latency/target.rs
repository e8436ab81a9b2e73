//! The same load against a server that the user runs on this machine.

use std::{net::SocketAddr, str::FromStr, time::Duration};

use tokio::{runtime, time};

use super::{
    Arrivals, Phases, Row, Sample, Scene, Setting,
    client::{Client, Reply, Request},
    generator::{self, Step, Stream},
    plan,
};
use crate::{BoxError, Round, platform};

/// Maximum number of requests per second. A generator on the same machine cannot send more of them
/// on time.
const MAX_RATE: f64 = 100_000.0;

/// Maximum time for the server to respond to the first requests.
const FIRST_RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The address of a server on this machine, parsed from a URL such as `http://127.0.0.1:3000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target(SocketAddr);

impl FromStr for Target {
    type Err = BoxError;

    fn from_str(url: &str) -> Result<Self, BoxError> {
        let authority = url.strip_prefix("http://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        let authority = authority.ok_or_else(|| format!("`{url}` does not begin with http://"))?;
        // Replaces the only name that is supported, so that no name is resolved.
        let authority = authority.replace("localhost", "127.0.0.1");
        let with_port = [authority.clone(), format!("{authority}:80")];
        let address = with_port.iter().find_map(|it| it.parse::<SocketAddr>().ok());
        address.filter(|address| address.ip().is_loopback()).map(Self).ok_or_else(|| {
            let reason = "an open-loop load is an attack on a server that did not ask for it, so the target must be \
                          on this machine, such as http://127.0.0.1:3000, http://localhost:3000 or http://[::1]:3000; \
                          paths are given by --ping-path and --job-path";
            format!("`{url}`: {reason}").into()
        })
    }
}

/// Options for the load on a server that the user runs.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "A server of yours")]
pub struct TargetOptions {
    /// Load this server on this machine instead, such as http://127.0.0.1:3000
    #[arg(long, value_name = "URL", conflicts_with_all = ["quick", "filter", "scene"])]
    pub target: Option<Target>,

    /// The path whose latency is measured
    #[arg(long, value_name = "PATH", default_value = "/ping", requires = "target")]
    ping_path: String,

    /// The path of the heavy work
    #[arg(long, value_name = "PATH", default_value = "/job", requires = "target")]
    job_path: String,

    /// POST this text to the job's path, instead of GET
    #[arg(long, value_name = "TEXT", requires = "target")]
    job_body: Option<String>,

    /// Pings per second
    #[arg(long, value_name = "RATE", default_value_t = 500.0, requires = "target")]
    pings: f64,

    /// Jobs per second
    #[arg(long, value_name = "RATE", default_value_t = 50.0, requires = "target")]
    jobs: f64,

    /// The length of the run, at most an hour
    #[arg(long, default_value_t = 10, requires = "target", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

impl TargetOptions {
    /// Measures one round.
    pub fn measure(&self, target: Target, arrivals: Arrivals, descriptors: usize) -> Result<Row, BoxError> {
        for (name, rate) in [("--pings", self.pings), ("--jobs", self.jobs)] {
            if !(rate > 0.0 && rate <= MAX_RATE) {
                return Err(format!("{name} must be above 0 and at most {MAX_RATE}, got {rate}").into());
            }
        }
        let ping = Request::get(&self.ping_path);
        let job = Request { path: self.job_path.clone(), body: self.job_body.clone().map(Into::into) };
        check(target, [&ping, &job])?;
        let phases = Phases { warm_up_ms: 1000, measure_ms: 1000 * self.seconds, grace_ms: 2000 };
        let mut setting = Setting { jobs_per_second: self.jobs, ..plan::setting(Scene::Target, None, 1, phases) };
        setting.conditions.poisson = arrivals == Arrivals::Poisson;
        setting.conditions.priority = generator::with_priority(platform::raise_priority).to_owned();
        eprintln!("latency: loads http://{} for {} s and 1 s of warm-up", target.0, self.seconds);
        let pings = Stream::constant(ping, self.pings);
        let steps = vec![Step { length: Duration::MAX, per_second: self.jobs }];
        let jobs = Stream::new(job, arrivals, steps);
        let observation = generator::run(target.0, [pings, jobs], phases, descriptors)?;
        let sample = Sample::of(&observation, &setting);
        let mut row = Row::new(format!("http://{}{}", target.0, self.job_path), setting);
        // The server is another process, so the share of other processes would include it.
        row.rounds.push(Round { sample, others_cpu_pct: None });
        Ok(row)
    }
}

/// Checks that the server is running and has both paths. Otherwise the benchmark would measure a
/// 404.
fn check(Target(address): Target, requests: [&Request; 2]) -> Result<(), BoxError> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::new(address, 1);
        for request in requests {
            let path = &request.path;
            if !path.starts_with('/') {
                return Err(format!("path `{path}` must begin with /").into());
            }
            let reply = time::timeout(FIRST_RESPONSE_TIMEOUT, client.send(request)).await;
            match reply.map_err(|_| format!("http://{address}{path} sent no response in {FIRST_RESPONSE_TIMEOUT:?}"))? {
                Ok(Reply::Success) => {}
                Ok(Reply::Other(status)) => {
                    let method = if request.body.is_some() { "POST" } else { "GET" };
                    let remedy = "see --ping-path, --job-path and --job-body";
                    return Err(format!("{method} http://{address}{path} returned {status}: {remedy}").into());
                }
                Err(error) => return Err(format!("no HTTP/1 server at {address}: {error}").into()),
            }
        }
        Ok(())
    })
}
