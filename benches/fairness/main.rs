//! Measures what a quiet tenant notices of one that makes 1000 times as many calls, ten times what
//! the pool can run.
// Benchmarks measure real time, so the ban on the standard library's clock does not apply.
#![allow(clippy::disallowed_types)]

mod run;

use std::{fmt, process::ExitCode, time::Duration};

use serde::{Deserialize, Serialize};
use tower_offload_benches::{
    Compared, Goal, Limits, Options, Row, Spread, Table, Unit, child, find, interleave, number, others_text, range,
};

/// The quiet tenant alone.
const ALONE: &str = "alone";
/// Both tenants, without keys.
const FIFO: &str = "fifo";
/// Both tenants, each with a key.
const KEYS: &str = "keys";
/// Both tenants as groups. The greedy one has 1000 keys.
const GROUPS: &str = "groups";
/// The same 1000 keys without groups, which is how keys should not be used.
const SPLIT: &str = "split";

/// Calls of the greedy tenant for each one of the quiet tenant.
const GREED: u32 = 1000;
/// Calls of the greedy tenant that arrive while the pool runs one.
const LOAD: u32 = 10;
const THREADS: usize = 2;

/// Time that a round may take beyond the measurement.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Scene {
    /// The duration of a call, which sleeps.
    service_us: u64,
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "calls of {} ms, {THREADS} threads, {LOAD} x the capacity", number(self.service_us as f64 / 1e3))
    }
}

/// Figures of the quiet tenant, and of the pool.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Sample {
    /// Time from the call to its end, in service times. `None` if no call was answered.
    p50: Option<f64>,
    p99: Option<f64>,
    rejected_pct: f64,
    calls: usize,
    /// Share of the time in which threads ran calls, in percent.
    busy_pct: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    variant: String,
    scene: Scene,
    length: Duration,
}

fn main() -> ExitCode {
    let mut options = Options::parse("fairness", "Measures what a quiet tenant notices of a greedy one");
    if !options.filter.is_empty() {
        options.filter.extend([ALONE.to_owned(), FIFO.to_owned()]);
    }
    let scenes = || [1000, 5000].map(|service_us| Scene { service_us });
    let rows = || {
        let variants = [ALONE, FIFO, KEYS, GROUPS, SPLIT];
        scenes().into_iter().flat_map(|scene| variants.map(|name| Row::new(name, scene))).collect()
    };
    options.run("fairness", rows, run::run, |rows| {
        let (rounds, length) = if options.quick { (1, 3) } else { (5, 20) };
        let length = Duration::from_secs(length);
        interleave(rows, rounds, Unit::Row, |scene, variants| {
            child::run(&Order { variant: variants[0].to_owned(), scene: *scene, length }, length + TIMEOUT)
        })?;
        Ok(text(rows))
    })
}

const NOTES: &str = "\
Medians of the rounds (lowest-highest). p50, p99: of the quiet tenant, from call to end, in service times; moved: p99 minus
that of the tenant alone in the same round. rejected: calls of the quiet tenant. busy: share of the time in which threads ran
calls. alone: the quiet tenant only. split: 1000 keys that are not in a group count as 1000 tenants.
~: other processes used over 10 % of the cores in a round.";

fn text(rows: &[Row<Scene, Sample>]) -> String {
    let mut text = String::new();
    for rows in rows.chunk_by(|a, b| a.scene == b.scene) {
        let moved = |row: &Row<Scene, Sample>| {
            let alone = find(rows, |_| true, ALONE)?;
            row.compare(alone, |it| it.p99, |ours, alone| ours - alone)
        };
        let table = Table::new(
            format!("{}{}", rows[0].scene, others_text(rows)),
            rows,
            &[
                ("variant", &|row| row.variant.clone()),
                ("calls", &|row| row.rounds.iter().map(|round| round.sample.calls).sum::<usize>().to_string()),
                ("p50 (range)", &|row| range(row.spread(|it| it.p50))),
                ("p99 (range)", &|row| range(row.spread(|it| it.p99))),
                ("moved (range)", &|row| moved(row).map_or_else(|| "-".to_owned(), Spread::precise)),
                ("rejected % (range)", &|row| range(row.spread(|it| it.rejected_pct))),
                ("busy % (range)", &|row| range(row.spread(|it| it.busy_pct))),
            ],
        );
        text += &format!("{table}\n");
    }
    text + NOTES + "\n\n" + &Goal::table(GOALS, rows, Row::is_disturbed).to_string()
}

const fn moved(name: &'static str, variant: &'static str, scene: fn(&Scene) -> bool) -> Goal<Scene, Sample> {
    Goal {
        name,
        scene,
        variant,
        compared: Compared::Difference(ALONE),
        figure: |sample| sample.p99,
        limits: Limits::AtMost { must: 1.0, aim: 0.9 },
    }
}

const fn busy(name: &'static str, variant: &'static str) -> Goal<Scene, Sample> {
    Goal {
        name,
        scene: |it| it.service_us == 5000,
        variant,
        compared: Compared::Ratio(FIFO),
        figure: |sample| Some(sample.busy_pct),
        limits: Limits::AtLeast { must: 0.98, aim: 0.995 },
    }
}

const GOALS: &[Goal<Scene, Sample>] = &[
    moved("p99 of the quiet tenant moves by, keys, 1 ms, service times", KEYS, |it| it.service_us == 1000),
    moved("p99 of the quiet tenant moves by, keys, 5 ms, service times", KEYS, |it| it.service_us == 5000),
    moved("p99 of the quiet tenant moves by, groups, 1 ms, service times", GROUPS, |it| it.service_us == 1000),
    moved("p99 of the quiet tenant moves by, groups, 5 ms, service times", GROUPS, |it| it.service_us == 5000),
    busy("busy time, keys to fifo", KEYS),
    busy("busy time, groups to fifo", GROUPS),
    Goal {
        name: "rejected calls of the quiet tenant, groups, %",
        scene: |it| it.service_us == 5000,
        variant: GROUPS,
        compared: Compared::Alone,
        figure: |sample| Some(sample.rejected_pct),
        limits: Limits::AtMost { must: 0.1, aim: 0.0 },
    },
];
