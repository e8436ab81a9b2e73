//! The tables.

use std::fmt::Write;

use tower_offload_benches::{Cell, Row, Table, find, range};

use crate::{CLIENTS, Measure, Phases, Sample, Scene, Store, THREADS, VARIANTS, WORKERS};

const NOTES: &str = "\
Medians of the rounds (lowest-highest). A closed loop: a client calls again when a call returns.
v: the rate divided by that of commit-each (accept) or river (enqueue, drain) on the same database, in the same round.
settled/s: tasks whose end is in the store, divided by the time until that is true of all.
evict us: the time to evict one record when the store is swept, which happens after the run here.
refused: calls for which the background was full; they are in no rate.
others %: the share of all cores that other processes used in the worst round; ~: over 10 %.
*: unknown, because the database server is one of the other processes.";

pub(crate) fn text(rows: &[Row<Scene, Sample>], rounds: usize, phases: Phases) -> String {
    let mut text = format!("{THREADS} threads, {rounds} round(s) of {:?}\n\n", phases.measure);
    let clients = CLIENTS.map(|clients| clients.to_string()).join(" and ");
    for (measure, heading) in [
        (Measure::Accept, format!("accept: a record per call, {clients} clients")),
        (Measure::Enqueue, format!("enqueue: a job per call, {clients} clients")),
        (Measure::Drain, format!("drain: {} jobs that do nothing, at most {WORKERS} at once", phases.jobs)),
        (Measure::DrainTwo, format!("drain: {} jobs that do nothing, at most 2 at once", phases.jobs)),
        (Measure::Begin, "begin: from the enqueueing of a job to its begin, one at a time".to_owned()),
        (Measure::Follow, "follow: from the end of a job to its follower, one at a time".to_owned()),
    ] {
        if rows.iter().any(|row| row.scene.measure == measure) {
            let _ = writeln!(text, "{}", table(rows, measure, heading));
        }
    }
    text + NOTES
}

fn table(rows: &[Row<Scene, Sample>], measure: Measure, heading: String) -> Table {
    let ratio = |row: &Row<Scene, Sample>| {
        let base = VARIANTS.iter().find(|variant| variant.name == row.variant)?.base;
        let base = find(rows, |scene| *scene == row.scene, base)?;
        Some(format!("{:.2}", row.compare(base, |it| it.per_second, |ours, base| ours / base)?.median))
    };
    let others = |row: &Row<Scene, Sample>| {
        let mark = match row.scene.store {
            Store::Postgres => " *",
            Store::Memory | Store::Sqlite if row.is_disturbed() => " ~",
            Store::Memory | Store::Sqlite => "",
        };
        row.others_pct().map_or_else(|| "?".to_owned(), |others| format!("{others:.0}{mark}"))
    };
    let ratio = |row: &Row<Scene, Sample>| ratio(row).unwrap_or_else(|| "-".to_owned());
    let rate = if measure == Measure::Accept { "accepted/s (range)" } else { "jobs/s (range)" };
    let mut columns: Vec<Cell<'_, Row<Scene, Sample>>> = vec![("variant", &|row| row.variant.clone())];
    if matches!(measure, Measure::Accept | Measure::Enqueue) {
        columns.push(("clients", &|row| row.scene.clients.to_string()));
    }
    columns.push((rate, &|row| range(row.spread(|it| it.per_second))));
    if !measure.is_own() {
        columns.push(("v", &ratio));
    }
    if !measure.is_drain() {
        columns.push(("p50 us (range)", &|row| range(row.spread(|it| it.p50_us))));
        columns.push(("p99 us (range)", &|row| range(row.spread(|it| it.p99_us))));
    }
    if measure == Measure::Accept {
        columns.push(("settled/s (range)", &|row| range(row.spread(|it| it.settled_per_second))));
        columns.push(("evict us (range)", &|row| range(row.spread(|it| it.evict_us))));
        columns.push(("refused", &|row| row.rounds.iter().map(|it| it.sample.refused).sum::<u64>().to_string()));
    }
    columns.push(("others %", &others));
    Table::new(heading, rows.iter().filter(|row| row.scene.measure == measure), &columns)
}
