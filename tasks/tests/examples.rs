//! The examples as programs, over real connections.
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
    let program = tower_offload_tests::example(&examples, "tasks");
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
    assert_eq!((code, last.ends_with("; all records are written")), (Some(0), true), "{last}");

    server = Server::start(&program, &["--store", &store]).await;
    for (location, state) in locations {
        let status = server.get(&location).await;
        assert!(status.text().contains(&format!("\"state\":\"{state}\"")), "{}", status.text());
    }
    server.signal("INT").await;
    assert_eq!(server.end().await.0, Some(0));
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn jobs_refuse_queries_that_are_no_job() {
    let folder = std::env::temp_dir().join(format!("tower-offload-jobs-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (database, out) = (format!("sqlite:{}", folder.join("jobs.db").display()), folder.join("out"));
    let program = tower_offload_tests::example(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples"), "jobs");
    let arguments = ["--database", &database, "--out", &out.display().to_string(), "--backoff", "1"];
    let server = Server::start(&program, &arguments).await;
    let word = "1 to 200 bytes without spaces and control characters";
    let long = "x".repeat(201);
    let cases = [
        ("", "key"),
        ("key=", word),
        ("key=a%0Ab", word),
        ("key=a%20b", word),
        ("key=a%00", word),
        (&*format!("key={long}"), word),
        ("key=a&sequence=", word),
        ("key=a&sequence=b%0D%0Ac", word),
        ("key=a&fail=abc", "fail"),
        ("key=a&fail=-1", "fail"),
        ("key=a&fail=4294967296", "fail"),
        ("key=a&ms=soon", "ms"),
        ("key=a&ms=600001", "at most 600000"),
    ];
    for (query, text) in cases {
        let reply = server.post(&format!("/jobs?{query}"), "").await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{query}: {}", reply.text());
        assert!(reply.text().contains(text), "{query}: {}", reply.text());
    }
    for query in ["key=a", "key=b&sequence=customer:7&fail=1", "key=%C3%BC&fail=0"] {
        let reply = server.post(&format!("/jobs?{query}"), "").await;
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{query}: {}", reply.text());
        let location = reply.headers["location"].to_str().unwrap();
        let events = server.get(&format!("{location}/events")).await; // the stream ends with the job
        assert!(events.text().contains("\"state\":\"succeeded\""), "{query}: {}", events.text());
    }
    assert_eq!(fs::read_to_string(&out).unwrap(), "a\ncustomer:7 b\n\u{fc}\n");
    server.signal("INT").await;
    let (code, last) = server.end().await;
    assert_eq!((code, last.starts_with("stopped: ")), (Some(0), true), "{last}");
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn wrong_options_end_with_a_sentence() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let missing = "sqlite:/no/such/folder/tasks.db";
    let server = "postgres://nobody@127.0.0.1:1/none";
    let sqlite = std::env::temp_dir().join(format!("tower-offload-options-{}.db", std::process::id()));
    let sqlite = format!("sqlite:{}", sqlite.display());
    let cases: &[(&str, &[&str], i32, &str)] = &[
        ("tasks", &["--port", &port], 1, "choose another one with --port"),
        ("tasks", &["--port", "x"], 2, "--port"),
        ("tasks", &["--store", "mysql://host/db"], 1, "`sqlite` or `postgres`"),
        ("tasks", &["--store", ""], 1, "--store"),
        ("tasks", &["--store", missing], 1, "--store"),
        ("tasks", &["--store", server], 1, "--store"),
        ("tasks", &["--nonsense"], 2, "--nonsense"),
        ("jobs", &["--database", &sqlite, "--port", &port], 1, "choose another one with --port"),
        ("jobs", &["--database", "jobs.db"], 1, "`sqlite` or `postgres`"),
        ("jobs", &["--database", missing], 1, "--database"),
        ("jobs", &["--lease", "0"], 2, "--lease"),
        ("jobs", &["--attempts", "0"], 2, "--attempts"),
        ("jobs", &["--attempts", "40000"], 2, "--attempts"),
        ("jobs", &["--grace=-1"], 2, "--grace"),
    ];
    for (name, arguments, code, text) in cases {
        let program = tower_offload_tests::example(&examples, name);
        let output = tower_offload_tests::run(&program, arguments).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{name} {arguments:?}: {error}");
        assert!(error.contains(text) && !error.contains(" { "), "{name} {arguments:?}: {error}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("listening"), "{name} {arguments:?}");
    }
    for suffix in ["", "-wal", "-shm", ".tower-offload.lock"] {
        let _ = fs::remove_file(format!("{}{suffix}", sqlite.trim_start_matches("sqlite:")));
    }
}
