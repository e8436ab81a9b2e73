//! Processes that break the protocol, or do not do what they are asked.

use std::{io::Read, time::Duration};

use rustix::process::Signal;
use tower_offload::process::{KilledBy, RunError};

use crate::support::{
    Afterwards, Do, Meeting, PATIENCE, builder, eventually, is_alive, is_reaped, kill, number, pid_of, send_signal,
};

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
    let stats = pool.stats();
    assert_eq!((stats.protocol_errors, stats.exited, stats.crashed), (2, 0, 0));
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

#[tokio::test]
async fn process_that_was_damaged_by_an_earlier_job_fails_no_other() {
    let pool = builder().build().unwrap();
    let (meeting, before) = (Meeting::new(), pid_of(&pool).await);
    assert_eq!(pool.run(Do::GarbageLater(meeting.port())).await, Ok(Vec::new()));
    drop(meeting.entered().await);
    let _written = meeting.entered().await;
    assert_eq!(pool.run(Do::Echo(vec![1])).await, Ok(vec![1]));
    eventually("the process is replaced", || is_reaped(before)).await;
}

/// More processes than a job is tried on.
#[tokio::test]
async fn processes_that_earlier_jobs_have_damaged_cost_a_job_no_attempt() {
    const DAMAGED: usize = 4;
    let pool = builder().processes(DAMAGED).spares(0).build().unwrap();
    let mut jobs = Vec::new();
    for _ in 0..DAMAGED {
        let (meeting, hold) = (Meeting::new(), Meeting::new());
        assert_eq!(pool.run(Do::GarbageLater(meeting.port())).await, Ok(Vec::new()));
        let waits = meeting.entered().await;
        // Keeps this process busy, so that the next job damages another one.
        let job = pool.run(Do::Hold(hold.port()));
        jobs.push((job, hold.entered().await, meeting, waits));
    }
    let mut damaged = Vec::new();
    for (job, hold, meeting, waits) in jobs {
        drop(hold);
        assert_eq!(job.await, Ok(Vec::new()));
        damaged.push((meeting, waits));
    }
    for (meeting, waits) in damaged {
        drop(waits);
        drop(meeting.entered().await); // the garbage is written
    }
    assert_eq!(pool.run(Do::Echo(vec![1])).await, Ok(vec![1]));
    assert_eq!(pool.stats().recycled, DAMAGED as u64);
}

#[tokio::test]
async fn frames_without_end_do_not_suspend_the_limits() {
    let pool = builder().grace(Duration::from_millis(20)).build().unwrap();
    let job = pool.run(Do::Flood).timeout(Duration::from_millis(50));
    let ended = tokio::time::timeout(PATIENCE, job).await;
    assert_eq!(ended, Ok(Err(RunError::Killed { by: KilledBy::Timeout })));
    assert_eq!(pool.run(Do::Echo(vec![1])).await, Ok(vec![1]));
}

#[tokio::test]
async fn fork_that_keeps_the_socket_does_not_hide_the_end() {
    for afterwards in [Afterwards::Wait, Afterwards::LeaveAndFlood] {
        let (pool, meeting) = (builder().build().unwrap(), Meeting::new());
        let job = pool.run(Do::Fork(meeting.port(), afterwards));
        let mut text = Vec::new();
        meeting.entered().await.read_to_end(&mut text).unwrap();
        let ended = tokio::time::timeout(PATIENCE, job).await;
        assert_eq!(ended, Ok(Err(RunError::Exited { code: Some(3) })), "{afterwards:?}");
        // Killed with its group, or by the end of the socket.
        let fork = number(text);
        eventually("the fork ends", || !is_alive(fork)).await;
    }
}

#[tokio::test]
async fn signals_of_a_terminal_or_service_manager_end_no_process() {
    let pool = builder().build().unwrap();
    let (meeting, pid) = (Meeting::new(), pid_of(&pool).await);
    let job = pool.run(Do::Hold(meeting.port()));
    let held = meeting.entered().await;
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        send_signal(pid, signal);
    }
    drop(held);
    assert_eq!(job.await, Ok(Vec::new()));
    assert_eq!(pid_of(&pool).await, pid);
}
