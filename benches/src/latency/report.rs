//! The tables, the goals and the notes.

use super::{
    BUSY_PCT, Conditions, JOB, JOB_TIMEOUT, OVERLOAD_PCT, PING_RATE, Row, SLEEPING_JOB, SLEEPING_RATE, Sample, Scene,
    Setting, TOLERATED_LATENESS, is_doubtful, is_reliable, lateness_ms, pictures,
    sample::{NORMAL_FACTOR, WINDOW},
};
use crate::{BoxError, Cell, Compared, Goal, Limits, Part, Table, number, range};

/// Returns the whole report.
pub fn text(rows: &[Row]) -> String {
    let mut paragraphs = vec![facts(rows).join("\n") + "\n"];
    paragraphs.extend(tables(rows).iter().map(Table::to_string));
    paragraphs.push(notes(rows).join("\n") + "\n");
    paragraphs.extend(goals(rows).map(|goals| goals.to_string()));
    paragraphs.join("\n")
}

/// Returns what was measured, and on which machine, for each session that the rows are from.
pub fn facts(rows: &[Row]) -> Vec<String> {
    let mut sessions: Vec<&Conditions> = Vec::new();
    for row in rows {
        if !sessions.contains(&&row.scene.conditions) {
            sessions.push(&row.scene.conditions);
        }
    }
    sessions.into_iter().flat_map(facts_of).collect()
}

fn facts_of(conditions: &Conditions) -> Vec<String> {
    let (cores, system, priority) = (conditions.cores, &conditions.system, &conditions.priority);
    let mut facts = vec![format!("{cores} cores, {system}; the generator has {priority}")];
    if let Some(capacity) = conditions.capacity_per_second {
        let after = conditions.capacity_after_per_second.map(|it| format!("; after the last round: {it:.0}"));
        facts.push(format!(
            "100 % is {capacity:.0} jobs of {} ms CPU time per second (closed loop, offload/threads{}); jobs: {}",
            JOB.as_millis(),
            after.unwrap_or_default(),
            if conditions.poisson { "Poisson arrivals" } else { "evenly spaced" },
        ));
    }
    facts
}

/// Returns notes that explain the tables, and the reasons to doubt the figures.
pub fn notes(rows: &[Row]) -> Vec<String> {
    let has = |scene: Scene| rows.iter().any(|row| row.scene.scene == scene);
    let timeout = JOB_TIMEOUT.as_millis();
    let mut notes = vec![
        "Medians of the rounds (lowest-highest). Latency counts from the intended start.".to_owned(),
        format!("% within {timeout} ms: of all jobs offered. ok jobs p99: of the jobs with a success."),
        "refused: any other response that is not a success.".to_owned(),
        "jobs open: without a response when the run ended. They are in no other column.".to_owned(),
        "pings open: without a success when the run ended. They count at the age they had then.".to_owned(),
        "late ms: the p99 of the generator's own lateness in the worst round.".to_owned(),
    ];
    if has(Scene::Cpu) {
        notes.push(format!("of capacity: the jobs within {timeout} ms, as a share of what the machine can do."));
    }
    notes.push(if has(Scene::Target) {
        "others %: unknown, because the server is another process.".to_owned()
    } else {
        "others %: the share of all cores that other processes used in the worst round.".to_owned()
    });
    if has(Scene::Recovery) {
        notes.push(format!(
            "normal after: from the end of the {OVERLOAD_PCT} % to the first job from which on the p99 of every {WINDOW} jobs \
             in a row is at most {NORMAL_FACTOR} times the p99 before the overload. A job without a success counts as infinitely \
             late. A dash: too few successes before the overload to define what is normal."
        ));
        notes.push(
            "failing until: from the end of the overload to the last job without a success. If it is much shorter than \
             `normal after`, the jobs in between were slow but none was rejected."
                .to_owned(),
        );
        notes.push(format!(
            "goodput: the jobs due during the overload that succeeded during it and within {timeout} ms, as a share of those that \
             offload/threads, whose queue is full, ended in that time in the same round."
        ));
    }
    if has(Scene::Quota) {
        notes.push(
            "throttled: periods of 100 ms in which the server used its quota and had to wait; a dash if it was pinned instead."
                .to_owned(),
        );
    }
    notes.extend(doubts(rows));
    notes
}

