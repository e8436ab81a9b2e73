//! Processes that do not start.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use tower_offload::process::{self, MemoryLimit, ProcessPool, RunError};

use crate::support::{Do, Meeting, PATIENCE, Program, builder, pool_that_holds_starts};

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
fn forgotten_init_is_named_without_starting_a_process() {
    // A program of its own: in this one, another test may have called `init`.
    let mut program = Command::new(std::env::current_exe().unwrap());
    let output = program
        .args(["start::program_without_init", "--exact", "--ignored", "--nocapture"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("not initialized: true"), "{text}");
    let printed = text.lines().find(|line| line.starts_with("main would print: ")).unwrap();
    assert!(printed.contains("the first line of `main`"), "{printed}");
}

#[test]
#[ignore = "run by the other tests"]
fn program_without_init() {
    let error = ProcessPool::builder().build().unwrap_err();
    println!("\nnot initialized: {}", error.is_not_initialized());
    println!("main would print: {error:?}");
}

/// Otherwise each process of a pool in a worker would start workers with pools.
#[test]
fn supervisor_does_not_run_in_a_process_of_a_pool() {
    let arguments = ["start::supervisor_before_init", "--exact", "--ignored", "--nocapture"];
    let error = ProcessPool::builder().processes(1).arguments(arguments).build().unwrap_err();
    assert!(error.is_not_initialized(), "{error}");
}

/// The `main` of a program that runs a supervisor before it calls `init`.
#[test]
#[ignore = "run by the other tests"]
fn supervisor_before_init() {
    let work = |_: process::workers::Worker| -> Result<(), String> { unreachable!("no worker is started") };
    let error = process::workers::Supervisor::builder()
        .listen(|| std::net::TcpListener::bind("127.0.0.1:0"))
        .run(work)
        .unwrap_err();
    assert!(error.is_configuration(), "{error}");
}

/// The `main` of worker processes that call `init` in a runtime.
#[tokio::test]
async fn async_process_worker() {
    process::init::<Do>();
}

#[tokio::test]
async fn init_works_inside_of_a_runtime() {
    let arguments = ["start::async_process_worker", "--exact", "--nocapture"];
    let pool = ProcessPool::builder().processes(1).arguments(arguments).build().unwrap();
    assert_eq!(pool.run(Do::Echo(vec![1])).await, Ok(vec![1]));
    assert_eq!(pool.stats().memory_limit, MemoryLimit::None);
}

#[test]
fn program_that_starts_another_one_is_another_version() {
    let program = std::env::current_exe().unwrap();
    let shell = ProcessPool::builder().processes(1).program("/bin/sh").arguments(["-c", "exec \"$@\"", "sh"]);
    let worker = [program.to_str().unwrap(), "support::process_worker", "--exact", "--nocapture"];
    let error = shell.arguments(worker).build().unwrap_err();
    assert!(error.to_string().contains("the file of the program was replaced"), "{error}");
}

#[tokio::test]
async fn process_of_another_version_gets_no_job() {
    let program = Program::new("replaced");
    let pool = builder().spares(0).program(program.path()).build().unwrap();
    program.replace();
    assert!(pool.run(Do::Abort).await.is_err());
    loop {
        match pool.run(Do::Pid).await {
            Err(RunError::NoProcess(error)) if error.is_other_executable() => break,
            // The copy is still open for writing in a process that another test is about to start.
            Err(RunError::NoProcess(error)) if error.to_string().contains("cannot start") => {}
            result => panic!("{result:?}"),
        }
    }
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
    let missing = ProcessPool::builder().program("/nowhere").build().unwrap_err();
    assert!(missing.is_spawn() && missing.to_string().contains("/nowhere"), "{missing}");
}

#[tokio::test]
async fn start_that_a_shutdown_interrupts_has_not_failed() {
    let meeting = Meeting::new();
    let pool = pool_that_holds_starts(builder(), &meeting).await;
    assert!(pool.run(Do::Abort).await.is_err());
    let _starting = meeting.entered().await;
    assert!(pool.shutdown(PATIENCE).await.is_empty());
    assert_eq!((pool.stats().alive, pool.stats().start_failures), (0, 0));
}

#[test]
fn invalid_values_are_named() {
    for (builder, name) in [
        (builder().processes(0), "processes"),
        (builder().spares(usize::MAX), "spares"),
        (builder().max_jobs(0), "max_jobs"),
        (builder().max_age(Duration::ZERO), "max_age"),
        (builder().max_memory(0), "max_memory"),
        (builder().max_memory(1), "max_memory"),
        (builder().start_timeout(Duration::ZERO), "start_timeout"),
        (builder().max_frame_size(0), "max_frame_size"),
        (builder().max_frame_size(usize::MAX), "max_frame_size"),
        (builder().queue_capacity(0), "queue_capacity"),
        (builder().name("a\0b"), "name"),
    ] {
        let error = builder.build().unwrap_err();
        assert!(error.is_configuration() && error.to_string().contains(name), "{error}");
    }
}
