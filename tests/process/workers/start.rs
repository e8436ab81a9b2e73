//! Supervisors that cannot start.

use std::net::TcpListener;

use super::program::{Program, Settings};

fn failure(settings: &Settings) -> String {
    let (code, lines) = Program::start(settings).end();
    assert_eq!(code, Some(1), "{lines:?}");
    lines.iter().find_map(|line| line.strip_prefix("failed: ")).unwrap_or_else(|| panic!("{lines:?}")).to_owned()
}

#[test]
fn port_in_use_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = failure(&Settings { port, ..Settings::default() });
    assert!(error.contains("cannot bind") && error.contains("in use"), "{error}");
}

#[test]
fn zero_workers_are_an_error() {
    let error = failure(&Settings { workers: 0, ..Settings::default() });
    assert!(error.contains("`workers` must be"), "{error}");
}

#[test]
fn worker_that_dies_at_the_start_ends_the_supervisor() {
    let error = failure(&Settings { mode: "fail", ..Settings::default() });
    assert!(error.contains("ended before it was ready (exit status: 1)"), "{error}");
}

#[test]
fn worker_that_is_never_ready_ends_the_supervisor() {
    let error = failure(&Settings { mode: "silent", start_timeout: 100, ..Settings::default() });
    assert!(error.contains("not ready in time") && error.contains("start_timeout"), "{error}");
}
