//! The figures as tables and as JSON.

use serde::Serialize;

use crate::{
    goals::GOALS,
    plan::{Plan, Protocol, TOLERATED_OTHERS},
    rows::{Row, Table, cpu_us},
    spread::{Spread, with_range},
};

const NOTES: &[&str] = &[
    "Medians of the rounds (lowest-highest), of server and client together, which share a thread.",
    "extra: less what plain takes in the same round. cpu: of all threads of the process.",
];

/// Every row, also those we lose.
pub(crate) fn text(tables: &[Table], plan: Plan) -> String {
    let mut text = format!(
        "a response of a few bytes, in memory, server and client on one thread; {} round(s) of {} turns of {} ms\n\n",
        plan.rounds,
        plan.phases.turns,
        plan.phases.turn.as_millis(),
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
    line(text, &format!("{}{disturbed}{}", table.protocol, if table.is_undisturbed() { "" } else { " ~" }));
    line(
        text,
        &format!(
            "{:<18} {:>18} {:>18} {:>20} {:>7} {:>7}",
            "variant", "cpu ns (range)", "wall ns (range)", "extra cpu us (range)", "allocs", "extra",
        ),
    );
    for row in &table.rows {
        let [cpu, wall] = [|it: &_| cpu_us(it) * 1e3, |it: &crate::rows::Sample| it.wall_ns]
            .map(|figure| row.over_samples(figure).map_or_else(|| "-".to_owned(), with_range));
        let extra = table.extra(row, cpu_us).map_or_else(|| "-".to_owned(), fine);
        let allocations = median(row.over_samples(|it| it.allocations));
        let extra_allocations = median(table.extra(row, |it| it.allocations));
        line(
            text,
            &format!(
                "{:<18} {cpu:>18} {wall:>18} {extra:>20} {allocations:>7.2} {extra_allocations:>7.2}",
                row.variant.name
            ),
        );
    }
    line(text, "");
}

fn write_goals(text: &mut String, tables: &[Table]) {
    line(text, &format!("{:<52} {:>8} {:>8} {:>20}  verdict", "extra cpu", "must", "aim", "measured (range)"));
    for goal in GOALS {
        let (measured, verdict, disturbed) = match goal.measured(tables) {
            Some(spread) => {
                (fine(spread), goal.verdict(spread.median), if goal.is_disturbed(tables) { " ~" } else { "" })
            }
            None => ("-".to_owned(), "not measured", ""),
        };
        let [must, aim] = [goal.must, goal.aim].map(|wanted| format!("<= {wanted}"));
        line(text, &format!("{:<52} {must:>8} {aim:>8} {measured:>20}  {verdict}{disturbed}", goal.name));
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

/// A line of JSON: medians of the rounds. Times are CPU times where the name does not say otherwise.
#[derive(Serialize)]
pub(crate) struct Record {
    bench: &'static str,
    variant: &'static str,
    protocol: Protocol,
    ns_per_response: f64,
    wall_ns_per_response: f64,
    extra_us: f64,
    extra_us_min: f64,
    extra_us_max: f64,
    allocs_per_response: f64,
    extra_allocs: f64,
    rounds: usize,
    others_cpu_max_pct: Option<f64>,
}

impl Record {
    fn of(table: &Table, row: &Row) -> Self {
        let extra = table.extra(row, cpu_us);
        Self {
            bench: "response",
            variant: row.variant.name,
            protocol: table.protocol,
            ns_per_response: median(row.over_samples(|it| it.cpu_ns)),
            wall_ns_per_response: median(row.over_samples(|it| it.wall_ns)),
            extra_us: median(extra),
            extra_us_min: extra.map_or(f64::NAN, |it| it.min),
            extra_us_max: extra.map_or(f64::NAN, |it| it.max),
            allocs_per_response: median(row.over_samples(|it| it.allocations)),
            extra_allocs: median(table.extra(row, |it| it.allocations)),
            rounds: row.samples.len(),
            others_cpu_max_pct: table.others(),
        }
    }
}

/// NaN, which is null in JSON, of nothing.
fn median(spread: Option<Spread>) -> f64 {
    spread.map_or(f64::NAN, |spread| spread.median)
}

/// With one digit more: it is a difference.
fn fine(spread: Spread) -> String {
    format!("{:.3} ({:.3}-{:.3})", spread.median, spread.min, spread.max)
}
