use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tower_offload::{CallError, process::RunError};

use crate::support::{Do, Meeting, builder, eventually, pool_that_holds_starts};

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

#[tokio::test]
async fn job_abandoned_while_its_process_starts_never_starts() {
    let (meeting, lines) = (Meeting::new(), Arc::new(Mutex::new(Vec::new())));
    let builder = builder().on_output({
        let lines = lines.clone();
        move |line| lines.lock().unwrap().extend(line.job.map(|_| line.text.to_owned()))
    });
    let pool = pool_that_holds_starts(builder, &meeting).await;
    assert!(pool.run(Do::Abort).await.is_err());
    let starting = meeting.entered().await;
    let abandoned = pool.run(Do::Print("it runs".to_owned()));
    eventually("the job waits for a process", || pool.stats().jobs.started == 2).await;
    drop(abandoned);
    drop(starting);
    assert_eq!(pool.run(Do::Echo(vec![1])).await, Ok(vec![1]));
    assert_eq!(*lines.lock().unwrap(), [""; 0]);
}
