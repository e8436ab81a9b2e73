//! Shutdown with SIGTERM.

use super::cluster::{Cluster, on_each_database};

on_each_database! {
    jobs_that_do_not_end_in_time_are_requeued ["--grace", "5"];
    idle_process_exits_at_once ["--grace", "86400"];
}

/// The jobs poll for cancellation every 600 ms, and are cancelled after 4 s, a second before the
/// timeout.
async fn jobs_that_do_not_end_in_time_are_requeued(cluster: Cluster) {
    let (program, url) = cluster.start().await;
    let mut ids = Vec::new();
    for key in ["one", "two", "three"] {
        ids.push(cluster.http.enqueue(&url, key, 6000).await);
    }
    cluster.until("SELECT count(*) FROM tower_offload_task WHERE state = 1", 3).await;
    assert_eq!(
        program.terminate().await,
        "stopped: 0 jobs ended and 3 were requeued during shutdown, 0 still running; 0 records not written"
    );
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
        "stopped: 0 jobs ended and 0 were requeued during shutdown, 0 still running; 0 records not written"
    );
}
