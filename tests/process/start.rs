//! Processes that do not start.

use std::time::Duration;

use tower_offload::process::ProcessPool;

use crate::support::builder;

#[test]
fn forgotten_init_is_named() {
    // A test program is no worker process, and this one does not call `init` in `main`.
    let builder = ProcessPool::builder().processes(1).arguments(["start::main_without_init", "--exact", "--nocapture"]);
    let error = builder.build().unwrap_err();
    assert!(error.is_not_initialized(), "{error}");
    assert!(error.to_string().contains("tower_offload::process::init"), "{error}");
}

/// The `main` of a program that builds a pool without having called `init`.
#[test]
fn main_without_init() {
    let _ = ProcessPool::builder().build();
}

#[test]
fn program_that_ends_is_named_with_its_stderr() {
    let error =
        ProcessPool::builder().program("/bin/sh").arguments(["-c", "echo broken >&2; exit 3"]).build().unwrap_err();
    let message = error.to_string();
    assert!(message.contains("broken") && message.contains("exit status: 3"), "{message}");
}

#[test]
fn silent_program_and_missing_program_are_errors() {
    let silent = ProcessPool::builder().program("/bin/sleep").arguments(["1000"]);
    let error = silent.start_timeout(Duration::from_millis(50)).build().unwrap_err();
    assert!(error.is_spawn() && error.to_string().contains("not ready in time"), "{error}");
    assert!(ProcessPool::builder().program("/nowhere").build().unwrap_err().is_spawn());
}

#[test]
fn invalid_values_are_named() {
    for (builder, name) in [
        (builder().processes(0), "processes"),
        (builder().spares(usize::MAX), "spares"),
        (builder().max_jobs(0), "max_jobs"),
        (builder().max_age(Duration::ZERO), "max_age"),
        (builder().max_memory(0), "max_memory"),
        (builder().max_frame_size(0), "max_frame_size"),
        (builder().max_frame_size(usize::MAX), "max_frame_size"),
        (builder().queue_capacity(0), "queue_capacity"),
        (builder().name("a\0b"), "name"),
    ] {
        let error = builder.build().unwrap_err();
        assert!(error.is_configuration() && error.to_string().contains(name), "{error}");
    }
}
