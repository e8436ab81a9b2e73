//! The figures as a table and as JSON.

use std::{
    fmt::Write as _,
    fs::File,
    io::{Seek, Write as _},
};

use serde::Serialize;

use crate::{
    BoxError,
    arrivals::Arrivals,
    plan::{DEADLINE, JOB, LOADS, PING_RATE, TOLERATED_LATENESS, TOLERATED_OTHERS},
    rows::{Row, Spread},
    session::Conditions,
};

const NOTES: &[&str] = &[
    "Medians of the rounds (lowest-highest). Latency counts from the intended start.",
    "pings open: not answered with a 200 when the run ended; they count at the age they had then.",
    "late ms: how late the generator itself was, p99 of its worst round.",
    "others %: what processes that are no part of this had of all cores, in the worst round.",
];

/// Every row, also those we lose, and what the figures depend on.
pub(crate) fn table(rows: &[Row], conditions: &Conditions, capacity_after: f64) -> String {
    let Conditions { plan, cores, priority, capacity } = conditions;
    let mut text = String::new();
    let mut line =
        |line: String| writeln!(text, "{}", line.trim_end()).expect("a string takes all that fits in memory");
    line(format!(
        "/ping at {PING_RATE:.0} a second beside {} ms CPU jobs ({}); open loop, {} round(s) of {:.1} s; {cores} cores",
        JOB.as_millis(),
        plan.jobs,
        plan.rounds,
        plan.phases.measure.as_secs_f64(),
    ));
    line(format!(
        "100 % is {capacity:.0} jobs a second (closed loop, offload/threads; after the last round: {capacity_after:.0})"
    ));
    line(format!("the generator runs at {priority}"));
    line(String::new());
    line(format!(
        "{:<22} {:>5} {:>22} {:>26} {:>16} {:>8} {:>19} {:>12} {:>9} {:>9}",
        "variant",
        "load",
        "/ping p50 ms (range)",
        "/ping p99 ms (range)",
        "jobs ok/offered",
        "refused",
        &format!("% within {} ms", DEADLINE.as_millis()),
        "pings open",
        "late ms",
        "others %",
    ));
    for row in rows {
        line(format!(
            "{:<22} {:>3} % {:>22} {:>26} {:>16} {:>8} {:>19} {:>12} {:>9} {:>9}{}{}",
            row.variant.name,
            row.load,
            with_range(row.ping_at(0.5)),
            with_range(row.ping_at(0.99)),
            format!("{:.0}/{:.0}", ok(row).median, offered(row).median),
            format!("{:.0}", row.over_runs(|run| run.work.refused as f64).median),
            with_range(row.over_runs(|run| run.work.within_deadline_percent())),
            format!("{:.0}", row.over_runs(|run| run.ping.unanswered() as f64).median),
            number(lateness(row).max),
            row.others().map_or_else(|| "?".to_owned(), |others| format!("{others:.0}")),
            if row.is_reliable() { "" } else { " !" },
            if row.is_undisturbed() { "" } else { " ~" },
        ));
    }
    line(String::new());
    for note in NOTES {
        line((*note).to_owned());
    }
    if rows.iter().any(|row| !row.is_reliable()) {
        line(format!(
            "! unreliable: the generator itself was over {} ms late (p99) in a round.",
            TOLERATED_LATENESS.as_millis()
        ));
    }
    if rows.iter().any(|row| !row.is_undisturbed()) {
        line(format!("~ disturbed: others had over {TOLERATED_OTHERS:.0} % of the cores in a round."));
    }
    let drift = (capacity_after / conditions.capacity - 1.0).abs();
    if drift > TOLERATED_DRIFT {
        line(format!(
            "! the capacity moved by {:.0} % while this ran: the loads are not what they say. Measure again when the \
             machine is quiet.",
            drift * 100.0
        ));
    }
    let highest = LOADS.into_iter().max().unwrap_or_default();
    for other in ["inline", "spawn_blocking", "spawn_blocking/capped", "tower-resilience"] {
        if let Some(ratio) = ratio(rows, highest, "offload/threads", other) {
            line(format!(
                "/ping p99 at {highest} %, offload/threads : {other} = {:.5} ({:.5}-{:.5})",
                ratio.median, ratio.min, ratio.max
            ));
        }
    }
    text
}

