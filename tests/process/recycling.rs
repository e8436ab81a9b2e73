use std::time::Duration;

use crate::support::{Do, Program, builder, eventually, is_reaped, pid_of};

#[tokio::test]
async fn process_is_recycled_after_max_jobs() {
    let pool = builder().max_jobs(2).build().unwrap();
    eventually("a spare", || pool.stats().idle == 2).await;
    let pids = [pid_of(&pool).await, pid_of(&pool).await, pid_of(&pool).await];
    assert_eq!(pids[0], pids[1]);
    assert_ne!(pids[1], pids[2]);
    eventually("reaped", || is_reaped(pids[0])).await;
    assert_eq!(pool.stats().recycled, 1);
}

#[tokio::test]
async fn process_that_has_grown_is_recycled() {
    let pool = builder().max_memory(400 << 20).build().unwrap();
    let before = pid_of(&pool).await;
    pool.run(Do::Keep(250 << 20)).await.unwrap();
    assert_ne!(pid_of(&pool).await, before);
    eventually("reaped", || is_reaped(before)).await;
}

#[tokio::test]
async fn idle_processes_are_recycled_by_age() {
    let pool = builder().max_age(Duration::from_millis(100)).build().unwrap();
    eventually("recycled", || pool.stats().recycled >= 3).await;
    assert_eq!(pool.run(Do::Echo(vec![1])).await, Ok(vec![1]));
}

#[tokio::test]
async fn old_process_is_kept_while_no_successor_can_start() {
    let program = Program::new("removed");
    let pool = builder().spares(2).max_age(Duration::from_millis(100)).program(program.path()).build().unwrap();
    eventually("every process is ready", || pool.stats().idle == 3).await;
    drop(program);
    eventually("starts fail", || pool.stats().start_failures >= 3).await;
    for _ in 0..3 {
        assert_eq!(pool.run(Do::Echo(vec![1])).await, Ok(vec![1]));
    }
    assert_eq!(pool.stats().idle, 2);
}
