//! Schedules: each tick is enqueued at most once, whatever happens to processes and clocks.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tower_offload_tasks::{
    Failure, SqlStore, TaskState, Tasks, Timestamp,
    jobs::{CatchUp, Job, Jobs, JobsBuilder, Schedule},
};
use tower_offload_tests::eventually;

use super::{
    databases::OnServer,
    support::{A_WHILE, LONG, TestDatabase, ended, on_each_database},
};

on_each_database! {
    new_schedule_ticks_after_its_start
    missed_ticks_are_made_up
    clock_that_is_set_back_repeats_no_tick
    tick_whose_job_cannot_be_created_is_skipped
    invalid_schedules_refuse_a_start
}

/// The job of a tick.
#[derive(Serialize, Deserialize)]
struct Tick(u64);

impl Job for Tick {
    const KIND: &'static str = "tick";
}

fn tick(at: Timestamp) -> Tick {
    Tick(at.as_millis())
}

const TICKS: &str = "SELECT count(*) FROM river_job WHERE kind = 'tick'";
const LAST_TICK: &str = "SELECT last_tick FROM tower_offload_schedule";
/// An interval so long that no tick is due while a test runs, unless it sets the row back.
const INTERVAL: Duration = Duration::from_secs(300 * 24 * 3600);

fn interval_millis() -> i64 {
    i64::try_from(INTERVAL.as_millis()).unwrap()
}

/// The latest tick of [`INTERVAL`].
fn latest_tick() -> i64 {
    let now = i64::try_from(Timestamp::from(std::time::SystemTime::now()).as_millis()).unwrap();
    now - now % interval_millis()
}

async fn set_last_tick(database: &TestDatabase, last: i64) {
    let insert = format!("INSERT INTO tower_offload_schedule (name, last_tick) VALUES ('a', {last})");
    assert_eq!(database.execute(&insert).await, 1);
}

/// Returns the ticks that were enqueued, in the order of their jobs.
async fn enqueued(database: &TestDatabase, count: i64) -> Vec<i64> {
    eventually("the ticks are enqueued", async || database.number(TICKS).await >= count).await;
    let mut ticks = Vec::new();
    for offset in 0..database.number(TICKS).await {
        let args = match database {
            TestDatabase::Sqlite(_) => "CAST(json(args) AS INTEGER)",
            TestDatabase::Postgres(_) => "args::text::bigint",
        };
        let query = format!("SELECT {args} FROM river_job WHERE kind = 'tick' ORDER BY id LIMIT 1 OFFSET {offset}");
        ticks.push(database.number(&query).await);
    }
    ticks
}

fn builder(tasks: &Tasks, catch_up: CatchUp) -> JobsBuilder {
    Jobs::builder(tasks).every("a", Schedule::interval(INTERVAL).catch_up(catch_up), tick)
}

