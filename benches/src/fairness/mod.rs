//! Measures what a quiet tenant notices of one that makes 1000 times as many calls, ten times what
//! the pool can run.
//!
//! [`measure`] fills the [`rows`]. Tables, goals and the [`picture`] are computed from rows alone,
//! so that they can also be computed from a JSON file.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    BoxError, Compared, Goal, Limits, Part, Picture, Spread, Table, Unit, child, find, interleave, number, others_text,
    range,
};

mod picture;
mod run;

pub use self::run::run;

/// A row of this benchmark.
pub type Row = crate::Row<Scene, Sample>;

/// The quiet tenant alone.
pub const ALONE: &str = "alone";
/// Both tenants, without keys.
pub const FIFO: &str = "fifo";
/// Both tenants, each with a key.
const KEYS: &str = "keys";
/// Both tenants as groups. The greedy one has 1000 keys.
const GROUPS: &str = "groups";
/// The same 1000 keys without groups, which is how keys should not be used.
const SPLIT: &str = "split";

const VARIANTS: [&str; 5] = [ALONE, FIFO, KEYS, GROUPS, SPLIT];

/// Calls of the greedy tenant for each one of the quiet tenant.
const GREED: u32 = 1000;
/// Calls of the greedy tenant that arrive while the pool runs one.
const LOAD: u32 = 10;
const THREADS: usize = 2;

/// Maximum time by which the greedy tenant may delay the quiet one, in service times.
const MAX_MOVED: f64 = 1.0;
/// Minimum share of the thread time without keys that threads run calls with keys.
const MIN_BUSY: f64 = 0.98;

/// Time that a round may take beyond the measurement.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Everything that the rows of a table have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scene {
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
pub struct Sample {
    /// Time from the call to the end of its work, in service times. `None` if none was answered.
    p50: Option<f64>,
    p99: Option<f64>,
    rejected_pct: f64,
    calls: usize,
    /// Share of the time in which threads ran calls, in percent.
    busy_pct: f64,
}

/// One round of a row, for a child process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    variant: String,
    scene: Scene,
    length: Duration,
}

/// Returns the rows of a full or quick run.
pub fn rows() -> Vec<Row> {
    let scenes = [1000, 5000].map(|service_us| Scene { service_us });
    scenes.into_iter().flat_map(|scene| VARIANTS.map(|name| Row::new(name, scene))).collect()
}

/// Measures all rows: in 17 minutes, or in half a minute if `is_quick`.
pub fn measure(rows: &mut [Row], is_quick: bool) -> Result<(), BoxError> {
    let (rounds, length) = if is_quick { (1, 3) } else { (5, 20) };
    let length = Duration::from_secs(length);
    interleave(rows, rounds, Unit::Row, |scene, variants| {
        child::run(&Order { variant: variants[0].to_owned(), scene: *scene, length }, length + TIMEOUT)
    })
}

const NOTES: &str = "\
Medians of the rounds (lowest-highest). p50, p99: of the quiet tenant, from the call to the end of its work, in service
times; moved: p99 minus that of the tenant alone in the same round. rejected: calls of the quiet tenant. busy: share of the
time in which threads ran calls. alone: the quiet tenant only. split: 1000 keys that are not in a group count as 1000
tenants. ~: other processes used over 10 % of the cores in a round.";

/// Returns the whole report.
pub fn text(rows: &[Row]) -> String {
    let tables: String = tables(rows).iter().map(|table| format!("{table}\n")).collect();
    format!("{tables}{NOTES}\n\n{}", goals(rows))
}

