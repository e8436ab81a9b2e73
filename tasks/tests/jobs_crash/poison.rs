//! A job that crashes its process.

use std::{os::unix::process::ExitStatusExt, time::Duration};

use hyper::{Method, StatusCode};
use tokio::time::{sleep, timeout};

use super::{
    cluster::{Cluster, on_each_database},
    program::TIMEOUT,
};

on_each_database! {
    job_that_crashes_its_process_fails_and_others_succeed [];
}

const ABORTED: i32 = 6;

async fn job_that_crashes_its_process_fails_and_others_succeed(cluster: Cluster) {
    let (mut program, url) = cluster.start().await;
    let mut innocent = Vec::new();
    for number in 0..12 {
        innocent.push(cluster.http.enqueue(&url, &format!("innocent-{number}"), 400).await);
    }
    // The process may crash before it sends the response.
    let accepted = cluster.http.send(Method::POST, &format!("{url}/poison")).await;
    assert!(accepted.is_err() || accepted.is_ok_and(|(code, _)| code == StatusCode::ACCEPTED));

    let mut crashes = 0;
    let supervise = async {
        loop {
            tokio::select! {
                status = program.exited() => {
                    assert_eq!(status.signal(), Some(ABORTED));
                    crashes += 1;
                    program = cluster.spawn();
                }
                () = sleep(Duration::from_millis(50)) => {
                    if crashes > 0 && cluster.database.number("SELECT count(*) FROM tower_offload_task WHERE state < 10").await == 0 {
                        break;
                    }
                }
            }
        }
    };
    timeout(TIMEOUT, supervise).await.expect("the process keeps crashing");
    assert_eq!(crashes, 3);

    let url = program.listening().await;
    let (_, list) = cluster.http.send(Method::GET, &format!("{url}/tasks/?name=poison")).await.unwrap();
    let [poison] = list["tasks"].as_array().unwrap().as_slice() else { panic!("{list}") };
    assert_eq!((&poison["state"], &poison["attempt"]), (&"failed".into(), &3.into()), "{poison}");
    assert_eq!(poison["error"]["class"], "process_lost", "{poison}");
    for id in innocent {
        assert_eq!(cluster.http.status(&url, &id).await["state"], "succeeded");
    }
    let written = cluster.written();
    assert!((0..12).all(|number| written.contains_key(&format!("innocent-{number}"))), "{written:?}");
    assert_eq!(
        cluster.database.number("SELECT count(*) FROM river_job WHERE state = 'discarded' AND attempt = 3").await,
        1
    );
    program.terminate().await;
}
