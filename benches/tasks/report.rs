//! The figures as tables and as JSON.

use serde::Serialize;

use crate::{
    cells::Table,
    durable::WORKERS,
    plan::{CLIENTS, Measure, Plan, Store, THREADS, TOLERATED_OTHERS},
    rows::{Row, Sample},
    spread::{Spread, with_range},
    variants::Variant,
};

const NOTES: &[&str] = &[
    "Medians of the rounds (lowest-highest). A closed loop: a client calls again when it is answered.",
    "v: the rate divided by that of commit-each (accept) or river (enqueue, drain) on the same database, in the same round.",
    "settled/s: tasks that have run and whose end is written, in the time until that is so of all.",
    "evict us: what one record too many takes when the store is swept, which is after the run here.",
    "refused: because the background was full; they are in no rate. others %: of the cores, in the worst round.",
];

/// Every row, also those we lose.
pub(crate) fn text(rows: &[Row], plan: Plan, variants: &[Variant]) -> String {
    let mut text = format!("{THREADS} threads, {} round(s) of {:?}\n\n", plan.rounds, plan.phases.measure);
    for measure in [Measure::Accept, Measure::Enqueue, Measure::Drain] {
        if rows.iter().any(|row| row.measure == measure) {
            text.push_str(&table(rows, measure, plan).text());
            text.push('\n');
        }
    }
    text.push_str(&NOTES.join("\n"));
    text.push('\n');
    if rows.iter().any(|row| row.is_disturbed() == Some(true)) {
        text.push_str(&format!("~ disturbed: others had over {TOLERATED_OTHERS:.0} % of the cores in a round.\n"));
    }
    if rows.iter().any(|row| row.variant.store == Store::Postgres) {
        text.push_str("*: among the others is the database server, so whether it was disturbed is not known.\n");
    } else if variants.iter().any(|variant| variant.store == Store::Postgres) {
        text.push_str("skipped: all rows of Postgres, since DATABASE_URL names no server.\n");
    }
    text
}

struct Column {
    name: &'static str,
    /// Of a row, beside all of them.
    cell: fn(&Row, &[Row]) -> String,
}

const fn column(name: &'static str, cell: fn(&Row, &[Row]) -> String) -> Column {
    Column { name, cell }
}

const VARIANT: Column = column("variant", |row, _| row.variant.name.to_owned());
const CLIENT_COUNT: Column = column("clients", |row, _| row.clients.to_string());
const ACCEPTED: Column = column("accepted/s (range)", |row, _| range(row.per_second()));
const JOBS: Column = column("jobs/s (range)", |row, _| range(row.per_second()));
const RATIO: Column =
    column("v", |row, rows| row.ratio(rows).map_or_else(|| "-".to_owned(), |ratio| format!("{:.2}", ratio.median)));
const P50: Column = column("p50 us (range)", |row, _| range(row.over_samples(|it| it.p50_us)));
const P99: Column = column("p99 us (range)", |row, _| range(row.over_samples(|it| it.p99_us)));
const SETTLED: Column = column("settled/s (range)", |row, _| range(row.over_samples(|it| it.settled_per_second)));
const EVICT: Column = column("evict us (range)", |row, _| range(row.over_samples(|it| it.evict_us)));
const REFUSED: Column = column("refused", |row, _| row.refused().to_string());
const OTHERS: Column = column("others %", |row, _| {
    let mark = match row.is_disturbed() {
        None => " *",
        Some(true) => " ~",
        Some(false) => "",
    };
    row.others().map_or_else(|| "?".to_owned(), |others| format!("{others:.0}{mark}"))
});

fn table(rows: &[Row], measure: Measure, plan: Plan) -> Table {
    let clients = CLIENTS.map(|it| it.to_string()).join(" and ");
    let heading = match measure {
        Measure::Accept => format!("accept: a record a call, {clients} clients"),
        Measure::Drain => format!("drain: {} jobs that do nothing, at most {WORKERS} at once", plan.phases.jobs),
        Measure::Enqueue => format!("enqueue: a job a call, {clients} clients"),
    };
    let columns = match measure {
        Measure::Accept => {
            vec![VARIANT, CLIENT_COUNT, ACCEPTED, RATIO, P50, P99, SETTLED, EVICT, REFUSED, OTHERS]
        }
        Measure::Drain => vec![VARIANT, JOBS, RATIO, OTHERS],
        Measure::Enqueue => vec![VARIANT, CLIENT_COUNT, JOBS, RATIO, P50, P99, OTHERS],
    };
    let mut of_measure: Vec<&Row> = rows.iter().filter(|row| row.measure == measure).collect();
    of_measure.sort_by_key(|row| row.clients); // stable: the variants stay in their order
    let cells = |row: &&Row| columns.iter().map(|column| (column.cell)(row, rows)).collect();
    Table {
        heading,
        rows: of_measure.iter().map(cells).collect(),
        columns: columns.iter().map(|column| column.name.to_owned()).collect(),
    }
}

fn range(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "-".to_owned(), with_range)
}

/// A line of JSON: medians of the rounds.
#[derive(Serialize)]
pub(crate) struct Record {
    bench: &'static str,
    variant: &'static str,
    store: Store,
    measure: Measure,
    clients: usize,
    per_second: Option<f64>,
    per_second_min: Option<f64>,
    per_second_max: Option<f64>,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    p99_max_us: Option<f64>,
    settled_per_second: Option<f64>,
    evict_us: Option<f64>,
    refused: u64,
    rounds: usize,
    /// With the server, on Postgres.
    others_cpu_max_pct: Option<f64>,
}

impl Record {
    pub(crate) fn of(row: &Row) -> Self {
        let median = |figure: fn(&Sample) -> Option<f64>| row.over_samples(figure).map(|it| it.median);
        Self {
            bench: "tasks",
            variant: row.variant.name,
            store: row.variant.store,
            measure: row.measure,
            clients: row.clients,
            per_second: row.per_second().map(|it| it.median),
            per_second_min: row.per_second().map(|it| it.min),
            per_second_max: row.per_second().map(|it| it.max),
            p50_us: median(|it| it.p50_us),
            p99_us: median(|it| it.p99_us),
            p99_max_us: row.over_samples(|it| it.p99_us).map(|it| it.max),
            settled_per_second: median(|it| it.settled_per_second),
            evict_us: median(|it| it.evict_us),
            refused: row.refused(),
            rounds: row.samples.len(),
            others_cpu_max_pct: row.others(),
        }
    }
}
