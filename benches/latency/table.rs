//! Records as tables, which text and pages are made of.

pub(crate) use crate::latency::cells::Table;
use crate::latency::{
    goals::GOALS,
    plan::{BUSY, DEADLINE, OVERLOAD, PING_RATE, SLEEPING_JOB, SLEEPING_RATE, Scene},
    record::{Record, RunRecord},
    spread::{Spread, number, with_range},
};

struct Column {
    name: String,
    cell: fn(&Record) -> String,
}

/// A table for each scene that was measured, and every row of it, also those we lose.
pub(crate) fn of_scenes(records: &[Record]) -> Vec<Table> {
    let scenes = [Scene::Cpu, Scene::Sleeping, Scene::Recovery, Scene::Target];
    scenes
        .into_iter()
        .filter_map(|scene| {
            let mut records: Vec<&Record> = records.iter().filter(|record| record.scene == scene).collect();
            // Stable: the variants stay in their order.
            records.sort_by_key(|record| record.load_pct);
            let columns = columns(scene);
            Some(Table {
                heading: heading(scene, records.first()?),
                rows: records
                    .iter()
                    .map(|record| columns.iter().map(|column| (column.cell)(record)).collect())
                    .collect(),
                columns: columns.into_iter().map(|column| column.name).collect(),
            })
        })
        .collect()
}

/// What was meant to be reached, and whether it is.
pub(crate) fn of_goals(records: &[Record]) -> Table {
    let rows = GOALS.iter().map(|goal| {
        let (measured, verdict) = match goal.measured(records) {
            Some(spread) => (exactly(spread), goal.verdict(spread.median)),
            None => ("-".to_owned(), "not measured"),
        };
        let doubt = if goal.is_doubtful(records) { " ~" } else { "" };
        let limit = |limit: f64| format!("{} {limit}", goal.sign());
        vec![goal.name.to_owned(), limit(goal.must), limit(goal.aim), measured, format!("{verdict}{doubt}")]
    });
    Table {
        heading: "Goals".to_owned(),
        rows: rows.collect(),
        columns: ["goal", "must", "aim", "measured (range)", "verdict"].map(str::to_owned).to_vec(),
    }
}

fn heading(scene: Scene, record: &Record) -> String {
    let seconds = format!("{} round(s) of {} s", record.rounds, record.measure_seconds);
    match scene {
        Scene::Cpu => format!("/ping at {PING_RATE:.0} a second beside jobs that compute; {seconds}"),
        Scene::Recovery => {
            let length = record.overload.map_or(0.0, |overload| overload.end_s - overload.begin_s);
            format!("{OVERLOAD} % for {length} s, before and after it {BUSY} %; {seconds}")
        }
        Scene::Sleeping => format!(
            "/ping at {PING_RATE:.0} a second beside {SLEEPING_RATE:.0} jobs a second that sleep {} ms; {seconds}",
            SLEEPING_JOB.as_millis()
        ),
        Scene::Target => format!("open loop, {:.0} jobs a second; {seconds}", record.jobs_per_second),
    }
}

fn columns(scene: Scene) -> Vec<Column> {
    let column = |name: &str, cell: fn(&Record) -> String| Column { name: name.to_owned(), cell };
    let of_jobs: fn(&Record) -> String = |it| over(it, |run| Some(run.within_deadline_pct));
    let mut columns = vec![column(if scene == Scene::Target { "target" } else { "variant" }, |it| it.variant.clone())];
    if scene == Scene::Cpu {
        columns.push(column("load", |it| it.load_pct.map_or_else(|| "-".to_owned(), |load| format!("{load} %"))));
    }
    if scene == Scene::Recovery {
        columns.push(column("normal after ms (range)", recovery));
    }
    columns.push(column("/ping p50 ms (range)", |it| over(it, |run| Some(run.ping_p50_ms))));
    columns.push(column("/ping p99 ms (range)", |it| over(it, |run| Some(run.ping_p99_ms))));
    columns.push(column("jobs ok/offered", |it| format!("{}/{}", it.work_ok, it.work_offered)));
    columns.push(column("refused", |it| it.work_refused.to_string()));
    columns.push(column("expired", |it| it.work_expired.to_string()));
    columns.push(column("failed", |it| it.work_failed.to_string()));
    columns.push(column("jobs open", |it| it.work_open().to_string()));
    columns.push(column(&format!("% within {} ms", DEADLINE.as_millis()), of_jobs));
    if scene == Scene::Cpu {
        columns.push(column("of capacity", |it| over(it, |run| run.within_deadline_of_capacity_pct)));
    }
    columns.push(column("ok jobs p99 ms (range)", |it| over(it, |run| run.work_ok_p99_ms)));
    columns.push(column("pings open", |it| it.ping_unanswered.to_string()));
    columns.push(column("late ms", |it| number(it.generator_late_p99_ms)));
    columns.push(column("others %", |it| {
        let others = it.others_cpu_max_pct.map_or_else(|| "?".to_owned(), |others| format!("{others:.0}"));
        let late = if it.is_reliable() { "" } else { " !" };
        let disturbed = if it.is_undisturbed() { "" } else { " ~" };
        format!("{others}{late}{disturbed}")
    }));
    columns
}

fn over(record: &Record, figure: fn(&RunRecord) -> Option<f64>) -> String {
    record.over_some(figure).map_or_else(|| "-".to_owned(), with_range)
}

/// With what is known where it did not come: how long it was watched.
fn recovery(record: &Record) -> String {
    let never =
        record.watched_seconds().map_or_else(|| "never".to_owned(), |watched| format!("over {:.0}", watched * 1e3));
    record.over_some(RunRecord::recovery_or_never).map_or_else(|| "-".to_owned(), with_range).replace("never", &never)
}

/// With digits enough for goals that are thousandths.
fn exactly(spread: Spread) -> String {
    let number = |value: f64| if value < 0.9995 { format!("{value:.5}") } else { number(value) };
    format!("{} ({}-{})", number(spread.median), number(spread.min), number(spread.max))
}
