//! The example `tasks` as a program, over real connections.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use hyper::StatusCode;
use tower_offload_tests::Server;

#[tokio::test]
async fn tasks_are_accepted_followed_and_found_after_a_restart() {
    let folder = std::env::temp_dir().join(format!("tower-offload-tasks-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let store = format!("sqlite:{}", folder.join("tasks.db").display());
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let Some(program) = tower_offload_tests::example(&examples, "tasks") else { return };
    let mut server = Server::start(&program, &["--store", &store]).await;
    let mut locations = Vec::new();
    for (fail, state) in [(0, "succeeded"), (1, "failed")] {
        let accepted = server.post(&format!("/reports?ms=100&fail={fail}"), "").await;
        assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.text());
        let location = accepted.headers["location"].to_str().unwrap().to_owned();
        let events = server.get(&format!("{location}/events")).await; // the stream ends with the task
        assert!(events.text().contains(&format!("\"state\":\"{state}\"")), "{}", events.text());
        locations.push((location, state));
    }
    server.signal("TERM").await;
    let (code, last) = server.end().await;
    assert_eq!((code, last.contains("0 still running; 0 records not written")), (Some(0), true), "{last}");

    server = Server::start(&program, &["--store", &store]).await;
    for (location, state) in locations {
        let status = server.get(&location).await;
        assert!(status.text().contains(&format!("\"state\":\"{state}\"")), "{}", status.text());
    }
    server.signal("INT").await;
    assert_eq!(server.end().await.0, Some(0));
    fs::remove_dir_all(folder).unwrap();
}