/// How far the capacity at the end may be from that at the start, as a share, before the loads are in doubt.
const TOLERATED_DRIFT: f64 = 0.1;

/// Replaces what is in the file.
pub(crate) fn write_json(file: &mut File, rows: &[Row], conditions: &Conditions) -> Result<(), BoxError> {
    file.set_len(0)?;
    file.rewind()?;
    for row in rows {
        serde_json::to_writer(&mut *file, &Record::of(row, conditions))?;
        file.write_all(b"\n")?;
    }
    Ok(file.flush()?)
}

/// A line of JSON: medians of the rounds, and of the generator's lateness the worst.
#[derive(Serialize)]
struct Record {
    bench: &'static str,
    variant: &'static str,
    load_pct: u32,
    ping_p50_ms: f64,
    ping_p99_ms: f64,
    ping_p99_min_ms: f64,
    ping_p99_max_ms: f64,
    ping_unanswered: u64,
    work_ok: u64,
    work_offered: u64,
    work_refused: u64,
    within_deadline_pct: f64,
    generator_late_p99_ms: f64,
    poisson: bool,
    capacity_per_second: f64,
    rounds: usize,
    others_cpu_max_pct: Option<f64>,
    reliable: bool,
}

impl Record {
    fn of(row: &Row, conditions: &Conditions) -> Self {
        let p99 = row.ping_at(0.99);
        Self {
            bench: "latency",
            variant: row.variant.name,
            load_pct: row.load,
            ping_p50_ms: row.ping_at(0.5).median,
            ping_p99_ms: p99.median,
            ping_p99_min_ms: p99.min,
            ping_p99_max_ms: p99.max,
            ping_unanswered: row.over_runs(|run| run.ping.unanswered() as f64).median.round() as u64,
            work_ok: ok(row).median.round() as u64,
            work_offered: offered(row).median.round() as u64,
            work_refused: row.over_runs(|run| run.work.refused as f64).median.round() as u64,
            within_deadline_pct: row.over_runs(|run| run.work.within_deadline_percent()).median,
            generator_late_p99_ms: lateness(row).max,
            poisson: conditions.plan.jobs == Arrivals::Poisson,
            capacity_per_second: conditions.capacity,
            rounds: row.runs.len(),
            others_cpu_max_pct: row.others(),
            reliable: row.is_reliable() && row.is_undisturbed(),
        }
    }
}

fn ok(row: &Row) -> Spread {
    row.over_runs(|run| run.work.ok as f64)
}

fn offered(row: &Row) -> Spread {
    row.over_runs(|run| run.work.offered as f64)
}

fn lateness(row: &Row) -> Spread {
    row.over_runs(|run| run.lateness_ms())
}

/// Within each round, for only there were both under the same conditions. None if either was not measured.
fn ratio(rows: &[Row], load: u32, ours: &str, other: &str) -> Option<Spread> {
    let find = |name| rows.iter().find(|row| row.load == load && row.variant.name == name);
    let (ours, other) = (find(ours)?, find(other)?);
    let p99s = ours.runs.iter().zip(&other.runs);
    Some(Spread::of(p99s.map(|(ours, other)| ours.ping.latency_ms(0.99) / other.ping.latency_ms(0.99))))
}

fn with_range(spread: Spread) -> String {
    if spread.min == spread.max {
        number(spread.median)
    } else {
        format!("{} ({}-{})", number(spread.median), number(spread.min), number(spread.max))
    }
}

/// With three digits or so, as more would claim what was not measured.
pub(crate) fn number(value: f64) -> String {
    match value {
        value if value < 9.995 => format!("{value:.2}"),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}
