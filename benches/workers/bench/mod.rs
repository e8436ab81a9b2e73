//! The rows, and what is measured in a round of each.

mod load;
mod report;
mod server;

use std::{
    collections::HashMap,
    fmt, fs,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tower_offload_benches::{
    BoxError, Options, Unit, interleave,
    latency::{Arrivals, Step, Work},
    platform,
};

use self::{
    load::{End, Outcome},
    server::{Server, VARIANTS, Variant},
};

/// The variant whose capacity is 100 %. All variants get the same requests per second.
const ONE_PROCESS: &str = "1 process x 2 threads";

/// The CPU time of a request on an idle core: that of a page which is rendered.
const JOB: Duration = Duration::from_millis(2);

/// The load, in percent of the capacity.
const LOAD_PCT: f64 = 70.0;

/// Number of connections that are opened one after the other and kept open.
const OPEN: usize = 200;

/// Number of connections that wait in the queue when a worker is killed.
const QUEUED: usize = 100;

/// Time between two kills. A worker that was ready for a second is restarted without a delay.
const KILL_INTERVAL: Duration = Duration::from_millis(1200);

/// Requests that are due this short before the first kill count as neither, since the next worker
/// may answer them.
const UNCOUNTED: Duration = Duration::from_millis(200);

type Row = tower_offload_benches::Row<Scene, Sample>;

/// Everything that the rows have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Scene {
    /// Requests per second that are 100 %, measured before the first round.
    capacity_per_second: f64,
    /// Value of `net.ipv4.tcp_migrate_req`. `None`: the system has no such setting.
    tcp_migrate_req: Option<u8>,
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{LOAD_PCT} % of {:.0} requests a second", self.capacity_per_second)
    }
}

/// The figures of one round.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Sample {
    /// Share of the connections under load that the busiest worker accepted, in percent.
    busiest_pct: Option<f64>,
    /// Latency of the requests under load.
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    /// Share of the connections that are kept open which one worker accepted, in percent.
    open_busiest_pct: Option<f64>,
    /// Requests whose connection was refused, for each kill.
    refused: f64,
    /// Requests whose connection was opened and ended without a response, for each kill.
    lost: f64,
    /// Latency of the requests that were answered during the kills.
    kills_p99_ms: Option<f64>,
    /// Share of the connections in the queue that were answered although a worker was killed.
    queued_answered_pct: f64,
    /// The p99 of the generator's own lateness.
    generator_late_p99_ms: Option<f64>,
}

/// How long the parts of a round take.
#[derive(Debug, Clone, Copy)]
struct Plan {
    rounds: usize,
    capacity: Duration,
    warm_up: Duration,
    measure: Duration,
    kills: u32,
}

impl Plan {
    fn new(is_quick: bool) -> Self {
        let (rounds, capacity, measure, kills) = if is_quick { (1, 1, 1, 1) } else { (3, 4, 4, 2) };
        let (capacity, measure) = (Duration::from_secs(capacity), Duration::from_secs(measure));
        Self { rounds, capacity, warm_up: Duration::from_millis(500), measure, kills }
    }
}

pub(crate) fn main() -> ExitCode {
    // Must be called before any thread starts.
    platform::grow_file_table();
    let about = "Measures one process beside several workers that serve one port";
    let options = Options::parse("workers", about);
    options.run("workers", rows, server::serve, |rows| {
        measure(rows, Plan::new(options.quick))?;
        Ok(report::text(rows))
    })
}

fn rows() -> Vec<Row> {
    let setting = fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req");
    let scene =
        Scene { capacity_per_second: 0.0, tcp_migrate_req: setting.ok().and_then(|value| value.trim().parse().ok()) };
    VARIANTS.iter().map(|variant| Row::new(variant.name, scene.clone())).collect()
}

fn measure(rows: &mut [Row], plan: Plan) -> Result<(), BoxError> {
    let work = Work::lasting(JOB);
    let capacity = {
        let server = Server::start(server::find(ONE_PROCESS)?, work)?;
        load::capacity(server.address, plan.capacity)?
    };
    eprintln!("workers: {capacity:.0} requests per second are 100 %; {work:?}");
    rows.iter_mut().for_each(|row| row.scene.capacity_per_second = capacity);
    interleave(rows, plan.rounds, Unit::Row, |scene, variants| {
        Ok(vec![round(server::find(variants[0])?, work, scene, plan)?])
    })
}

