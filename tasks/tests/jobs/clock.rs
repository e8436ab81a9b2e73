//! Hosts whose clock is wrong. The clock of the Postgres server decides.
//!
//! The test starts itself as a child with `faketime`, which shifts the wall clock of a process.
#![cfg(target_os = "linux")]

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use serde_json::json;
use sqlx::{Connection, PgConnection};
use tokio::{process::Command, time::Instant};
use tower_offload_tasks::{
    Failure, Retention, SqlStore, TaskId, TaskState, Tasks,
    jobs::{Backoff, Context, Jobs},
};
use tower_offload_tests::{eventually, skip};

use super::{
    databases::OnServer,
    support::{Act, ActAsync, GRACE, LONG, SHORT, ended, until},
};

const SHIFT: Duration = Duration::from_secs(2 * 3600);
/// Renewed several times in the test. Long enough to be renewed on a busy machine.
const LEASE: Duration = Duration::from_secs(10);
const DELAY: Duration = Duration::from_secs(2);
/// A delay of which River's scheduler makes the job available.
const BACKOFF: Duration = Duration::from_secs(7);
/// A scheduled job is polled for 5 s, and a queue 1 s. A busy machine adds to it, and a clock that
/// decides adds two hours.
const MAX_LATENESS: Duration = Duration::from_secs(60);
/// URL of the database of a child.
const CHILD: &str = "TOWER_OFFLOAD_CLOCK_TEST";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_of_the_host_decides_about_nothing() {
    if !Command::new("faketime").arg("--version").stdout(Stdio::null()).status().await.is_ok_and(|exit| exit.success())
    {
        return skip("the program `faketime` is not installed: its Debian package has the same name");
    }
    let (Some(ahead), Some(behind)) = (OnServer::fresh().await, OnServer::fresh().await) else { return };
    let child = |database: &OnServer, shift: &str| {
        let mut child = Command::new("faketime");
        child.args(["--exclude-monotonic", "-f", shift]).arg(std::env::current_exe().unwrap());
        child.args(["--exact", "clock::host_with_a_shifted_clock", "--ignored", "--nocapture"]);
        child.env(CHILD, database.url()).kill_on_drop(true).output()
    };
    let (ahead, behind) = tokio::join!(child(&ahead, "+2h"), child(&behind, "-2h"));
    for (name, output) in [("ahead", ahead), ("behind", behind)] {
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{name}: {text}");
    }
}

/// Times at which attempts of a job have begun.
type Begun = Arc<Mutex<Vec<(TaskId, Instant)>>>;

async fn start(tasks: &Tasks, begun: &Begun) -> Jobs {
    let begun = begun.clone();
    let work = move |ActAsync(act): ActAsync, progress: Context| {
        begun.lock().unwrap().push((progress.id(), Instant::now()));
        async move {
            match act {
                Act::Fail => Err(Failure::new("failed", "as requested")),
                Act::Hold => std::future::pending().await,
                _ => Ok(json!(1)),
            }
        }
    };
    Jobs::builder(tasks).backoff(Backoff::fixed(BACKOFF)).worker(LONG, work).start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by `clock_of_the_host_decides_about_nothing`"]
async fn host_with_a_shifted_clock() {
    let Ok(url) = std::env::var(CHILD) else { return };
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let now: f64 = sqlx::query_scalar("SELECT extract(epoch FROM clock_timestamp())::float8")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let shift = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - now;
    assert!((shift.abs() - SHIFT.as_secs_f64()).abs() < 60.0, "the clock is shifted by {shift} s");

    let store = SqlStore::open_with_lease(&url, LEASE).await.unwrap();
    let tasks = Tasks::builder(store).retention(Retention::default().max_age(SHIFT / 2)).build();
    let begun = Begun::default();
    let jobs = start(&tasks, &begun).await;
    let old = jobs.enqueue(ActAsync(Act::Return(json!(1)))).await.unwrap().id();
    ended(&tasks, old).await;
    sqlx::query("UPDATE tower_offload_task SET retained_since = retained_since - interval '90 minutes'")
        .execute(&mut connection)
        .await
        .unwrap();

    let enqueued = Instant::now();
    let at_once = jobs.enqueue(ActAsync(Act::Return(json!(1)))).await.unwrap().id();
    let delayed = jobs.enqueue(ActAsync(Act::Return(json!(1)))).delay(DELAY).await.unwrap().id();
    let at = SystemTime::now() + DELAY;
    let timed = jobs.enqueue(ActAsync(Act::Return(json!(1)))).at(at).await.unwrap().id();
    let mut transaction = connection.begin().await.unwrap();
    let in_transaction = jobs.enqueue(ActAsync(Act::Return(json!(1)))).delay(DELAY).tx(&mut transaction).await.unwrap();
    transaction.commit().await.unwrap();
    let retried = jobs.enqueue(ActAsync(Act::Fail)).max_attempts(2).await.unwrap().id();
    for id in [at_once, delayed, timed, in_transaction] {
        assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
    }
    assert_eq!(ended(&tasks, retried).await.state, TaskState::Failed);
    let begins = |wanted: TaskId| -> Vec<Duration> {
        let begun = begun.lock().unwrap();
        begun.iter().filter(|(id, _)| *id == wanted).map(|(_, at)| at.duration_since(enqueued)).collect()
    };
    assert!(begins(at_once)[0] < MAX_LATENESS, "{:?}", begins(at_once));
    for id in [delayed, timed, in_transaction] {
        assert!(begins(id)[0] >= DELAY - SHORT && begins(id)[0] < DELAY + MAX_LATENESS, "{:?}", begins(id));
    }
    let attempts = begins(retried);
    let backoff = attempts[1] - attempts[0];
    assert!(backoff >= BACKOFF && backoff < BACKOFF + MAX_LATENESS, "{attempts:?}");

    // Leases that are neither expired nor longer than they should be, after several renewals.
    let leases = "SELECT count(*) FROM (SELECT expires_at FROM tower_offload_client UNION ALL SELECT expires_at FROM tower_offload_process) \
                  AS lease WHERE expires_at BETWEEN clock_timestamp() AND clock_timestamp() + $1 * interval '1 second'";
    let valid: i64 = sqlx::query_scalar(leases).bind(LEASE.as_secs_f64()).fetch_one(&mut connection).await.unwrap();
    assert_eq!(valid, 2);
    // A job that is handed back is due at once, also for other processes.
    let held = jobs.enqueue(ActAsync(Act::Hold)).await.unwrap().id();
    until(&tasks, held, |record| record.state == TaskState::Running).await;
    assert!(jobs.shutdown(GRACE).await.is_clean());
    let due = "SELECT count(*) FROM river_job WHERE state = 'available' AND scheduled_at BETWEEN \
               clock_timestamp() - interval '1 minute' AND clock_timestamp()";
    let due: i64 = sqlx::query_scalar(due).fetch_one(&mut connection).await.unwrap();
    assert_eq!(due, 1);
    // The record that ended 90 minutes ago is evicted, and no other.
    eventually("an old record is evicted", async || tasks.get(old).await.unwrap().into_record().is_none()).await;
    for id in [at_once, delayed, timed, in_transaction, retried] {
        assert!(tasks.get(id).await.unwrap().into_record().is_some(), "a new record is evicted");
    }
}
