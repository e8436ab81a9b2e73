//! The figures as tables and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{
    goals::GOALS,
    plan::{Mode, Plan, Scene, THREADS, TOLERATED_OTHERS},
    rows::{Row, Table},
    spread::{Spread, number, with_range},
};

/// What the rows are compared with.
const BASES: [&str; 4] = ["spawn_blocking", "spawn_blocking/capped", "crossbeam+oneshot", "rayon+oneshot"];

const NOTES: &[&str] = &[
    "Medians of the rounds (lowest-highest). Ratios are taken within a round, then the median.",
    "p50 v, rate v: the median latency or the calls a second, divided by that of the variant that heads the column.",
    "spawn_blocking is tokio's default of 512 threads; spawn_blocking/capped has as many as the pools.",
];

/// Every row, also those we lose.
pub(crate) fn text(tables: &[Table], plan: Plan) -> String {
    let mut text = format!(
        "a trivial closure's way to another thread and back; pools of {THREADS}; {} round(s) of {:.2} s\n\n",
        plan.rounds,
        plan.phases.measure.as_secs_f64(),
    );
    for table in tables {
        write_table(&mut text, table);
    }
    for note in NOTES {
        line(&mut text, note);
    }
    if tables.iter().any(|table| !table.is_undisturbed()) {
        line(&mut text, &format!("~ disturbed: others had over {TOLERATED_OTHERS:.0} % of the cores in a round."));
    }
    line(&mut text, "");
    write_goals(&mut text, tables);
    text
}

fn write_table(text: &mut String, table: &Table) {
    let disturbed = match table.others() {
        Some(others) => format!(" (others had up to {others:.0} %)"),
        None => String::new(),
    };
    line(text, &format!("{}{disturbed}{}", table.scene, if table.is_undisturbed() { "" } else { " ~" }));
    let compared = match table.scene.mode {
        Mode::Sequential => "p50",
        Mode::Throughput => "rate",
    };
    line(
        text,
        &format!(
            "{:<22} {:>20} {:>21} {:>23} {:>7}  {compared:>4} v:  {}",
            "variant",
            "p50 us (range)",
            "p99 us (range)",
            "k calls/s (range)",
            "allocs",
            BASES.join("  "),
        ),
    );
    for row in &table.rows {
        let mut cells = format!(
            "{:<22} {:>20} {:>21} {:>23} {:>7.2}         ",
            row.variant.name,
            range(row.over_samples(|sample| sample.p50_us)),
            range(row.over_samples(|sample| sample.p99_us)),
            range(row.over_samples(|sample| sample.ops_per_s / 1e3)),
            median(row.over_samples(|sample| sample.allocs_per_op)),
        );
        for base in BASES {
            let ratio = table.ratio(row.variant.name, base).map_or_else(|| "-".to_owned(), |it| ratio(it.median));
            write!(cells, "  {ratio:>0$}", base.len()).expect("a string takes all that fits in memory");
        }
        line(text, &cells);
    }
    line(text, "");
}

fn write_goals(text: &mut String, tables: &[Table]) {
    line(
        text,
        &format!(
            "{:<52} {:>8} {:>8} {:>9} {:<20} verdict",
            "threads, or the whole layer", "must", "aim", "measured", "(range)"
        ),
    );
    for goal in GOALS {
        let wanted = |value: f64| format!("{} {value}", goal.sign());
        let (measured, range, verdict, disturbed) = match goal.measured(tables) {
            Some(spread) => (
                ratio(spread.median),
                format!("({}-{})", ratio(spread.min), ratio(spread.max)),
                goal.verdict(spread.median),
                if goal.is_disturbed(tables) { " ~" } else { "" },
            ),
            None => ("-".to_owned(), String::new(), "not measured", ""),
        };
        line(
            text,
            &format!(
                "{:<52} {:>8} {:>8} {measured:>9} {range:<20} {verdict}{disturbed}",
                goal.name,
                wanted(goal.must),
                wanted(goal.aim),
            ),
        );
    }
}

fn line(text: &mut String, line: &str) {
    text.push_str(line.trim_end());
    text.push('\n');
}

/// A line of JSON each.
pub(crate) fn records(tables: &[Table]) -> Vec<Record> {
    tables.iter().flat_map(|table| table.rows.iter().map(|row| Record::of(table, row))).collect()
}

/// A line of JSON: medians of the rounds.
#[derive(Serialize)]
pub(crate) struct Record {
    bench: &'static str,
    variant: &'static str,
    #[serde(flatten)]
    scene: Scene,
    p50_us: f64,
    p99_us: f64,
    ops_per_s: f64,
    allocs_per_op: f64,
    p50_min_us: f64,
    p50_max_us: f64,
    ops_per_s_min: f64,
    ops_per_s_max: f64,
    rounds: usize,
    others_cpu_max_pct: Option<f64>,
}

impl Record {
    fn of(table: &Table, row: &Row) -> Self {
        let p50 = row.over_samples(|sample| sample.p50_us);
        let rate = row.over_samples(|sample| sample.ops_per_s);
        Self {
            bench: "hop",
            variant: row.variant.name,
            scene: table.scene,
            p50_us: median(p50),
            p99_us: median(row.over_samples(|sample| sample.p99_us)),
            ops_per_s: median(rate),
            allocs_per_op: median(row.over_samples(|sample| sample.allocs_per_op)),
            p50_min_us: p50.map_or(f64::NAN, |it| it.min),
            p50_max_us: p50.map_or(f64::NAN, |it| it.max),
            ops_per_s_min: rate.map_or(f64::NAN, |it| it.min),
            ops_per_s_max: rate.map_or(f64::NAN, |it| it.max),
            rounds: row.samples.len(),
            others_cpu_max_pct: table.others(),
        }
    }
}

fn range(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "-".to_owned(), with_range)
}

/// NaN, which is null in JSON, of nothing.
fn median(spread: Option<Spread>) -> f64 {
    spread.map_or(f64::NAN, |spread| spread.median)
}

/// With one digit more where the goals are close to one another.
fn ratio(value: f64) -> String {
    if value < 9.9995 { format!("{value:.3}") } else { number(value) }
}
