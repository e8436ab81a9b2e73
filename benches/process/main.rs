//! Measures the pool of worker processes: the round trip of a job, the throughput of 64 KiB, and
//! the start of a process. Compares it with a pool of threads and with the process pools of Python.
// Benchmarks measure real time, so the ban on the standard library's clock does not apply.
#![allow(clippy::disallowed_types)]

mod load;
mod python;

use std::{fmt, process::ExitCode, time::Duration};

use serde::{Deserialize, Serialize};
use tower_offload_benches::{
    BoxError, Compared, Goal, Limits, Options, Row, Table, Unit, child, find, interleave, number, others_text, range,
};

/// The pool of processes, with one spare, the default. The variant that the others are compared
/// with.
const PROCESS: &str = "process";
/// The same with data as `String` instead of `Vec<u8>`.
const TEXT: &str = "process, text";
const NO_SPARE: &str = "process, no spare";
const THREADS: &str = "threads";
const EXECUTOR: &str = "ProcessPoolExecutor";
const EXECUTOR_SPAWN: &str = "ProcessPoolExecutor, spawn";
const POOL: &str = "multiprocessing.Pool";

/// Number of processes of a pool, or threads, except in scenes that start a process.
const PROCESSES: usize = 2;

/// Length of the data, in bytes.
const SIZE: usize = 64 * 1024;

/// Timeout of a run. A run that takes longer has lost a call.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Task {
    /// A number as input and output.
    Number,
    /// `SIZE` bytes as input.
    Input,
    /// `SIZE` bytes as output.
    Output,
    /// From the start of a pool of one process to its first result.
    Start,
    /// In a pool of one process, from the timeout of a job that is killed to the result of the next
    /// job, which waits meanwhile.
    Replacement,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Scene {
    task: Task,
    in_flight: usize,
}

/// The figures of one run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Sample {
    p50_us: f64,
    p99_us: f64,
    per_second: f64,
}

/// The lengths of the parts of one run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Phases {
    warm_up: Duration,
    measure: Duration,
    /// Number of processes that are started or replaced.
    starts: usize,
}

/// The run that a child process performs.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    variant: String,
    scene: Scene,
    phases: Phases,
}

fn main() -> ExitCode {
    load::init();
    let options = Options::parse("process", "Measures the pool of worker processes beside those of Python");
    let rows_of = |scene: Scene| scene.variants().map(move |name| Row::new(name, scene));
    let rows = || Scene::all().into_iter().flat_map(rows_of).collect();
    options.run("process", rows, run, |rows| {
        let python = python::version();
        if python.is_none() {
            eprintln!("process: not measured: the pools of Python, because there is no python3");
            rows.retain(|row| !is_python(&row.variant));
        }
        let (rounds, phases) = if options.quick { (2, Phases::SHORT) } else { (5, Phases::LONG) };
        interleave(rows, rounds, Unit::Scene, |scene, variants| {
            let order = |variant: &&str| Order { variant: (*variant).to_owned(), scene: *scene, phases };
            variants.iter().map(|variant| child::run(&order(variant), TIMEOUT)).collect()
        })?;
        Ok(text(rows, rounds, phases, python.as_deref().unwrap_or("no Python")))
    })
}

/// Runs one variant in one scene, in a child process.
fn run(order: Order) -> Result<Sample, BoxError> {
    if is_python(&order.variant) { python::run(&order) } else { load::run(&order) }
}

fn is_python(variant: &str) -> bool {
    [EXECUTOR, EXECUTOR_SPAWN, POOL].contains(&variant)
}

impl Scene {
    fn all() -> Vec<Self> {
        let of = |task| [1, 16].map(|in_flight| Self { task, in_flight });
        let mut scenes: Vec<Self> = [Task::Number, Task::Input, Task::Output].into_iter().flat_map(of).collect();
        scenes.extend([Task::Start, Task::Replacement].map(|task| Self { task, in_flight: 1 }));
        scenes
    }

    fn variants(self) -> impl Iterator<Item = &'static str> {
        let variants: &[&str] = match self.task {
            Task::Number => &[PROCESS, THREADS, EXECUTOR, POOL],
            Task::Input | Task::Output => &[PROCESS, TEXT, EXECUTOR, POOL],
            Task::Start => &[PROCESS, EXECUTOR, EXECUTOR_SPAWN, POOL],
            Task::Replacement => &[PROCESS, NO_SPARE],
        };
        variants.iter().copied()
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task, in_flight } = self;
        match task {
            Task::Number => write!(f, "round trip of a number, {in_flight} in flight"),
            Task::Input => write!(f, "64 KiB of input, {in_flight} in flight"),
            Task::Output => write!(f, "64 KiB of output, {in_flight} in flight"),
            Task::Start => f.write_str("start of a pool of one process, to its first result"),
            Task::Replacement => {
                f.write_str("one process: from the timeout of a job that is killed to the result of the next job")
            }
        }
    }
}

