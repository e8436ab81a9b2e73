//! A process that restarts at once, and a second process on the same file.

use super::cluster::{Cluster, on_each_database};

on_each_database! {
    restarted_process_recovers_its_job [];
}

async fn restarted_process_recovers_its_job(cluster: Cluster) {
    let port = cluster.port();
    let (program, url) = cluster.start_on(port, &cluster.database.url()).await;
    let id = cluster.http.enqueue(&url, "interrupted", 1500).await;
    cluster.until("SELECT count(*) FROM tower_offload_task WHERE state = 1", 1).await;
    program.kill().await;
    assert!(cluster.written().is_empty());

    let (program, url) = cluster.start_on(port, &cluster.database.url()).await;
    cluster.until_finished().await;
    let status = cluster.http.status(&url, &id).await;
    assert_eq!((&status["state"], &status["attempt"]), (&"succeeded".into(), &2.into()), "{status}");
    assert_eq!(cluster.written(), [("interrupted".to_owned(), 1)].into());
    program.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_process_on_sqlite_reports_which_process_has_the_file() {
    let Some(cluster) = Cluster::on_sqlite(&[]) else { return };
    let (program, url) = cluster.start().await;
    let second = cluster.run().await;
    assert_eq!(second.status.code(), Some(1));
    let error = String::from_utf8(second.stderr).unwrap();
    assert!(error.contains(&format!("is in use by process {} on ", program.process_id)), "{error}");
    assert!(error.contains("the task store is in use"), "{error}");
    assert!(second.stdout.is_empty(), "it must not listen");

    cluster.http.enqueue(&url, "undisturbed", 0).await;
    cluster.until_finished().await;
    assert_eq!(cluster.written(), [("undisturbed".to_owned(), 1)].into());
    program.terminate().await;
}
