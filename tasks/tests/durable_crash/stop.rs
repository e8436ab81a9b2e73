//! SIGTERM.

use super::scene::{Scene, on_each_database};

on_each_database! {
    jobs_that_do_not_end_in_time_are_handed_back_and_not_counted ["--grace", "5"];
    a_process_that_does_nothing_ends_at_once ["--grace", "86400"];
}

/// They ask each 600 ms whether to go on, and after 4 s, a second before the end, they are told.
async fn jobs_that_do_not_end_in_time_are_handed_back_and_not_counted(scene: Scene) {
    let (program, url) = scene.start().await;
    let mut ids = Vec::new();
    for key in ["one", "two", "three"] {
        ids.push(scene.http.enqueue(&url, key, 6000).await);
    }
    scene.until("SELECT count(*) FROM tower_offload_task WHERE state = 1", 3).await;
    assert_eq!(program.end().await, "stopped: 0 jobs still running; 0 records not written");
    assert!(scene.written().is_empty());
    let handed_back = "SELECT count(*) FROM river_job WHERE state = 'available' AND attempt = 0";
    assert_eq!(scene.place.number(handed_back).await, 3);
    let queued = "SELECT count(*) FROM tower_offload_task WHERE state = 0 AND attempt = 0";
    assert_eq!(scene.place.number(queued).await, 3);

    let (program, url) = scene.start().await;
    scene.until_all_is_done().await;
    for id in ids {
        let status = scene.http.status(&url, &id).await;
        assert_eq!((&status["state"], &status["attempt"]), (&"succeeded".into(), &1.into()), "{status}");
    }
    assert_eq!(scene.written(), ["one", "two", "three"].map(|key| (key.to_owned(), 1)).into());
    program.end().await;
}

/// There is a day for it, and nobody waits so long here.
async fn a_process_that_does_nothing_ends_at_once(scene: Scene) {
    let (program, url) = scene.start().await;
    scene.http.enqueue(&url, "done", 0).await;
    scene.until_all_is_done().await;
    assert_eq!(program.end().await, "stopped: 0 jobs still running; 0 records not written");
}
