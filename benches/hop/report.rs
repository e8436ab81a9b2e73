//! The tables and the goals.

use std::{fmt::Write, time::Duration};

use tower_offload_benches::{Compared, Goal, Limits, Row, Spread, Table, find, others_text, range};

use crate::{Flavor, Mode, Pin, Sample, Scene, THREADS};

/// The variants that each row is compared with.
const BASES: [&str; 4] = ["spawn_blocking", "spawn_blocking/capped", "crossbeam+oneshot", "rayon+oneshot"];

const NOTES: &str = "\
Medians of the rounds (lowest-highest). Ratios are computed within each round; the median is shown.
v: the p50 (sequential) or the rate (throughput), divided by that of the variant in the heading.
spawn_blocking has tokio's default of up to 512 threads; spawn_blocking/capped has as many as the pools.";

pub(crate) fn text(rows: &[Row<Scene, Sample>], rounds: usize, measured: Duration) -> String {
    let mut text = format!(
        "a trivial closure's way to another thread and back; pools of {THREADS} unless noted; {rounds} round(s) of {measured:?}\n\n"
    );
    for rows in rows.chunk_by(|a, b| a.scene == b.scene) {
        let _ = writeln!(text, "{}", table(rows));
    }
    let goals = Goal::table(GOALS, rows, Row::is_disturbed);
    let _ = write!(text, "{NOTES}\n~: other processes used over 10 % of the cores in a round.\n\n{goals}");
    text
}

/// Returns the table of one scene.
fn table(rows: &[Row<Scene, Sample>]) -> Table {
    let scene = rows[0].scene;
    let figure = move |sample: &Sample| match scene.mode {
        Mode::Sequential => sample.p50_us,
        Mode::Throughput => sample.ops_per_s,
    };
    let ratio = |row: &Row<Scene, Sample>, base: &str| {
        let ratio = find(rows, |_| true, base).and_then(|base| row.compare(base, figure, |ours, base| ours / base));
        ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.3}", ratio.median))
    };
    Table::new(
        format!("{scene}{}", others_text(rows)),
        rows,
        &[
            ("variant", &|row| row.variant.clone()),
            ("p50 us (range)", &|row| range(row.spread(|sample| sample.p50_us))),
            ("p99 us (range)", &|row| range(row.spread(|sample| sample.p99_us))),
            ("k calls/s (range)", &|row| range(row.spread(|sample| sample.ops_per_s / 1e3))),
            ("allocs", &|row| median(row.spread(|sample| sample.allocs_per_op))),
            (&format!("v {}", BASES[0]), &|row| ratio(row, BASES[0])),
            (&format!("v {}", BASES[1]), &|row| ratio(row, BASES[1])),
            (&format!("v {}", BASES[2]), &|row| ratio(row, BASES[2])),
            (&format!("v {}", BASES[3]), &|row| ratio(row, BASES[3])),
        ],
    )
}

fn median(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "-".to_owned(), |spread| format!("{:.2}", spread.median))
}

type HopGoal = Goal<Scene, Sample>;

/// Returns a goal for the p50 of `variant` as a multiple of that of `base`.
const fn latency(
    name: &'static str,
    scene: fn(&Scene) -> bool,
    variant: &'static str,
    base: &'static str,
    (must, aim): (f64, f64),
) -> HopGoal {
    let figure = |sample: &Sample| Some(sample.p50_us);
    Goal { name, scene, variant, compared: Compared::Ratio(base), figure, limits: Limits::AtMost { must, aim } }
}

/// Returns a goal for the rate of `threads` as a multiple of that of `base`.
const fn rate(name: &'static str, scene: fn(&Scene) -> bool, base: &'static str, (must, aim): (f64, f64)) -> HopGoal {
    let (variant, figure) = ("threads", |sample: &Sample| Some(sample.ops_per_s));
    Goal { name, scene, variant, compared: Compared::Ratio(base), figure, limits: Limits::AtLeast { must, aim } }
}

const CROSS: fn(&Scene) -> bool = |scene| scene.pin == Pin::Cross;
const ONE: fn(&Scene) -> bool = |scene| scene.pin == Pin::One;
const CURRENT: fn(&Scene) -> bool = |scene| *scene == Scene::throughput(Flavor::CurrentThread, 256);
const MULTI: fn(&Scene) -> bool = |scene| *scene == Scene::throughput(Flavor::MultiThread, 256);

const GOALS: &[HopGoal] = &[
    latency("hop p50 v spawn_blocking, across cores", CROSS, "threads", "spawn_blocking", (0.75, 0.55)),
    latency("hop p50 v spawn_blocking, on one core", ONE, "threads", "spawn_blocking", (0.95, 0.75)),
    latency("hop p50 v crossbeam+oneshot, across cores", CROSS, "threads", "crossbeam+oneshot", (1.0, 0.9)),
    latency("hop p50 v crossbeam+oneshot, on one core", ONE, "threads", "crossbeam+oneshot", (1.0, 0.9)),
    latency("the whole layer v a bare hop, across cores", CROSS, "offload", "threads", (1.25, 1.1)),
    latency("the whole layer v a bare hop, on one core", ONE, "offload", "threads", (1.25, 1.1)),
    rate("256 calls v spawn_blocking, current_thread", CURRENT, "spawn_blocking", (5.0, 14.0)),
    rate("256 calls v spawn_blocking, multi_thread(2)", MULTI, "spawn_blocking", (8.0, 15.0)),
    rate("256 calls v spawn_blocking/capped, current_thread", CURRENT, "spawn_blocking/capped", (2.0, 3.0)),
    rate("256 calls v spawn_blocking/capped, multi_thread(2)", MULTI, "spawn_blocking/capped", (2.0, 3.0)),
    rate("256 calls v rayon+oneshot, current_thread", CURRENT, "rayon+oneshot", (1.5, 2.5)),
    rate("256 calls v crossbeam+oneshot, current_thread", CURRENT, "crossbeam+oneshot", (1.0, 1.2)),
    rate("256 calls v crossbeam+oneshot, multi_thread(2)", MULTI, "crossbeam+oneshot", (1.0, 1.2)),
    rate("256 calls v rayon+oneshot, multi_thread(2)", MULTI, "rayon+oneshot", (1.3, 1.6)),
    Goal {
        name: "us of a round trip to a process, across cores",
        scene: CROSS,
        variant: "process",
        compared: Compared::Alone,
        figure: |sample| Some(sample.p50_us),
        limits: Limits::AtMost { must: 100.0, aim: 50.0 },
    },
    // 0.5 us are 5 % of a call that takes 10 us.
    Goal {
        name: "us that an adaptive layer adds to a short call, on one core",
        scene: ONE,
        variant: "adaptive",
        compared: Compared::Difference("inline"),
        figure: |sample| Some(sample.p50_us),
        limits: Limits::AtMost { must: 0.5, aim: 0.25 },
    },
    Goal {
        name: "allocations the layer adds to a call",
        scene: CURRENT,
        variant: "offload",
        compared: Compared::Difference("inline"),
        // Rounded, because a growing queue allocates a few times in thousands of calls.
        figure: |sample| Some((sample.allocs_per_op * 50.0).round() / 50.0),
        limits: Limits::AtMost { must: 2.0, aim: 1.0 },
    },
];