/// Returns the reasons to doubt the figures, if there are any.
pub fn doubts(rows: &[Row]) -> Vec<String> {
    let mut doubts = Vec::new();
    if rows.iter().any(|row| !is_reliable(row)) {
        let tolerated = TOLERATED_LATENESS.as_millis();
        doubts.push(format!("! unreliable: the generator itself was over {tolerated} ms late (p99) in a round."));
    }
    if rows.iter().any(Row::is_disturbed) {
        doubts.push("~ disturbed: other processes used over 10 % of the cores in a round.".to_owned());
    }
    if let Some(drift) = rows.iter().filter_map(|row| row.scene.drift_pct()).reduce(f64::max) {
        doubts.push(format!(
            "! the capacity changed by {drift:.0} % during the session, so the loads are wrong. Measure again on a quiet machine."
        ));
    }
    doubts
}

/// Returns a table for each scene that was measured.
pub fn tables(rows: &[Row]) -> Vec<Table> {
    Scene::ALL.into_iter().filter_map(|scene| table(scene, rows)).collect()
}

/// Returns the part of a page for each scene that was measured.
pub fn parts(rows: &[Row]) -> Result<Vec<Part>, BoxError> {
    let tables = Scene::ALL.into_iter().filter_map(|scene| Some((scene, table(scene, rows)?)));
    tables.map(|(scene, table)| part(scene, table, rows)).collect()
}

fn part(scene: Scene, table: Table, rows: &[Row]) -> Result<Part, BoxError> {
    let (heading, done, goal) = description(scene);
    let is_of_scene =
        |goal: &&Goal<Setting, Sample>| rows.iter().any(|row| row.scene.scene == scene && (goal.scene)(&row.scene));
    let goals: Vec<_> = GOALS.iter().filter(is_of_scene).collect();
    Ok(Part {
        heading,
        done,
        goal,
        pictures: pictures::of(scene, rows)?,
        tables: vec![table],
        goals: (!goals.is_empty()).then(|| Goal::table(goals, rows, is_doubtful)),
        notes: Vec::new(),
    })
}

/// Returns a heading, what was done, and the goal.
fn description(scene: Scene) -> (&'static str, String, String) {
    let (job, timeout, pings) = (JOB.as_millis(), JOB_TIMEOUT.as_millis(), format!("{PING_RATE:.0} pings per second"));
    match scene {
        Scene::Cpu => (
            "Jobs that compute",
            format!(
                "The server answers {pings} at once, and does jobs of {job} ms of CPU time. 100 % is what the machine can do: \
                 at 130 % and 200 %, more jobs are offered than it can run. The rows differ only in where a job runs: in the \
                 handler (inline), on tokio's blocking threads, or on a pool."
            ),
            format!(
                "A ping on a server with a pool takes at most a hundredth of what it takes when jobs run in the handler or on \
                 tokio's default of 512 threads. At 200 %, a pool with a bound or a policy answers at least 90 % of what the \
                 machine can do within {timeout} ms."
            ),
        ),
        Scene::Sleeping => (
            "Jobs that wait",
            format!(
                "The server answers {pings} at once, and does {SLEEPING_RATE:.0} jobs per second that sleep for {} ms, like a \
                 call to a disk or a database. Ten jobs are in progress at any time, more than there are threads in a pool for \
                 computation.",
                SLEEPING_JOB.as_millis()
            ),
            String::new(),
        ),
        Scene::Recovery => (
            "A temporary overload",
            format!(
                "Jobs of {job} ms arrive at {BUSY_PCT} % of what the machine can do, then at {OVERLOAD_PCT} % (grey in the \
                 picture), then at {BUSY_PCT} % again. The figure is the time from the end of the overload until jobs are as \
                 fast as before it. Without a bound or a policy, jobs that wait from the overload delay all later ones."
            ),
            format!(
                "A pool with a bound or a policy is normal within a second after the overload. During it, at least 97 % of the \
                 jobs that the machine can do are answered within {timeout} ms."
            ),
        ),
        Scene::Quota => (
            "A server with the time of one core",
            format!(
                "The server answers {pings} and does jobs of {job} ms, and has the time of one core, as in a container with a \
                 CPU limit of 1. The rows differ in the number of workers of the runtime and of threads of the pool. Threads that \
                 use up the time of a period of 100 ms stop the whole server, with its pings, until the next period: it is \
                 throttled."
            ),
            String::new(),
        ),
        Scene::Target => (
            "Your server",
            "The server was yours: /ping and the jobs are requests that you chose.".to_owned(),
            String::new(),
        ),
    }
}

