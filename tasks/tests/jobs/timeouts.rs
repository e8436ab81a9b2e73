//! Timeouts of attempts and of the shutdown.

use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;
use tower_offload::ThreadPool;
use tower_offload_tasks::{
    TaskState,
    jobs::{Backoff, Context, Jobs},
};

use tower_offload_tests::eventually;

use super::support::{
    A_WHILE, Act, ActAsync, GRACE, LONG, SHORT, TestDatabase, TestWorkers, ended, on_each_database, record, until,
};

on_each_database! {
    late_closure_keeps_its_job_until_it_returns
    late_future_is_dropped_and_times_out
    jobs_running_at_shutdown_are_requeued_without_counting
    shutdown_reports_closures_that_are_still_running
    progress_is_written_during_and_after_the_attempt
    full_pool_does_not_count_as_an_attempt
}

async fn late_closure_keeps_its_job_until_it_returns(database: TestDatabase) {
    /// Long enough for the second attempt on a busy machine.
    const TIMEOUT: Duration = Duration::from_millis(500);
    let tasks = database.tasks().await;
    let on_pool = TestWorkers::new();
    let (late, mut is_late) = mpsc::unbounded_channel();
    let in_worker = on_pool.clone();
    let work = move |_: Act, progress: Context| {
        if !in_worker.started.lock().unwrap().is_empty() {
            return in_worker.act(Act::Return(json!("second")), &progress);
        }
        let _cancelled = in_worker.act(Act::UntilCancelled, &progress); // at its timeout
        late.send(()).unwrap();
        in_worker.hold()
    };
    let builder = Jobs::builder(&tasks).backoff(Backoff::fixed(Duration::ZERO));
    let jobs = builder.blocking_worker(ThreadPool::blocking(2), TIMEOUT, work).start().await.unwrap();
    let accepted = jobs.enqueue(Act::Hold).await.unwrap();
    is_late.recv().await.unwrap();
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(on_pool.started.lock().unwrap().len(), 1, "two attempts overlap");
    assert_eq!(record(&tasks, accepted.id()).await.state, TaskState::Running);
    on_pool.release();
    let ended = ended(&tasks, accepted.id()).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 2));
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn late_future_is_dropped_and_times_out(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let in_worker = workers.clone();
    let work = move |ActAsync(act): ActAsync, progress: Context| {
        let workers = in_worker.clone();
        async move { workers.act_async(act, progress.into()).await }
    };
    let builder = Jobs::builder(&tasks).backoff(Backoff::fixed(Duration::ZERO));
    let jobs = builder.worker(SHORT, work).start().await.unwrap();
    let accepted = jobs.enqueue(ActAsync(Act::Hold)).max_attempts(2).await.unwrap();
    let ended = ended(&tasks, accepted.id()).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::TimedOut, 2));
    assert_eq!(ended.failure.unwrap().class, "timeout");
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn jobs_running_at_shutdown_are_requeued_without_counting(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let held = jobs.enqueue(ActAsync(Act::Hold)).await.unwrap();
    let polls = jobs.enqueue(Act::UntilCancelled).await.unwrap();
    workers.started(2).await;
    let report = jobs.shutdown(GRACE).await;
    assert!(report.is_clean(), "{report}");
    for id in [held.id(), polls.id()] {
        let requeued = record(&tasks, id).await;
        assert_eq!((requeued.state, requeued.attempt), (TaskState::Queued, 0));
    }
}

async fn shutdown_reports_closures_that_are_still_running(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let held = jobs.enqueue(Act::Hold).await.unwrap();
    workers.started(1).await;
    let report = jobs.shutdown(Duration::from_millis(100)).await;
    assert_eq!(report.still_running, [held.id()]);
    assert_eq!(record(&tasks, held.id()).await.state, TaskState::Running, "the closure is still running");
    assert_eq!(jobs.running(), 1);
    workers.release();
    eventually("the closure has returned", async || jobs.running() == 0).await;
}

async fn progress_is_written_during_and_after_the_attempt(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let in_worker = workers.clone();
    let work = move |_: Act, progress: Context| {
        progress.set(0.5, "halfway");
        let held = in_worker.act(Act::Hold, &progress);
        progress.set(1.0, "done");
        held
    };
    let jobs = Jobs::builder(&tasks).blocking_worker(ThreadPool::blocking(1), LONG, work).start().await.unwrap();
    let accepted = jobs.enqueue(Act::Hold).await.unwrap();
    let halfway = until(&tasks, accepted.id(), |record| record.progress.is_some()).await;
    assert_eq!(
        (halfway.state, halfway.progress, halfway.message.as_deref()),
        (TaskState::Running, Some(0.5), Some("halfway"))
    );
    workers.release();
    let ended = ended(&tasks, accepted.id()).await;
    assert_eq!(
        (ended.state, ended.progress, ended.message.as_deref()),
        (TaskState::Succeeded, Some(1.0), Some("done"))
    );
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn full_pool_does_not_count_as_an_attempt(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let in_worker = workers.clone();
    let pool = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
    let work = move |act: Act, progress: Context| in_worker.act(act, &progress);
    let builder = Jobs::builder(&tasks).blocking_worker(pool, LONG, work);
    let jobs = builder.queue("default", 8).start().await.unwrap(); // more than the pool can run
    let held = jobs.enqueue(Act::Hold).await.unwrap();
    workers.started(1).await;
    let mut others = Vec::new();
    for number in 0..4 {
        others.push(jobs.enqueue(Act::Return(json!(number))).max_attempts(1).await.unwrap().id());
    }
    // The queue of the pool has room for one job. The pool rejects the others repeatedly.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    workers.release();
    ended(&tasks, held.id()).await;
    for id in others {
        let ended = ended(&tasks, id).await;
        assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 1));
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}
