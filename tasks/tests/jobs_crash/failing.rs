//! Jobs whose first attempts fail.

use super::cluster::{Cluster, on_each_database};

on_each_database! {
    failed_attempts_are_counted_across_a_crash ["--attempts", "3"];
}

async fn failed_attempts_are_counted_across_a_crash(cluster: Cluster) {
    let (program, url) = cluster.start().await;
    let interrupted = cluster.http.enqueue_with(&url, "ms=1500&key=interrupted&sequence=s&fail=1").await;
    cluster.until("SELECT count(*) FROM tower_offload_task WHERE state = 1", 1).await;
    program.kill().await;

    let (program, url) = cluster.start().await;
    let last = cluster.http.enqueue_with(&url, "key=last&fail=2").await;
    let never = cluster.http.enqueue_with(&url, "key=never&fail=3").await;
    assert_eq!(cluster.http.enqueue_with(&url, "key=never&fail=3").await, never, "the same query is the same job");
    cluster.until_finished().await;
    let expected = [(&interrupted, "succeeded", 2), (&last, "succeeded", 3), (&never, "failed", 3)];
    for (id, state, attempt) in expected {
        let status = cluster.http.status(&url, id).await;
        assert_eq!((&status["state"], &status["attempt"]), (&state.into(), &attempt.into()), "{status}");
    }
    let message = cluster.http.status(&url, &never).await["error"]["message"].clone();
    assert_eq!(message, "the first 3 attempts fail");
    assert_eq!(cluster.written(), [("s interrupted".to_owned(), 1), ("last".to_owned(), 1)].into());
    program.terminate().await;
}
