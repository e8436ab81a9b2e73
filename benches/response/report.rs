//! The tables and the goals.

use std::fmt::Write;

use tower_offload_benches::{Compared, Goal, Limits, Row, Spread, Table, find, others_text, range};

use crate::{PLAIN, Phases, Protocol, Sample, Scene};

const NOTES: &str = "\
Medians of the rounds (lowest-highest), of server and client together, which share a thread.
extra: the figure minus that of plain in the same round. cpu: of all threads of the process.
~: other processes used over 10 % of the cores in a round.";

pub(crate) fn text(rows: &[Row<Scene, Sample>], rounds: usize, phases: Phases) -> String {
    let Phases { slice, slices, .. } = phases;
    let mut text = format!(
        "a response of 5 bytes, in memory, server and client on one thread; {rounds} round(s) of {slices} slices of {slice:?}\n\n"
    );
    for rows in rows.chunk_by(|a, b| a.scene == b.scene) {
        let extra = |row: &Row<Scene, Sample>, figure: fn(&Sample) -> f64| {
            row.compare(find(rows, |_| true, PLAIN)?, figure, |ours, plain| ours - plain)
        };
        let precise = |spread: Option<Spread>| spread.map_or_else(|| "-".to_owned(), Spread::precise);
        let median = |spread: Option<Spread>| spread.map_or_else(|| "-".to_owned(), |it| format!("{:.2}", it.median));
        let table = Table::new(
            format!("{}{}", rows[0].scene, others_text(rows)),
            rows,
            &[
                ("variant", &|row| row.variant.clone()),
                ("cpu ns (range)", &|row| range(row.spread(|it| it.cpu_ns))),
                ("wall ns (range)", &|row| range(row.spread(|it| it.wall_ns))),
                ("extra cpu us (range)", &|row| precise(extra(row, |it| it.cpu_ns / 1e3))),
                ("allocs", &|row| median(row.spread(|it| it.allocations))),
                ("extra", &|row| median(extra(row, |it| it.allocations))),
            ],
        );
        let _ = writeln!(text, "{table}");
    }
    let goals = Goal::table(GOALS, rows, Row::is_disturbed);
    let _ = write!(text, "{NOTES}\n\n{goals}");
    text
}

/// Returns a goal for the CPU time that a hook on a tracked connection adds to a response, in
/// microseconds.
const fn hook(name: &'static str, scene: fn(&Scene) -> bool) -> Goal<Scene, Sample> {
    Goal {
        name,
        scene,
        variant: "tracked+hook",
        compared: Compared::Difference(PLAIN),
        figure: |sample| Some(sample.cpu_ns / 1e3),
        limits: Limits::AtMost { must: 0.9, aim: 0.5 },
    }
}

const GOALS: &[Goal<Scene, Sample>] = &[
    hook("hook on a tracked connection, http1, us", |it| it.protocol == Protocol::Http1),
    hook("hook on a tracked connection, http1/pipelined, us", |it| it.protocol == Protocol::Http1Pipelined),
    hook("hook on a tracked connection, http2, us", |it| it.protocol == Protocol::Http2),
];