/// Returns the table of a scene, if it was measured.
fn table(scene: Scene, rows: &[Row]) -> Option<Table> {
    let mut rows: Vec<&Row> = rows.iter().filter(|row| row.scene.scene == scene).collect();
    // The sort is stable, so the variants keep their order.
    rows.sort_by_key(|row| row.scene.load_pct);
    let heading = heading(rows.first()?);
    let within = format!("% within {} ms", JOB_TIMEOUT.as_millis());
    let mut columns: Vec<Cell<'_, &Row>> =
        vec![(if scene == Scene::Target { "target" } else { "variant" }, &|it| it.variant.clone())];
    if matches!(scene, Scene::Cpu | Scene::Quota) {
        columns.push(("load", &|it| it.scene.load_pct.map_or("-".to_owned(), |load| format!("{load} %"))));
    }
    if scene == Scene::Recovery {
        columns.push(("normal after ms (range)", &|row| recovery(row)));
        columns.push(("failing until ms (range)", &|it| range(it.spread(|sample| sample.failing_ms))));
        columns.push(("goodput % (range)", &|it| range(it.spread(|sample| sample.goodput_pct))));
    }
    columns.extend::<[Cell<'_, &Row>; 7]>([
        ("/ping p50 ms (range)", &|it| range(it.spread(|sample| sample.ping_p50_ms))),
        ("/ping p99 ms (range)", &|it| range(it.spread(|sample| sample.ping_p99_ms))),
        ("jobs ok/offered", &|it| count(it, |sample| sample.jobs_ok) + "/" + &count(it, |it| it.jobs_offered)),
        ("refused", &|it| count(it, |sample| sample.jobs_refused)),
        ("failed", &|it| count(it, |sample| sample.jobs_failed)),
        ("jobs open", &|it| count(it, |sample| sample.jobs_open)),
        (&within, &|it| range(it.spread(|sample| sample.within_timeout_pct))),
    ]);
    if scene == Scene::Cpu {
        columns.push(("of capacity", &|it| range(it.spread(|sample| sample.within_timeout_of_capacity_pct))));
    }
    if scene == Scene::Quota {
        columns.push(("throttled", &|it| {
            let periods = it.spread(|sample| sample.throttled_periods.map(|periods| periods as f64));
            periods.map_or("-".to_owned(), |it| format!("{:.0}", it.median))
        }));
    }
    columns.extend::<[Cell<'_, &Row>; 4]>([
        ("ok jobs p99 ms (range)", &|it| range(it.spread(|sample| sample.jobs_ok_p99_ms))),
        ("pings open", &|it| count(it, |sample| sample.ping_unanswered)),
        ("late ms", &|it| number(lateness_ms(it))),
        ("others %", &|it| {
            let late = if is_reliable(it) { "" } else { " !" };
            let disturbed = if it.is_disturbed() { " ~" } else { "" };
            it.others_pct().map_or("?".to_owned(), |others| format!("{others:.0}")) + late + disturbed
        }),
    ]);
    Some(Table::new(heading, &rows, &columns))
}

fn heading(row: &Row) -> String {
    let Setting { scene, phases, overload, jobs_per_second, .. } = &row.scene;
    let seconds = |milliseconds: u64| milliseconds as f64 / 1e3;
    let rounds = format!("{} round(s) of {} s", row.rounds.len(), seconds(phases.measure_ms));
    match scene {
        Scene::Cpu => format!("/ping at {PING_RATE:.0} per second beside jobs that compute; {rounds}"),
        Scene::Sleeping => format!(
            "/ping at {PING_RATE:.0} per second beside {SLEEPING_RATE:.0} jobs per second that sleep {} ms; {rounds}",
            SLEEPING_JOB.as_millis()
        ),
        Scene::Recovery => {
            let length = seconds(overload.map_or(0, |overload| overload.length_ms));
            format!("{OVERLOAD_PCT} % for {length} s, before and after it {BUSY_PCT} %; {rounds}")
        }
        Scene::Quota => format!("a server with the time of one core, which is 100 %; {rounds}"),
        Scene::Target => format!("open loop, {jobs_per_second:.0} jobs per second; {rounds}"),
    }
}

fn count(row: &Row, figure: fn(&Sample) -> u64) -> String {
    row.spread(|sample| figure(sample) as f64).map_or_else(|| "-".to_owned(), |it| format!("{:.0}", it.median))
}

