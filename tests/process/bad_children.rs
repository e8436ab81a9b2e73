//! Processes that break the protocol.

use std::time::Duration;

use tower_offload::process::RunError;

use crate::support::{Do, builder, eventually, is_reaped, kill, pid_of};

#[tokio::test]
async fn process_that_closes_its_socket_is_killed() {
    let pool = builder().build().unwrap();
    let pid = pid_of(&pool).await;
    assert_eq!(pool.run(Do::CloseSocket).await, Err(RunError::Protocol));
    assert!(is_reaped(pid));
    assert_eq!(pool.run(Do::Echo(vec![1])).await, Ok(vec![1]));
}

#[tokio::test]
async fn garbage_and_oversized_frames_end_only_their_job() {
    let pool = builder().build().unwrap();
    let oversized = u32::MAX.to_le_bytes().to_vec();
    let unknown = [&4_u32.to_le_bytes()[..], &[99; 4]].concat();
    for bytes in [oversized, unknown] {
        assert_eq!(pool.run(Do::Garbage(bytes)).await, Err(RunError::Protocol));
        assert_eq!(pool.run(Do::Echo(vec![1])).await, Ok(vec![1]));
    }
}

#[tokio::test]
async fn truncated_frame_ends_only_its_job() {
    let pool = builder().build().unwrap();
    for (exit, error) in [(None, RunError::Protocol), (Some(3), RunError::Exited { code: Some(3) })] {
        assert_eq!(pool.run(Do::Truncate(exit)).await, Err(error));
        assert_eq!(pool.run(Do::Echo(vec![1])).await, Ok(vec![1]));
    }
}

#[tokio::test]
async fn idle_process_that_is_killed_fails_no_job() {
    let pool = builder().build().unwrap();
    for _ in 0..10 {
        let pid = pid_of(&pool).await;
        kill(pid);
        assert_eq!(pool.run(Do::Echo(vec![1])).await, Ok(vec![1]));
        eventually("reaped", || is_reaped(pid)).await;
    }
    assert_eq!(pool.shutdown(Duration::from_secs(5)).await.running, 0);
    assert_eq!(pool.stats().alive, 0);
}
