//! A queue that claims no more jobs, because its process will end.

use serde_json::json;
use tower_offload_tasks::{Reason, TaskState};
use tower_offload_tests::eventually;

use super::{
    databases::OnFile,
    support::{Act, ActAsync, GRACE, LONG, TestDatabase, TestWorkers, ended, on_each_database, record},
};

on_each_database! {
    job_is_accepted_and_not_claimed
    running_job_ends_and_is_reported
    running_job_is_cancelled
    next_queue_starts_after_a_queue_without_jobs
    signal_stops_the_claims
}

async fn job_is_accepted_and_not_claimed(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let running = jobs.enqueue(Act::Hold).await.unwrap().id();
    workers.started(1).await;
    jobs.stop_claiming();
    jobs.stop_claiming(); // has no effect
    assert!(!jobs.is_closed());
    let waiting = jobs.enqueue(Act::Return(json!(1))).await.unwrap().id();
    workers.release();
    assert_eq!(ended(&tasks, running).await.state, TaskState::Succeeded);
    let report = jobs.shutdown(LONG).await;
    assert!(report.is_clean() && jobs.is_closed());
    // A claim that was in progress when the queue stopped is handed back.
    assert!(["jobs: 1 ended", "jobs: 1 ended, 1 requeued"].contains(&report.to_string().as_str()), "{report}");
    assert_eq!(*workers.started.lock().unwrap(), [running]);
    let record = record(&tasks, waiting).await;
    assert_eq!((record.state, record.attempt), (TaskState::Queued, 0));
    assert!(jobs.enqueue(Act::Return(json!(1))).await.unwrap_err().is_closed());
}

async fn running_job_ends_and_is_reported(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let held = jobs.enqueue(Act::Hold).await.unwrap().id();
    let future = jobs.enqueue(ActAsync(Act::Hold)).await.unwrap().id();
    workers.started(2).await;
    jobs.stop_claiming();
    let report = jobs.shutdown(GRACE).await;
    assert_eq!((report.ended, report.returned, report.still_running.as_slice()), (0, 1, [held].as_slice()));
    assert_eq!(record(&tasks, future).await.state, TaskState::Queued);
    workers.release();
    assert_eq!(ended(&tasks, held).await.state, TaskState::Succeeded);
}

/// River's client no longer receives notifications, and looks for requests once a minute.
async fn running_job_is_cancelled(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let future = jobs.enqueue(ActAsync(Act::Hold)).max_attempts(1).await.unwrap().id();
    let closure = jobs.enqueue(Act::UntilCancelled).await.unwrap().id();
    workers.started(2).await;
    jobs.stop_claiming();
    for id in [future, closure] {
        tasks.cancel(id).await.unwrap();
        let ended = tokio::time::timeout(LONG * 2 / 3, ended(&tasks, id)).await.expect("cancelled");
        assert_eq!((ended.state, ended.reason, ended.attempt), (TaskState::Cancelled, Some(Reason::Requested), 1));
    }
    let report = jobs.shutdown(LONG).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(jobs.stats().cancelled, 2);
}

async fn next_queue_starts_after_a_queue_without_jobs(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    jobs.stop_claiming();
    let id = jobs.enqueue(Act::Return(json!(1))).await.unwrap().id();
    assert_eq!(jobs.shutdown(LONG).await.to_string(), "no job was running");
    let next = TestWorkers::new().start(&tasks).await;
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
    assert!(next.shutdown(LONG).await.is_clean());
}

async fn signal_stops_the_claims(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let signal = jobs.stop_claiming_on(async { 7 });
    let claimed = jobs.enqueue(Act::Return(json!(1))).await.unwrap().id();
    ended(&tasks, claimed).await;
    assert_eq!(signal.await, 7);
    let _accepted = jobs.enqueue(Act::Return(json!(2))).await.unwrap();
    assert!(jobs.shutdown(LONG).await.is_clean());
    assert_eq!(*workers.started.lock().unwrap(), [claimed]);
}

/// A client that stops abandons the ends that the database has rejected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_that_river_has_abandoned_is_written_on_sqlite() {
    let database = TestDatabase::Sqlite(OnFile::fresh());
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let id = jobs.enqueue(Act::Hold).max_attempts(1).await.unwrap().id();
    workers.started(1).await;
    // Only River names the claim in the metadata.
    let reject = "CREATE TRIGGER reject BEFORE UPDATE ON river_job \
                  WHEN NEW.state = 'completed' AND NEW.metadata -> '$.\"tower_offload:end\"' IS NOT NULL \
                  BEGIN SELECT RAISE(ABORT, 'rejected'); END";
    database.execute(reject).await;
    jobs.stop_claiming();
    workers.release();
    eventually("the end is written", async || jobs.stats().running == 0 && jobs.stats().unwritten == 0).await;
    assert_eq!(record(&tasks, id).await.state, TaskState::Succeeded);
    eventually("the client is forgotten", async || jobs.stats().clients == 0).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
    let next = TestWorkers::new().start(&tasks).await;
    assert_eq!(record(&tasks, id).await.state, TaskState::Succeeded, "it was recovered");
    assert!(next.shutdown(LONG).await.is_clean());
}