async fn new_schedule_ticks_after_its_start(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = builder(&tasks, CatchUp::All(9))
        .every("each second", Duration::from_secs(1), tick)
        .worker(LONG, |Tick(millis), context| async move { Ok::<_, Failure>((millis, context.attempt())) })
        .start()
        .await
        .unwrap();
    eventually("it ticks", async || database.number(TICKS).await >= 2).await;
    let periodic = match database {
        TestDatabase::Sqlite(_) => {
            "metadata ->> '$.\"river:periodic_job_id\"' = 'each second' AND metadata ->> '$.periodic'"
        }
        TestDatabase::Postgres(_) => "metadata @> '{\"periodic\": true, \"river:periodic_job_id\": \"each second\"}'",
    };
    let other = format!("{TICKS} AND NOT ({periodic})");
    assert_eq!(database.number(&other).await, 0, "the schedule without a row has ticked at once");
    let first = tasks.list(&Default::default(), Default::default()).await.unwrap();
    let first = ended(&tasks, first.records.last().unwrap().id).await;
    let (millis, attempt): (u64, u32) = first.result.unwrap().parse().unwrap();
    assert_eq!((first.state, attempt, millis % 1000), (TaskState::Succeeded, 1, 0));
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn missed_ticks_are_made_up(database: TestDatabase) {
    let tasks = database.tasks().await;
    let latest = latest_tick();
    for (catch_up, missed) in [(CatchUp::Skip, 0), (CatchUp::Once, 1), (CatchUp::All(3), 3), (CatchUp::All(100), 5)] {
        database.execute("DELETE FROM tower_offload_schedule").await;
        if catch_up != CatchUp::Skip {
            database.execute("DELETE FROM river_job").await;
        }
        set_last_tick(&database, latest - 5 * interval_millis()).await;
        let jobs = super::support::start_when_free(|| builder(&tasks, catch_up)).await.unwrap();
        eventually("the schedule advances", async || database.number(LAST_TICK).await == latest).await;
        let expected: Vec<_> = (0..missed).rev().map(|tick| latest - tick * interval_millis()).collect();
        assert_eq!(enqueued(&database, missed).await, expected, "{catch_up:?}");
        assert!(jobs.shutdown(LONG).await.is_clean());
    }
}

async fn clock_that_is_set_back_repeats_no_tick(database: TestDatabase) {
    let tasks = database.tasks().await;
    let ahead = latest_tick() + interval_millis() / 2 * 3;
    set_last_tick(&database, ahead).await;
    let every_second = Schedule::interval(Duration::from_secs(1)).catch_up(CatchUp::All(9));
    let jobs = Jobs::builder(&tasks).every("a", every_second, tick).start().await.unwrap();
    tokio::time::sleep(A_WHILE * 4).await;
    assert_eq!((database.number(TICKS).await, database.number(LAST_TICK).await), (0, ahead));
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn tick_whose_job_cannot_be_created_is_skipped(database: TestDatabase) {
    let tasks = database.tasks().await;
    let latest = latest_tick();
    set_last_tick(&database, latest - 3 * interval_millis()).await;
    let schedule = Schedule::interval(INTERVAL).catch_up(CatchUp::All(9));
    let create = move |at: Timestamp| {
        assert!(i64::try_from(at.as_millis()).unwrap() != latest - interval_millis(), "as requested");
        tick(at)
    };
    let jobs = Jobs::builder(&tasks).every("a", schedule, create).start().await.unwrap();
    assert_eq!(enqueued(&database, 2).await, [latest - 2 * interval_millis(), latest]);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn invalid_schedules_refuse_a_start(database: TestDatabase) {
    let tasks = database.tasks().await;
    for (name, schedule, reason) in [
        ("a", Schedule::cron("61 * * * *"), "schedule \"a\" of `JobsBuilder::every` is not valid: "),
        ("", Schedule::cron("@hourly"), "1 to 100 bytes"),
        ("b\n", Schedule::cron("@hourly"), "1 to 100 bytes"),
        ("twice", Schedule::cron("@hourly"), "schedule \"twice\" is added twice"),
    ] {
        let builder = Jobs::builder(&tasks).every("twice", INTERVAL, tick).every(name, schedule, tick);
        let error = builder.start().await.unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains(reason), "{error}");
    }
}

/// The processes of this test are two stores in one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_processes_enqueue_each_tick_once() {
    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let tasks = database.tasks().await;
    let creates_the_tables = Jobs::builder(&tasks).start().await.unwrap();
    assert!(creates_the_tables.shutdown(LONG).await.is_clean());
    let latest = latest_tick();
    set_last_tick(&database, latest - 50 * interval_millis()).await;
    let mut processes = Vec::new();
    for _ in 0..4 {
        let tasks = Tasks::new(SqlStore::open(&database.url()).await.unwrap());
        processes.push(tokio::spawn(async move { builder(&tasks, CatchUp::All(1000)).start().await.unwrap() }));
    }
    let expected: Vec<_> = (0..50).rev().map(|tick| latest - tick * interval_millis()).collect();
    assert_eq!(enqueued(&database, 50).await, expected);
    for process in processes {
        assert!(process.await.unwrap().shutdown(LONG).await.is_clean()); // each of them has looked
    }
    assert_eq!(database.number(TICKS).await, 50);
}

/// Processes that are killed. The test starts itself as a child.
#[cfg(target_os = "linux")]
mod killed {
    use std::os::unix::process::ExitStatusExt;

    use tokio::process::Command;

    use super::*;
    use crate::support::{kill_this_process, tasks_when_free};

    /// URL of the database of a child.
    const URL: &str = "TOWER_OFFLOAD_SCHEDULES_TEST";
    /// The tick at which a child kills itself.
    const AT: &str = "TOWER_OFFLOAD_SCHEDULES_TEST_AT";
    const KILLED: i32 = 9;

    on_each_database! {
        tick_of_a_killed_process_is_enqueued_once_by_the_next
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "started by `tick_of_a_killed_process_is_enqueued_once_by_the_next`"]
    async fn child() {
        let (Ok(url), Ok(at)) = (std::env::var(URL), std::env::var(AT)) else { return };
        let at: u64 = at.parse().unwrap();
        let tasks = tasks_when_free(&url).await;
        let schedule = Schedule::interval(INTERVAL).catch_up(CatchUp::All(9));
        let create = move |time: Timestamp| {
            if time.as_millis() == at {
                kill_this_process();
            }
            tick(time)
        };
        let _jobs = Jobs::builder(&tasks).every("a", schedule, create).start().await.unwrap();
        tokio::time::sleep(LONG).await;
    }

    async fn tick_of_a_killed_process_is_enqueued_once_by_the_next(database: TestDatabase) {
        let latest = latest_tick();
        let tasks = database.tasks().await;
        set_last_tick(&database, latest - 3 * interval_millis()).await;
        assert!(tasks.shutdown(LONG).await.is_clean());
        drop(tasks);
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "schedules::killed::child", "--ignored", "--nocapture"]).kill_on_drop(true);
        child.env(URL, database.url()).env(AT, (latest - interval_millis()).to_string());
        let output = child.output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(KILLED), "{text}");
        assert_eq!(database.number(TICKS).await, 0);
        let tasks = database.tasks().await;
        let jobs = builder(&tasks, CatchUp::All(9)).start().await.unwrap();
        let expected: Vec<_> = (0..3).rev().map(|tick| latest - tick * interval_millis()).collect();
        assert_eq!(enqueued(&database, 3).await, expected);
        assert_eq!(database.number(LAST_TICK).await, latest);
        assert!(jobs.shutdown(LONG).await.is_clean());
    }
}
