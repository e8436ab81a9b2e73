//! Limits that end a job.

use std::{io::Read, time::Duration};

use tower_offload::{
    CallError,
    pool::CallOptions,
    process::{KilledBy, MemoryLimit, RunError},
};

use crate::support::{Do, Meeting, builder, eventually, is_alive, is_reaped, number, pid_of};

const SHORT: Duration = Duration::from_millis(50);

#[tokio::test]
async fn loop_is_killed_at_its_timeout_and_a_spare_takes_over() {
    let pool = builder().grace(SHORT).build().unwrap();
    eventually("a spare", || pool.stats().idle == 2).await;
    let first = pid_of(&pool).await;
    let killed = pool.run(Do::Loop).timeout(SHORT).await;
    assert_eq!(killed, Err(RunError::Killed { by: KilledBy::Timeout }));
    assert!(is_reaped(first), "the caller is answered when the process is gone");
    assert_ne!(pid_of(&pool).await, first);
    eventually("another spare", || pool.stats().idle == 2).await;
    assert_eq!(pool.stats().killed_by_timeout, 1);
}

#[tokio::test]
async fn work_that_notices_its_timeout_keeps_its_process() {
    let pool = builder().grace(Duration::from_secs(60)).build().unwrap();
    let before = pid_of(&pool).await;
    let meeting = Meeting::new();
    let result = pool.run(Do::UntilCancelled(meeting.port())).timeout(SHORT).await;
    assert_eq!(result, Ok(b"cancelled".to_vec()));
    assert_eq!(pid_of(&pool).await, before);
}

#[tokio::test]
async fn memory_over_the_limit_is_killed() {
    let pool = builder().grace(SHORT).max_memory(200 << 20).build().unwrap();
    let killed = pool.run(Do::Allocate(300 << 20)).await;
    assert_eq!(killed, Err(RunError::Killed { by: KilledBy::Memory }));
    assert_eq!(pool.stats().memory_limit, MemoryLimit::ResidentSize);
    let pool = builder().grace(Duration::from_secs(600)).max_memory(100 << 20).build().unwrap();
    let killed = pool.run(Do::Allocate(300 << 20)).await;
    assert_eq!(killed, Err(RunError::Killed { by: KilledBy::Memory }), "twice the limit needs no grace period");
}

#[tokio::test]
async fn caller_that_leaves_kills_its_job() {
    let pool = builder().grace(SHORT).build().unwrap();
    let (meeting, pid) = (Meeting::new(), pid_of(&pool).await);
    let job = pool.run(Do::Hold(meeting.port()));
    let _held = meeting.entered().await;
    drop(job);
    eventually("killed", || is_reaped(pid)).await;
    eventually("counted", || pool.stats().killed_by_cancel == 1).await;
    assert_eq!(pool.run(Do::Echo(vec![1])).await, Ok(vec![1]));
}

#[tokio::test]
async fn deadline_answers_the_caller_and_kills_the_job() {
    let pool = builder().grace(SHORT).build().unwrap();
    let (pid, mut limit) = (pid_of(&pool).await, SHORT);
    // On a busy machine, the deadline may pass before the job begins.
    while pool.stats().killed_by_timeout + pool.stats().killed_by_cancel == 0 {
        let ended = pool.run_with(CallOptions::new().timeout(limit), Do::Loop).await;
        assert_eq!(ended, Err(RunError::Rejected(CallError::DeadlineExceeded)));
        eventually("no job runs", || pool.stats().jobs.active == 0).await;
        limit *= 2;
    }
    eventually("killed", || is_reaped(pid)).await;
}

#[tokio::test]
async fn kill_takes_the_process_group() {
    let pool = builder().grace(SHORT).build().unwrap();
    let meeting = Meeting::new();
    let job = pool.run(Do::SpawnAndLoop(meeting.port()));
    let mut text = Vec::new();
    meeting.entered().await.read_to_end(&mut text).unwrap();
    let grandchild = number(text);
    assert!(is_alive(grandchild));
    drop(job);
    eventually("killed", || !is_alive(grandchild)).await;
}

#[tokio::test]
async fn crashed_process_leaves_no_group_behind() {
    let pool = builder().build().unwrap();
    let grandchild = number(pool.run(Do::Spawn).await.unwrap());
    assert!(is_alive(grandchild));
    assert!(pool.run(Do::Abort).await.is_err());
    eventually("killed", || !is_alive(grandchild)).await;
}

#[tokio::test]
async fn shutdown_waits_for_idle_processes() {
    // The threads that end and that reap a process must meet at the wrong moment.
    for _ in 0..5 {
        let pool = builder().processes(3).build().unwrap();
        eventually("idle", || pool.stats().idle == 4).await;
        pool.shutdown(SHORT).await;
        assert_eq!(pool.stats().alive, 0);
    }
}

#[tokio::test]
async fn shutdown_kills_what_is_left_and_reaps_everything() {
    let pool = builder().grace(Duration::from_secs(600)).build().unwrap();
    let (meeting, pid) = (Meeting::new(), pid_of(&pool).await);
    let job = pool.run(Do::Hold(meeting.port()));
    let _held = meeting.entered().await;
    let report = pool.shutdown(SHORT).await;
    assert_eq!(report.running, 1);
    assert_eq!((pool.stats().alive, is_reaped(pid)), (0, true));
    assert_eq!(job.await, Err(RunError::Killed { by: KilledBy::Cancelled }));
}
