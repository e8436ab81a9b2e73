//! Cancellation of jobs.

use serde_json::json;
use tower_offload_tasks::{Reason, TaskState};
use tower_offload_tests::eventually;

use super::support::{Act, ActAsync, LONG, TestDatabase, TestWorkers, ended, on_each_database, record, until};

on_each_database! {
    queued_job_is_cancelled_at_once
    queued_job_is_cancelled_after_its_queue_was_shut_down
    job_is_cancelled_after_the_shutdown_of_its_tasks
    running_future_is_dropped
    closure_is_cancelled_only_if_it_polls
    repeated_request_is_not_forwarded_again
    request_of_another_process_is_forwarded
}

async fn queued_job_is_cancelled_at_once(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    let waiting = jobs.enqueue(Act::Return(json!(1))).delay(LONG).await.unwrap();
    let cancelled = tasks.cancel(waiting.id()).await.unwrap().into_record().unwrap();
    assert_eq!((cancelled.state, cancelled.reason), (TaskState::Cancelled, Some(Reason::Requested)));
    assert_eq!(cancelled.attempt, 0);
    assert!(cancelled.cancel_requested_at.is_some());
    let again = tasks.cancel(waiting.id()).await.unwrap().into_record().unwrap();
    assert_eq!(again, cancelled, "calling it again has no effect");
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// The job must not start before the next process has seen the request.
async fn queued_job_is_cancelled_after_its_queue_was_shut_down(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    let waiting = jobs.enqueue(Act::Return(json!(1))).delay(LONG).await.unwrap();
    assert!(jobs.shutdown(LONG).await.is_clean());
    let cancelled = tasks.cancel(waiting.id()).await.unwrap().into_record().unwrap();
    assert_eq!((cancelled.state, cancelled.reason), (TaskState::Cancelled, Some(Reason::Requested)));
    drop(TestWorkers::new().start(&tasks).await); // the first queue has ended
}

async fn job_is_cancelled_after_the_shutdown_of_its_tasks(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    let waiting = jobs.enqueue(Act::Return(json!(1))).delay(LONG).await.unwrap();
    assert!(tasks.shutdown(LONG).await.is_clean());
    let cancelled = tasks.cancel(waiting.id()).await.unwrap().into_record().unwrap();
    assert_eq!(cancelled.state, TaskState::Cancelled);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn running_future_is_dropped(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let held = jobs.enqueue(ActAsync(Act::Hold)).await.unwrap();
    workers.started(1).await;
    tasks.cancel(held.id()).await.unwrap();
    let ended = ended(&tasks, held.id()).await;
    assert_eq!((ended.state, ended.reason), (TaskState::Cancelled, Some(Reason::Requested)));
    assert_eq!(ended.attempt, 1);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn closure_is_cancelled_only_if_it_polls(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let polls = jobs.enqueue(Act::UntilCancelled).await.unwrap();
    let held = jobs.enqueue(Act::Hold).await.unwrap();
    workers.started(2).await;
    tasks.cancel(polls.id()).await.unwrap();
    tasks.cancel(held.id()).await.unwrap();
    assert_eq!(ended(&tasks, polls.id()).await.state, TaskState::Cancelled);
    let running = record(&tasks, held.id()).await;
    assert_eq!(running.state, TaskState::Running, "a closure cannot be stopped");
    workers.release();
    assert_eq!(ended(&tasks, held.id()).await.state, TaskState::Succeeded);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// Each request that is forwarded updates the job and notifies all clients. The queue forwards all
/// requests every ten seconds, which takes another try if it happens in between.
async fn repeated_request_is_not_forwarded_again(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let held = jobs.enqueue(Act::Hold).await.unwrap();
    workers.started(1).await;
    tasks.cancel(held.id()).await.unwrap();
    let mark = match database {
        TestDatabase::Sqlite(_) => "UPDATE river_job SET metadata = jsonb_set(metadata, '$.cancel_attempted_at', 'x')",
        TestDatabase::Postgres(_) => {
            "UPDATE river_job SET metadata = jsonb_set(metadata, '{cancel_attempted_at}', '\"x\"')"
        }
    };
    let marked = "SELECT count(*) FROM river_job WHERE metadata ->> 'cancel_attempted_at' = 'x'";
    eventually("a repeated request changes nothing", async || {
        assert_eq!(database.execute(mark).await, 1);
        tasks.cancel(held.id()).await.unwrap();
        database.number(marked).await == 1
    })
    .await;
    workers.release();
    ended(&tasks, held.id()).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn request_of_another_process_is_forwarded(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let held = jobs.enqueue(ActAsync(Act::Hold)).await.unwrap();
    workers.started(1).await;
    database.execute("UPDATE tower_offload_task SET cancel_requested_at = 1").await;
    assert_eq!(until(&tasks, held.id(), |record| record.state.is_final()).await.state, TaskState::Cancelled);
    assert!(jobs.shutdown(LONG).await.is_clean());
}