impl Phases {
    const SHORT: Self = Self { warm_up: Duration::from_millis(50), measure: Duration::from_millis(100), starts: 3 };
    const LONG: Self = Self { warm_up: Duration::from_millis(100), measure: Duration::from_millis(400), starts: 10 };
}

impl Sample {
    fn new(mut latencies: Vec<Duration>, elapsed: Duration) -> Self {
        latencies.sort_unstable();
        let last = latencies.len().saturating_sub(1);
        let quantile = |hundredths: usize| latencies.get(last * hundredths / 100).copied().unwrap_or_default();
        let us = |latency: Duration| latency.as_secs_f64() * 1e6;
        Self {
            p50_us: us(quantile(50)),
            p99_us: us(quantile(99)),
            per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
        }
    }
}

const NOTES: &str = "\
Medians of the rounds (lowest-highest). v process: the p50 (1 in flight) or the rate (16), divided by that of `process`
in the same round; the median is shown. ~: other processes used over 10 % of the cores in a round.";

fn text(rows: &[Row<Scene, Sample>], rounds: usize, phases: Phases, python: &str) -> String {
    let Phases { measure, starts, .. } = phases;
    let mut text = format!(
        "pools of {PROCESSES} processes or threads unless noted; {rounds} round(s) of {measure:?} or {starts} starts; {python}\n\n"
    );
    for rows in rows.chunk_by(|a, b| a.scene == b.scene) {
        text += &format!("{}\n", table(rows));
    }
    text + NOTES + "\n\n" + &Goal::table(GOALS, rows, Row::is_disturbed).to_string()
}

/// Returns the table of one scene.
fn table(rows: &[Row<Scene, Sample>]) -> Table {
    let scene = rows[0].scene;
    let (unit, per_unit) = match scene.task {
        Task::Number => ("k calls/s (range)", 1e3),
        Task::Input | Task::Output => ("MiB/s (range)", (1024 * 1024 / SIZE) as f64),
        Task::Start | Task::Replacement => ("a second (range)", 1.0),
    };
    let figure = move |sample: &Sample| if scene.in_flight == 1 { sample.p50_us } else { sample.per_second };
    let ratio = |row: &Row<Scene, Sample>| {
        let base = find(rows, |_| true, PROCESS);
        let ratio = base.and_then(|base| row.compare(base, figure, |other, ours| other / ours));
        ratio.map_or_else(|| "-".to_owned(), |ratio| number(ratio.median))
    };
    Table::new(
        format!("{scene}{}", others_text(rows)),
        rows,
        &[
            ("variant", &|row| row.variant.clone()),
            ("p50 us (range)", &|row| range(row.spread(|sample| sample.p50_us))),
            ("p99 us (range)", &|row| range(row.spread(|sample| sample.p99_us))),
            (unit, &|row| range(row.spread(|sample| sample.per_second / per_unit))),
            ("v process", &ratio),
        ],
    )
}

type ProcessGoal = Goal<Scene, Sample>;

/// Returns a goal for the rate of `process` with 16 calls in flight, as a multiple of that of
/// Python's executor.
const fn rate(name: &'static str, scene: fn(&Scene) -> bool) -> ProcessGoal {
    Goal {
        name,
        scene,
        variant: PROCESS,
        compared: Compared::Ratio(EXECUTOR),
        figure: |sample| Some(sample.per_second),
        limits: Limits::AtLeast { must: 1.0, aim: 2.0 },
    }
}

/// Returns a goal for the p50 of `process`.
const fn latency(
    name: &'static str,
    scene: fn(&Scene) -> bool,
    compared: Compared,
    (must, aim): (f64, f64),
) -> ProcessGoal {
    let figure = |sample: &Sample| Some(sample.p50_us);
    Goal { name, scene, variant: PROCESS, compared, figure, limits: Limits::AtMost { must, aim } }
}

const ROUND_TRIP: fn(&Scene) -> bool = |scene| (scene.task, scene.in_flight) == (Task::Number, 1);

const GOALS: &[ProcessGoal] = &[
    latency("round trip, p50, us", ROUND_TRIP, Compared::Alone, (100.0, 50.0)),
    latency("round trip, p50 v ProcessPoolExecutor", ROUND_TRIP, Compared::Ratio(EXECUTOR), (1.0, 0.5)),
    rate("16 numbers in flight, rate v ProcessPoolExecutor", |it| (it.task, it.in_flight) == (Task::Number, 16)),
    rate("16 x 64 KiB of input, rate v ProcessPoolExecutor", |it| (it.task, it.in_flight) == (Task::Input, 16)),
    rate("16 x 64 KiB of output, rate v ProcessPoolExecutor", |it| (it.task, it.in_flight) == (Task::Output, 16)),
    latency(
        "time to replace a process, with a spare v without",
        |it| it.task == Task::Replacement,
        Compared::Ratio(NO_SPARE),
        (0.5, 0.1),
    ),
];
