//! P15: a job that kills its process stops at its attempt limit, and does not take others with it.

use std::{os::unix::process::ExitStatusExt, time::Duration};

use hyper::{Method, StatusCode};
use tokio::time::{sleep, timeout};

use super::{
    program::PATIENCE,
    scene::{Scene, on_each_database},
};

on_each_database! {
    a_job_that_kills_its_process_fails_at_its_limit_and_those_beside_it_are_done [];
}

const ABORTED: i32 = 6;

async fn a_job_that_kills_its_process_fails_at_its_limit_and_those_beside_it_are_done(scene: Scene) {
    let (mut program, url) = scene.start().await;
    let mut innocent = Vec::new();
    for number in 0..12 {
        innocent.push(scene.http.enqueue(&url, &format!("innocent-{number}"), 400).await);
    }
    // Whether it is heard that it was accepted is a race that the process may lose.
    let accepted = scene.http.send(Method::POST, &format!("{url}/poison")).await;
    assert!(accepted.is_err() || accepted.is_ok_and(|(code, _)| code == StatusCode::ACCEPTED));

    let mut deaths = 0;
    let supervise = async {
        loop {
            tokio::select! {
                status = program.gone() => {
                    assert_eq!(status.signal(), Some(ABORTED));
                    deaths += 1;
                    program = scene.begin();
                }
                () = sleep(Duration::from_millis(50)) => {
                    if deaths > 0 && scene.place.number("SELECT count(*) FROM tower_offload_task WHERE state < 10").await == 0 {
                        break;
                    }
                }
            }
        }
    };
    timeout(PATIENCE, supervise).await.expect("it stops");
    assert_eq!(deaths, 3);

    let url = program.listening().await;
    let (_, list) = scene.http.send(Method::GET, &format!("{url}/tasks/?name=poison")).await.unwrap();
    let [poison] = list["tasks"].as_array().unwrap().as_slice() else { panic!("{list}") };
    assert_eq!((&poison["state"], &poison["attempt"]), (&"failed".into(), &3.into()), "{poison}");
    assert_eq!(poison["error"]["class"], "process_lost", "{poison}");
    for id in innocent {
        assert_eq!(scene.http.status(&url, &id).await["state"], "succeeded");
    }
    let written = scene.written();
    assert!((0..12).all(|number| written.contains_key(&format!("innocent-{number}"))), "{written:?}");
    assert_eq!(scene.place.number("SELECT count(*) FROM river_job WHERE state = 'discarded' AND attempt = 3").await, 1);
    program.end().await;
}