fn round(variant: &'static Variant, work: Work, scene: &Scene, plan: Plan) -> Result<Sample, BoxError> {
    let mut server = Server::start(variant, work)?;
    let open = load::keep_open(server.address, OPEN)?;
    let first_kill = plan.warm_up + plan.measure;
    let outcomes = load_and_kill(&mut server, scene, plan)?;
    drop(server);
    let queued_answered_pct = kill_with_queue(variant, work)?;

    let answered = |from: Duration, to: Duration| {
        outcomes.iter().filter(move |it| it.worker().is_some() && from <= it.due && it.due < to)
    };
    let measured = || answered(plan.warm_up, first_kill.saturating_sub(UNCOUNTED));
    let count = |end: End| outcomes.iter().filter(|it| it.end == end).count();
    let for_each_kill = |count: usize| count as f64 / f64::from(plan.kills);
    Ok(Sample {
        busiest_pct: busiest_pct(measured().filter_map(Outcome::worker)),
        p50_ms: quantile_ms(measured().map(|it| it.latency), 0.5),
        p99_ms: quantile_ms(measured().map(|it| it.latency), 0.99),
        open_busiest_pct: busiest_pct(open),
        refused: for_each_kill(count(End::Refused)),
        lost: for_each_kill(count(End::Lost) + count(End::Open)),
        kills_p99_ms: quantile_ms(answered(first_kill, Duration::MAX).map(|it| it.latency), 0.99),
        queued_answered_pct,
        generator_late_p99_ms: quantile_ms(outcomes.iter().map(|it| it.late), 0.99),
    })
}

/// Loads the server at random times, and kills workers at the end.
fn load_and_kill(server: &mut Server, scene: &Scene, plan: Plan) -> Result<Vec<Outcome>, BoxError> {
    let first_kill = plan.warm_up + plan.measure;
    let step = Step { length: Duration::MAX, per_second: scene.capacity_per_second * LOAD_PCT / 100.0 };
    let due = Arrivals::Poisson.due_times(&[step], first_kill + KILL_INTERVAL * plan.kills);
    let (address, start) = (server.address, Instant::now() + Duration::from_millis(20));
    thread::scope(|scope| {
        let killer = scope.spawn(|| {
            for kill in 0..plan.kills {
                let at = start + first_kill + KILL_INTERVAL * kill;
                thread::sleep(at.saturating_duration_since(Instant::now()));
                server.kill_one()?;
            }
            Ok::<_, BoxError>(())
        });
        let outcomes = load::run(address, &due, start)?;
        killer.join().map_err(|_| "the thread that kills has panicked")??;
        Ok(outcomes)
    })
}

/// Kills a worker while connections wait in the queue, since every worker is stopped. Returns the
/// share of them that were answered, in percent.
fn kill_with_queue(variant: &'static Variant, work: Work) -> Result<f64, BoxError> {
    let mut server = Server::start(variant, work)?;
    server.stop_all()?;
    let queued = load::Queued::open(server.address, QUEUED)?;
    server.kill_one()?;
    server.continue_all()?;
    Ok(100.0 * queued.answered() as f64 / QUEUED as f64)
}

/// Returns the share of the worker that occurs most often, in percent.
fn busiest_pct(workers: impl IntoIterator<Item = u32>) -> Option<f64> {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    workers.into_iter().for_each(|worker| *counts.entry(worker).or_default() += 1);
    let all: usize = counts.values().sum();
    counts.into_values().max().map(|busiest| 100.0 * busiest as f64 / all as f64)
}

/// Returns a quantile by the nearest rank.
fn quantile_ms(durations: impl Iterator<Item = Duration>, quantile: f64) -> Option<f64> {
    let mut sorted: Vec<Duration> = durations.collect();
    sorted.sort_unstable();
    let rank = (sorted.len() as f64 * quantile).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).map(|duration| duration.as_secs_f64() * 1e3)
}
