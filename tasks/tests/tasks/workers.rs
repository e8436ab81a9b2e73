//! Workers of one port that open a store. SQLite allows one process.

use std::{
    env,
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use tower_offload::process::workers::{Supervisor, Worker};
use tower_offload_tasks::{SqlStore, StoreError};

use super::sqlite_store::Folder;

const FILE: &str = "TASKS_TEST_FILE";
const WORKERS: &str = "TASKS_TEST_WORKERS";

/// The program, in the supervisor and in its workers. It prints what happens.
#[test]
#[ignore = "run by the other tests"]
fn program() {
    let Ok(workers) = env::var(WORKERS) else { return };
    println!(); // behind what the test harness has printed
    let supervisor =
        Supervisor::builder().workers(workers.parse().unwrap()).listen(|| TcpListener::bind("127.0.0.1:0"));
    match supervisor.on_event(|event| println!("{event}")).run(work) {
        Ok(report) => println!("stopped: {report}"),
        Err(error) => println!("failed: {error}"),
    }
    std::process::exit(0);
}

/// Opens the store, and keeps it until the worker drains.
#[tokio::main]
async fn work(worker: Worker) -> Result<(), StoreError> {
    let file = env::var(FILE).unwrap();
    let store = SqlStore::open(&format!("sqlite:{file}")).await?;
    worker.ready();
    worker.drain_requested().await;
    store.close().await
}

fn start(folder: &Folder, workers: usize) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["workers::program", "--exact", "--ignored", "--nocapture"])
        .env(FILE, folder.file())
        .env(WORKERS, workers.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn assert_names_the_remedy(stderr: &[u8]) {
    let stderr = String::from_utf8_lossy(stderr);
    let error = stderr.lines().find(|line| line.starts_with("error: the task store is in use: ")).expect(&stderr);
    assert!(error.contains("tasks.db is in use by ") && error.ends_with("or Postgres for all"), "{error}");
}

#[test]
fn two_workers_on_sqlite_do_not_start() {
    let folder = Folder::new();
    let ended = start(&folder, 2).wait_with_output().unwrap();
    assert_names_the_remedy(&ended.stderr);
    let stdout = String::from_utf8(ended.stdout).unwrap();
    assert!(stdout.contains("failed: cannot start the workers: worker "), "{stdout}");
}

/// The new worker starts before the old one has closed the store.
#[test]
fn one_worker_on_sqlite_starts_and_cannot_be_reloaded() {
    let folder = Folder::new();
    let mut program = start(&folder, 1);
    let stdout = BufReader::new(program.stdout.take().unwrap());
    let signal = |name: &str| {
        let id = program.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    };
    let mut last = String::new();
    for line in stdout.lines().map_while(Result::ok) {
        if line.ends_with(" ready") {
            signal("HUP");
        } else if line.starts_with("reload failed, the old workers continue: ") {
            signal("TERM");
        }
        last = line;
    }
    assert_eq!(last, "stopped: workers started: 1, died: 0, killed: 0; reloads: 0");
    assert_names_the_remedy(&program.wait_with_output().unwrap().stderr);
}