/// Returns the part of a page, unless there are no rows.
pub fn part(rows: &[Row]) -> Result<Option<Part>, BoxError> {
    if rows.is_empty() {
        return Ok(None);
    }
    Ok(Some(Part {
        heading: "A quiet tenant beside a greedy one",
        done: format!(
            "Two tenants call one pool of {THREADS} threads. The greedy one makes {GREED} times as many calls as the quiet one, \
             {LOAD} times what the threads can run, so its calls fill the queue. A call sleeps for one service time, 1 or 5 ms. \
             {FIFO} has no keys: every call waits in one queue. {KEYS}: fair_by(tenant). {GROUPS}: fair_by_group(tenant, \
             user), where the greedy tenant has 1000 users. {SPLIT}: the same users without their group, which is how keys \
             should not be used. {ALONE}: only the quiet tenant."
        ),
        goal: format!(
            "With {KEYS} and {GROUPS}, the greedy tenant may delay 99 of 100 calls of the quiet one by at most {MAX_MOVED} \
             service time; no call of the quiet one is rejected, and threads run calls for at least {:.0} % of the time that \
             they do without keys.",
            100.0 * MIN_BUSY
        ),
        pictures: vec![picture(rows)?],
        tables: tables(rows),
        goals: Some(goals(rows)),
        notes: vec![NOTES.replace('\n', " ")],
    }))
}

/// Returns the result in one sentence, unless there are no rows for it.
pub fn summary(rows: &[Row]) -> Option<String> {
    let rows = rows.chunk_by(|a, b| a.scene == b.scene).last()?;
    let moved = |variant| moved_by(rows, find(rows, |_| true, variant)?).map(|spread| number(spread.median));
    let without = moved(FIFO).map_or_else(
        || "no call of a quiet tenant was answered without keys".to_owned(),
        |moved| format!("99 of 100 calls of a quiet tenant were delayed by up to {moved} service times without keys"),
    );
    Some(format!(
        "Beside a tenant that makes {GREED} times as many calls, {without}; with keys, 99 of 100 were delayed by up to {}.",
        moved(KEYS)?
    ))
}

/// Draws the wait of the quiet tenant for each variant.
pub fn picture(rows: &[Row]) -> Result<Picture, BoxError> {
    picture::of(rows)
}

fn goals(rows: &[Row]) -> Table {
    Goal::table(GOALS, rows, Row::is_disturbed)
}

fn tables(rows: &[Row]) -> Vec<Table> {
    let table = |rows: &[Row]| {
        Table::new(
            format!("{}{}", rows[0].scene, others_text(rows)),
            rows,
            &[
                ("variant", &|row| row.variant.clone()),
                ("calls", &|row| row.rounds.iter().map(|round| round.sample.calls).sum::<usize>().to_string()),
                ("p50 (range)", &|row| range(row.spread(|it| it.p50))),
                ("p99 (range)", &|row| range(row.spread(|it| it.p99))),
                ("moved (range)", &|row| moved_by(rows, row).map_or_else(|| "-".to_owned(), Spread::precise)),
                ("rejected % (range)", &|row| range(row.spread(|it| it.rejected_pct))),
                ("busy % (range)", &|row| range(row.spread(|it| it.busy_pct))),
            ],
        )
    };
    rows.chunk_by(|a, b| a.scene == b.scene).map(table).collect()
}

/// Returns the p99 of `row` minus that of the quiet tenant alone, in service times.
fn moved_by(rows: &[Row], row: &Row) -> Option<Spread> {
    let alone = find(rows, |scene| *scene == row.scene, ALONE)?;
    row.compare(alone, |it| it.p99, |ours, alone| ours - alone)
}

const fn moved(name: &'static str, variant: &'static str, scene: fn(&Scene) -> bool) -> Goal<Scene, Sample> {
    Goal {
        name,
        scene,
        variant,
        compared: Compared::Difference(ALONE),
        figure: |sample| sample.p99,
        limits: Limits::AtMost { must: MAX_MOVED, aim: 0.9 },
    }
}

const fn busy(name: &'static str, variant: &'static str) -> Goal<Scene, Sample> {
    Goal {
        name,
        scene: |it| it.service_us == 5000,
        variant,
        compared: Compared::Ratio(FIFO),
        figure: |sample| Some(sample.busy_pct),
        limits: Limits::AtLeast { must: MIN_BUSY, aim: 0.995 },
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
