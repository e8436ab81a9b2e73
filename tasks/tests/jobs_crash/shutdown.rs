//! Shutdown with SIGTERM.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{
    cluster::{Cluster, on_each_database},
    database::TestDatabase,
    program::TIMEOUT,
};

on_each_database! {
    jobs_that_do_not_end_in_time_are_requeued ["--grace", "5"];
    idle_process_exits_at_once ["--grace", "86400"];
    jobs_that_outlive_three_shutdowns_are_not_failed ["--grace", "1", "--attempts", "3"];
}

/// The jobs poll for cancellation every 600 ms, and are cancelled after 4 s, a second before the
/// timeout. A busy machine may delay that for longer than the rest of the second.
async fn jobs_that_do_not_end_in_time_are_requeued(cluster: Cluster) {
    let (mut program, url) = cluster.start().await;
    let mut ids = Vec::new();
    for key in ["one", "two", "three"] {
        ids.push(cluster.http.enqueue(&url, key, 6000).await);
    }
    let (mut last_start, mut tries) = (0, 0);
    loop {
        let running = format!("SELECT count(*) FROM tower_offload_task WHERE state = 1 AND started_at > {last_start}");
        cluster.until(&running, 3).await;
        let last = program.terminate().await;
        if last == "stopped: all connections ended; jobs: 3 requeued; all records are written" {
            break;
        }
        tries += 1;
        assert!(last.contains("still running (job") && tries < 5, "{last}");
        last_start = cluster.database.number("SELECT max(started_at) FROM tower_offload_task").await;
        program = cluster.start().await.0;
    }
    assert!(cluster.written().is_empty());
    let requeued = "SELECT count(*) FROM river_job WHERE state = 'available' AND attempt = 0";
    assert_eq!(cluster.database.number(requeued).await, 3);
    let queued = "SELECT count(*) FROM tower_offload_task WHERE state = 0 AND attempt = 0";
    assert_eq!(cluster.database.number(queued).await, 3);

    let (program, url) = cluster.start().await;
    cluster.until_finished().await;
    for id in ids {
        let status = cluster.http.status(&url, &id).await;
        assert_eq!((&status["state"], &status["attempt"]), (&"succeeded".into(), &1.into()), "{status}");
    }
    assert_eq!(cluster.written(), ["one", "two", "three"].map(|key| (key.to_owned(), 1)).into());
    program.terminate().await;
}

/// The grace period is a day.
async fn idle_process_exits_at_once(cluster: Cluster) {
    let (program, url) = cluster.start().await;
    cluster.http.enqueue(&url, "done", 0).await;
    cluster.until_finished().await;
    assert_eq!(
        program.terminate().await,
        "stopped: all connections ended; no job was running; all records are written"
    );
}

/// The job polls for cancellation every 20 s, so it runs until the process exits. It has three
/// attempts.
async fn jobs_that_outlive_three_shutdowns_are_not_failed(cluster: Cluster) {
    let (mut program, mut url) = cluster.start().await;
    let id = cluster.http.enqueue(&url, "long", 200_000).await;
    let mut started_at = started_later_than(&cluster, 0).await;
    let (mut outlived, mut round) = (0, 0);
    // Ten attempts of a job may be interrupted.
    while round < 3 || (outlived == 0 && round < 9) {
        if round == 1 {
            // It is killed before the shutdown has timed out.
            program.signal("TERM").await;
            let is_noted = match cluster.database {
                TestDatabase::Sqlite(_) => {
                    "metadata ->> '$.\"tower_offload:interrupted\".claimed_at' = \
                     CAST(round(unixepoch(attempted_at, 'subsec') * 1000000) AS INTEGER)"
                }
                TestDatabase::Postgres(_) => {
                    "metadata #>> '{tower_offload:interrupted,claimed_at}' = \
                     (extract(epoch FROM attempted_at) * 1000000)::bigint::text"
                }
            };
            cluster.until(&format!("SELECT count(*) FROM river_job WHERE {is_noted}"), 1).await;
            program.kill().await;
        } else {
            let last = program.terminate().await;
            let outlives = last.contains("jobs: 1 still running (job ");
            // A job whose work has not begun yet is requeued, and that attempt does not count
            // either.
            assert!(outlives || last.contains("jobs: 1 requeued"), "{last}");
            outlived += usize::from(outlives);
        }
        (program, url) = cluster.start().await;
        started_at = started_later_than(&cluster, started_at).await;
        round += 1;
    }
    assert!(outlived > 0, "no job ran when its process was shut down");
    let status = cluster.http.status(&url, &id).await;
    assert_eq!((&status["state"], &status["attempt"]), (&"running".into(), &1.into()), "{status}");
    program.kill().await;
}

/// Waits until an attempt has started after this time, and returns its start.
async fn started_later_than(cluster: &Cluster, time: i64) -> i64 {
    let poll = async {
        loop {
            let query = "SELECT coalesce(max(started_at), 0) FROM tower_offload_task WHERE state = 1";
            match cluster.database.number(query).await {
                started_at if started_at > time => return started_at,
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(TIMEOUT, poll).await.expect("no attempt starts")
}
