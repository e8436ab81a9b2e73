//! The table, the notes and the goals.

use tower_offload_benches::{Compared, Goal, Limits, Table, others_text, range};

use super::{JOB, KILL_INTERVAL, ONE_PROCESS, OPEN, QUEUED, Row, Sample, Scene};

const SHARED: &str = "2 workers x 1 thread, one socket";
const SHARED_THREADS: &str = "2 workers x 2 threads, one socket";

/// Returns the whole report.
pub(super) fn text(rows: &[Row]) -> String {
    let table = Table::new(
        format!("{} of {} ms each{}", rows[0].scene, JOB.as_millis(), others_text(rows)),
        rows,
        &[
            ("variant", &|row| row.variant.clone()),
            ("busiest % (range)", &|row| range(row.spread(|it| it.busiest_pct))),
            ("p50 ms (range)", &|row| range(row.spread(|it| it.p50_ms))),
            ("p99 ms (range)", &|row| range(row.spread(|it| it.p99_ms))),
            ("busiest, open % (range)", &|row| range(row.spread(|it| it.open_busiest_pct))),
            ("refused a kill", &|row| range(row.spread(|it| it.refused))),
            ("lost a kill", &|row| range(row.spread(|it| it.lost))),
            ("p99 at kills ms (range)", &|row| range(row.spread(|it| it.kills_p99_ms))),
            ("queued, answered %", &|row| range(row.spread(|it| it.queued_answered_pct))),
            ("late ms", &|row| range(row.spread(|it| it.generator_late_p99_ms))),
            ("others %", &|row| {
                let mark = if row.is_disturbed() { " ~" } else { "" };
                row.others_pct().map_or_else(String::new, |others| format!("{others:.0}{mark}"))
            }),
        ],
    );
    let goals = Goal::table(GOALS, rows, Row::is_disturbed);
    format!("{table}\n{}\n\n{}\n\n{goals}", notes(), migration(&rows[0].scene))
}

fn notes() -> String {
    format!(
        "Medians of the rounds (lowest-highest). Requests are due at random (Poisson), each has a connection of its own and\n\
         computes for {} ms in its handler. Latency counts from the intended start.\n\
         busiest: share of the connections that one worker accepted; with two workers, 50 is even. open: the same for {OPEN}\n\
         connections that are opened one after the other on an idle server and stay open.\n\
         a kill: `kill -9` of a worker, every {} ms under the same load. refused: no connection. lost: a connection without a\n\
         response. p99 at kills: of the requests that were answered during these times.\n\
         queued: {QUEUED} connections that wait in the queue, because every worker is stopped (SIGSTOP), when one is killed.\n\
         late: how late the generator itself was (p99). ~: other processes used over 10 % of the cores in a round.\n\
         {ONE_PROCESS} has no supervisor; the benchmark starts it again at once.",
        JOB.as_millis(),
        KILL_INTERVAL.as_millis()
    )
}

/// Says what the kernel does with the queue of a socket whose worker is killed.
fn migration(scene: &Scene) -> String {
    match scene.tcp_migrate_req {
        Some(0) => "net.ipv4.tcp_migrate_req is 0, the default: with SO_REUSEPORT, the connections in the queue of a worker \
                    that ends are reset.",
        Some(_) => "net.ipv4.tcp_migrate_req is set: with SO_REUSEPORT, the kernel moves the connections in the queue of a \
                    worker that ends to another one.",
        None => "This system has no net.ipv4.tcp_migrate_req (Linux 5.14): with SO_REUSEPORT, the connections in the queue of \
                 a worker that ends are reset.",
    }
    .to_owned()
}

const fn goal(
    name: &'static str,
    variant: &'static str,
    compared: Compared,
    figure: fn(&Sample) -> Option<f64>,
    limits: Limits,
) -> Goal<Scene, Sample> {
    Goal { name, scene: |_| true, variant, compared, figure, limits }
}

const GOALS: &[Goal<Scene, Sample>] = &[
    goal(
        "queued connections answered, one socket, %",
        SHARED,
        Compared::Alone,
        |sample| Some(sample.queued_answered_pct),
        Limits::AtLeast { must: 100.0, aim: 100.0 },
    ),
    goal(
        "connections refused a kill, one socket",
        SHARED,
        Compared::Alone,
        |sample| Some(sample.refused),
        Limits::AtMost { must: 0.0, aim: 0.0 },
    ),
    goal(
        "p99, 2 workers x 2 threads v 1 process x 2 threads",
        SHARED_THREADS,
        Compared::Ratio(ONE_PROCESS),
        |sample| sample.p99_ms,
        Limits::AtMost { must: 2.0, aim: 1.2 },
    ),
];
