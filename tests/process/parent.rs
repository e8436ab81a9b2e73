//! The program that has the pool ends.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Command, Stdio},
    time::Duration,
};

use tower_offload::process::ProcessPool;

use crate::support::{Do, Meeting, builder, eventually, is_alive, kill, number, pid_of};

/// A program with a pool: it prints the process ids of its idle process and, once that runs, of the
/// one that is busy, and waits.
#[test]
#[ignore = "run by the other tests"]
fn program() {
    let Ok(port) = std::env::var("PROCESS_TEST_PORT") else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let pool = builder().build().unwrap();
        let busy = pid_of(&pool).await;
        let _job = pool.run(Do::Hold(port.parse().unwrap()));
        println!("\nbusy {busy}");
        std::io::stdout().flush().unwrap();
        std::future::pending::<()>().await;
    });
}

#[tokio::test]
async fn killed_program_leaves_no_process() {
    let meeting = Meeting::new();
    let mut program = Command::new(std::env::current_exe().unwrap())
        .args(["parent::program", "--exact", "--ignored", "--nocapture"])
        .env("PROCESS_TEST_PORT", meeting.port().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(program.stdout.take().unwrap()).lines().map_while(Result::ok);
    let busy =
        lines.filter_map(|line| Some(line.strip_prefix("busy ")?.as_bytes().to_vec())).map(number).next().unwrap();
    let mut held = meeting.entered().await;
    assert!(is_alive(busy));
    kill(program.id());
    program.wait().unwrap();
    eventually("the busy process ends", || !is_alive(busy)).await;
    let mut rest = Vec::new();
    let _ = held.read_to_end(&mut rest); // closed by its end
}

#[tokio::test]
async fn dropped_pool_runs_its_jobs_and_leaves_no_process() {
    let pool = builder().build().unwrap();
    let pid = pid_of(&pool).await;
    let meeting = Meeting::new();
    let job = pool.run(Do::Hold(meeting.port()));
    drop(pool);
    drop(meeting.entered().await);
    assert_eq!(job.await, Ok(Vec::new()));
    eventually("ended", || crate::support::is_reaped(pid)).await;
}

#[test]
fn pool_needs_no_runtime() {
    let pool: ProcessPool = builder().build().unwrap();
    assert_eq!(pollster::block_on(pool.run(Do::Echo(vec![1]))), Ok(vec![1]));
    let killed = pollster::block_on(pool.run(Do::Loop).timeout(Duration::from_millis(10)));
    assert!(killed.unwrap_err().killed_by().is_some());
}
