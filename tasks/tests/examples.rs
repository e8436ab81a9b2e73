//! The examples as programs, over real connections.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

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

/// Returns a database in a folder that is not deleted if the test fails.
fn sqlite(name: &str) -> (PathBuf, String) {
    let folder = std::env::temp_dir().join(format!("tower-offload-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let url = format!("sqlite:{}", folder.join("tasks.db").display());
    (folder, url)
}

#[tokio::test]
async fn prometheus_scrapes_the_numbers_of_jobs() {
    let (folder, database) = sqlite("prometheus");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let program = tower_offload_tests::example(&examples, "prometheus");
    let server = Server::start(&program, &["--database", &database]).await;
    let before = server.get("/metrics").await.text().to_owned();
    let succeeded = r#"offload_jobs_ended_total{kind="report",queue="default",end="succeeded"}"#;
    assert!(before.contains(&format!("{succeeded} 0\n")), "{before}");
    assert_eq!(server.post("/reports/7", "").await.status, StatusCode::ACCEPTED);
    let is_counted = async || server.get("/metrics").await.text().contains(&format!("{succeeded} 1\n"));
    tower_offload_tests::eventually("the job is counted", is_counted).await;
    let after = server.get("/metrics").await.text().to_owned();
    for line in [
        "# TYPE offload_jobs_wait_seconds histogram",
        r#"offload_jobs_run_seconds_bucket{kind="report",queue="default",le="3600"} 1"#,
        r#"offload_jobs_running{kind="report",queue="default"} 0"#,
    ] {
        assert!(after.lines().any(|other| other == line), "{line} in {after}");
    }
    fs::remove_dir_all(folder).unwrap();
}

/// A span as the exporter prints it.
#[derive(Debug, Default)]
struct Printed {
    name: String,
    trace: String,
    span: String,
    parent: String,
    linked: String,
    attempt: String,
}

#[tokio::test]
async fn opentelemetry_prints_the_trace_of_a_job() {
    let (folder, database) = sqlite("opentelemetry");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let program = tower_offload_tests::example(&examples, "opentelemetry");
    let mut server = Server::start(&program, &["--database", &database]).await;
    assert_eq!(server.post("/reports", "").await.status, StatusCode::ACCEPTED);
    let mut spans: Vec<Printed> = Vec::new();
    while !spans.last().is_some_and(|span| span.attempt == "I64(2)" && !span.linked.is_empty()) {
        let line = server.line().await.expect("a span of the second attempt");
        if line.starts_with("Span #") {
            spans.push(Printed::default());
        }
        let (Some(span), Some((key, value))) = (spans.last_mut(), line.split_once(':')) else { continue };
        let value = value.trim().to_owned();
        match key {
            "\tName         " => span.name = value,
            "\tTraceId      " => span.trace = value,
            "\tSpanId       " => span.span = value,
            "\tParentSpanId " => span.parent = value,
            "\t\t ->  attempt" => span.attempt = value,
            "\tSpanId " => span.linked = value,
            _ => {}
        }
    }
    let find = |name: &str, attempt: &str| {
        spans.iter().find(|span| span.name == name && span.attempt == attempt).unwrap_or_else(|| panic!("{spans:#?}"))
    };
    let request = find("POST /reports", "");
    let (first, second) = (find("job report", "I64(1)"), find("job report", "I64(2)"));
    assert_eq!((&first.trace, &first.parent, &first.linked), (&request.trace, &request.span, &String::new()));
    assert_eq!((&*second.parent, &second.linked), ("None (root span)", &request.span));
    assert_ne!(second.trace, request.trace);
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn job_that_is_cancelled_in_its_last_step_writes_nothing() {
    let (folder, database) = sqlite("jobs-cancel");
    let out = folder.join("out");
    let program = tower_offload_tests::example(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples"), "jobs");
    let server = Server::start(&program, &["--database", &database, "--out", &out.display().to_string()]).await;
    let mut is_cancelled = false;
    // The last step takes 800 ms. On a busy host a request can come after it.
    for key in 0..5 {
        let reply = server.post(&format!("/jobs?key=key-{key}&ms=8000"), "").await;
        let location = reply.headers["location"].to_str().unwrap();
        let is_in_last_step = async || {
            let status = server.get(location).await;
            ["\"progress\":0.9", "\"finished_at\":"].iter().any(|text| status.text().contains(text))
        };
        tower_offload_tests::eventually("the last step", is_in_last_step).await;
        server.delete(location).await;
        // The stream ends with the job.
        let events = server.get(&format!("{location}/events")).await;
        if events.text().contains("\"state\":\"cancelled\"") {
            let lines = fs::read_to_string(&out).unwrap_or_default();
            assert!(!lines.contains(&format!("key-{key}")), "{lines}");
            is_cancelled = true;
            break;
        }
    }
    assert!(is_cancelled);
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
        ("key=a&ms=600000", "less than 600000"),
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
