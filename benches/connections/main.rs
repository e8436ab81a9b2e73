//! Measures the cost of tracking on HTTP/2 over sockets: connections with 100 requests in flight
//! each, on one and two workers, compared with the same server without tracking.
// Benchmarks measure real time, so the ban on the standard library's clock does not apply.
#![allow(clippy::disallowed_types)]

mod client;
mod run;

use std::{fmt, process::ExitCode, time::Duration};

use serde::{Deserialize, Serialize};
use tower_offload_benches::{
    Compared, Goal, Limits, Options, Row, Spread, Table, Unit, child, find, interleave, others_text, range,
};

/// The variant that the others are compared with.
const PLAIN: &str = "plain";
/// A tracked connection without the layer.
const TRACKED: &str = "tracked";
/// A tracked connection with the layer, and a hook for each response.
const HOOK: &str = "tracked+hook";

/// The number of requests in flight on each connection.
const STREAMS: usize = 100;

/// Timeout of a round. A round that takes longer has lost a response.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Scene {
    connections: usize,
    /// Worker threads of the server. The client has one thread more.
    workers: usize,
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {STREAMS} streams, {} worker(s)", self.connections, self.workers)
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Sample {
    /// CPU time of one response, server and client together.
    cpu_us: f64,
    per_second: f64,
}

/// The run that a child process performs: all variants of a scene, in alternating slices.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    scene: Scene,
    variants: Vec<String>,
    slice: Duration,
    /// The number of slices of each variant, after one that is not measured.
    slices: usize,
}

fn main() -> ExitCode {
    let mut options =
        Options::parse("connections", "Measures the cost of tracking on many HTTP/2 connections over sockets");
    if !options.filter.is_empty() {
        options.filter.push(PLAIN.to_owned());
    }
    let scenes =
        || [1, 2].into_iter().flat_map(|workers| [1, 10, 50].map(|connections| Scene { connections, workers }));
    let rows = || scenes().flat_map(|scene| [PLAIN, TRACKED, HOOK].map(|name| Row::new(name, scene))).collect();
    options.run("connections", rows, run::run, |rows| {
        let (rounds, slice, slices) =
            if options.quick { (3, Duration::from_millis(50), 4) } else { (9, Duration::from_millis(100), 10) };
        interleave(rows, rounds, Unit::Scene, |scene, variants| {
            let variants = variants.iter().map(|name| (*name).to_owned()).collect();
            child::run(&Order { scene: *scene, variants, slice, slices }, TIMEOUT)
        })?;
        Ok(text(rows))
    })
}

const NOTES: &str = "\
Medians of the rounds (lowest-highest). cpu: of server and client together, per response. extra: that minus plain's in
the same round. rate: that divided by plain's. ~: other processes used over 10 % of the cores in a round.";

fn text(rows: &[Row<Scene, Sample>]) -> String {
    let mut text = String::new();
    for rows in rows.chunk_by(|a, b| a.scene == b.scene) {
        let compare = |row: &Row<Scene, Sample>, figure: fn(&Sample) -> f64, combine: fn(f64, f64) -> f64| {
            let spread = find(rows, |_| true, PLAIN).and_then(|plain| row.compare(plain, figure, combine));
            spread.map_or_else(|| "-".to_owned(), Spread::precise)
        };
        let table = Table::new(
            format!("{}{}", rows[0].scene, others_text(rows)),
            rows,
            &[
                ("variant", &|row| row.variant.clone()),
                ("cpu us (range)", &|row| range(row.spread(|it| it.cpu_us))),
                ("k/s (range)", &|row| range(row.spread(|it| it.per_second / 1e3))),
                ("extra cpu us (range)", &|row| compare(row, |it| it.cpu_us, |ours, plain| ours - plain)),
                ("rate (range)", &|row| compare(row, |it| it.per_second, |ours, plain| ours / plain)),
            ],
        );
        text += &format!("{table}\n");
    }
    text + NOTES + "\n\n" + &Goal::table(GOALS, rows, Row::is_disturbed).to_string()
}

const fn cpu(name: &'static str, scene: fn(&Scene) -> bool) -> Goal<Scene, Sample> {
    Goal {
        name,
        scene,
        variant: TRACKED,
        compared: Compared::Difference(PLAIN),
        figure: |sample| Some(sample.cpu_us),
        limits: Limits::AtMost { must: 1.0, aim: 0.5 },
    }
}

const fn rate(name: &'static str, scene: fn(&Scene) -> bool) -> Goal<Scene, Sample> {
    Goal {
        name,
        scene,
        variant: TRACKED,
        compared: Compared::Ratio(PLAIN),
        figure: |sample| Some(sample.per_second),
        limits: Limits::AtLeast { must: 0.95, aim: 0.98 },
    }
}

const GOALS: &[Goal<Scene, Sample>] = &[
    cpu("extra cpu of tracking, 50 connections, 1 worker, us", |it| (it.connections, it.workers) == (50, 1)),
    cpu("extra cpu of tracking, 50 connections, 2 workers, us", |it| (it.connections, it.workers) == (50, 2)),
    rate("rate of tracked to plain, 50 connections, 1 worker", |it| (it.connections, it.workers) == (50, 1)),
    rate("rate of tracked to plain, 50 connections, 2 workers", |it| (it.connections, it.workers) == (50, 2)),
];
