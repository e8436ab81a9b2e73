use std::time::Duration;

use tower_offload::{CallError, process::RunError};

use crate::support::{Do, Meeting, builder, eventually};

#[tokio::test]
async fn full_queue_rejects_at_once_and_abandoned_work_never_starts() {
    let pool = builder().queue_capacity(1).build().unwrap();
    let meeting = Meeting::new();
    let running = pool.run(Do::Hold(meeting.port()));
    let held = meeting.entered().await;
    let queued = pool.run(Do::Exit(1));
    assert_eq!(pool.run(Do::Pid).await, Err(RunError::Rejected(CallError::Overloaded)));
    drop(queued);
    drop(held);
    assert_eq!(running.await, Ok(Vec::new()));
    eventually("the entry of the abandoned job is gone", || pool.stats().jobs.permits_in_use == 0).await;
    assert_eq!(pool.run(Do::Echo(vec![1])).await, Ok(vec![1]));
    let stats = pool.stats();
    assert_eq!((stats.jobs.rejected, stats.jobs.abandoned, stats.jobs.started, stats.jobs.completed), (1, 1, 2, 2));
    assert!(pool.shutdown(Duration::from_secs(5)).await.is_empty());
    assert_eq!(pool.run(Do::Pid).await, Err(RunError::Rejected(CallError::Closed)));
}