/// Formats the time until latencies were normal. If they did not become normal, formats a lower
/// bound: the time for which the run was observed.
fn recovery(row: &Row) -> String {
    let observed = row.scene.observed_after_overload_ms().unwrap_or_default();
    range(row.spread(Sample::recovery_or_never_ms)).replace("never", &format!("over {observed}"))
}

/// Returns the goals, unless the user runs the server.
pub fn goals(rows: &[Row]) -> Option<Table> {
    let has_own_servers = rows.iter().any(|row| row.scene.scene != Scene::Target);
    has_own_servers.then(|| Goal::table(GOALS, rows, is_doubtful))
}

/// Returns a goal for the p99 of `/ping` at 130 % as a multiple of that of `base`.
const fn ping(
    name: &'static str,
    variant: &'static str,
    base: &'static str,
    (must, aim): (f64, f64),
) -> Goal<Setting, Sample> {
    let scene = |it: &Setting| it.scene == Scene::Cpu && it.load_pct == Some(130);
    let (compared, figure) = (Compared::Ratio(base), |it: &Sample| Some(it.ping_p99_ms));
    Goal { name, scene, variant, compared, figure, limits: Limits::AtMost { must, aim } }
}

/// Returns a goal for a figure of one variant.
const fn alone(
    name: &'static str,
    variant: &'static str,
    scene: fn(&Setting) -> bool,
    figure: fn(&Sample) -> Option<f64>,
    limits: Limits,
) -> Goal<Setting, Sample> {
    Goal { name, scene, variant, compared: Compared::Alone, figure, limits }
}

const AT_200: fn(&Setting) -> bool = |it| it.scene == Scene::Cpu && it.load_pct == Some(200);
const RECOVERY: fn(&Setting) -> bool = |it| it.scene == Scene::Recovery;
const WITHIN: fn(&Sample) -> Option<f64> = |it| it.within_timeout_of_capacity_pct;
const OK_P99: fn(&Sample) -> Option<f64> = |it| Some(it.jobs_ok_p99_ms.unwrap_or(f64::INFINITY));
const ANSWERED: Limits = Limits::AtLeast { must: 90.0, aim: 97.0 };
const FAST: Limits = Limits::AtMost { must: 150.0, aim: 30.0 };
const NORMAL: Limits = Limits::AtMost { must: 1000.0, aim: 100.0 };

const GOODPUT: fn(&Sample) -> Option<f64> = |it| it.goodput_pct;
const BUSY: Limits = Limits::AtLeast { must: 97.0, aim: 99.0 };

const GOALS: &[Goal<Setting, Sample>] = &[
    ping("/ping p99 at 130 %, offload/threads v inline", "offload/threads", "inline", (0.01, 0.001)),
    ping("/ping p99 at 130 %, offload/threads v spawn_blocking", "offload/threads", "spawn_blocking", (0.01, 0.001)),
    ping(
        "/ping p99 at 130 %, offload/nice v spawn_blocking/capped",
        "offload/nice",
        "spawn_blocking/capped",
        (0.6, 0.3),
    ),
    ping("/ping p99 at 130 %, offload/adaptive v offload/threads", "offload/adaptive", "offload/threads", (1.2, 1.0)),
    alone("200 %: jobs within 200 ms, % of capacity, offload/bounded", "offload/bounded", AT_200, WITHIN, ANSWERED),
    alone("200 %: jobs within 200 ms, % of capacity, offload/bursts", "offload/bursts", AT_200, WITHIN, ANSWERED),
    alone("200 %: p99 of the jobs answered, ms, offload/bounded", "offload/bounded", AT_200, OK_P99, FAST),
    alone("200 %: p99 of the jobs answered, ms, offload/bursts", "offload/bursts", AT_200, OK_P99, FAST),
    alone(
        "after 300 %: ms until normal, offload/bounded",
        "offload/bounded",
        RECOVERY,
        Sample::recovery_or_never_ms,
        NORMAL,
    ),
    alone(
        "after 300 %: ms until normal, offload/bursts",
        "offload/bursts",
        RECOVERY,
        Sample::recovery_or_never_ms,
        NORMAL,
    ),
    alone("300 %: goodput, % of a full queue's rate, offload/bounded", "offload/bounded", RECOVERY, GOODPUT, BUSY),
    alone("300 %: goodput, % of a full queue's rate, offload/bursts", "offload/bursts", RECOVERY, GOODPUT, BUSY),
];
