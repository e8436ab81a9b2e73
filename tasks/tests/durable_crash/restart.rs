//! A process that is there again at once, and one that comes too many.

use tokio::net::TcpListener;

use super::scene::{Scene, on_each_database};

on_each_database! {
    p14_the_same_process_begun_again_at_once_recovers_its_job [];
}

async fn p14_the_same_process_begun_again_at_once_recovers_its_job(scene: Scene) {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (program, url) = scene.start_on(port, &scene.place.url()).await;
    let id = scene.http.enqueue(&url, "interrupted", 1500).await;
    scene.until("SELECT count(*) FROM tower_offload_task WHERE state = 1", 1).await;
    program.kill().await;
    assert!(scene.written().is_empty());

    let (program, url) = scene.start_on(port, &scene.place.url()).await;
    scene.until_all_is_done().await;
    let status = scene.http.status(&url, &id).await;
    assert_eq!((&status["state"], &status["attempt"]), (&"succeeded".into(), &2.into()), "{status}");
    assert_eq!(scene.written(), [("interrupted".to_owned(), 1)].into());
    program.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_a_second_process_is_told_who_has_the_file() {
    let Some(scene) = Scene::on_sqlite(&[]) else { return };
    let (program, url) = scene.start().await;
    let second = scene.run().await;
    assert_eq!(second.status.code(), Some(1));
    let error = String::from_utf8(second.stderr).unwrap();
    assert!(error.contains(&format!("is in use by process {} on ", program.process_id)), "{error}");
    assert!(error.contains("Locked"), "{error}");
    assert!(second.stdout.is_empty(), "it must not claim to listen");

    scene.http.enqueue(&url, "undisturbed", 0).await;
    scene.until_all_is_done().await;
    assert_eq!(scene.written(), [("undisturbed".to_owned(), 1)].into());
    program.end().await;
}
