//! Closures that are still running when a shutdown times out, and the process that follows.

use std::time::Duration;

use serde_json::json;
use tower_offload_tasks::{SqlStore, TaskId, TaskState, Tasks, jobs::Jobs};

use super::{
    databases::OnFile,
    support::{Act, ActAsync, GRACE, LONG, TestDatabase, TestWorkers, ended, on_each_database, record, until},
};

on_each_database! {
    interrupted_attempt_does_not_count
    interrupted_job_waits_without_a_failure
    interruptions_beyond_the_limit_count
    shutdown_that_requeues_is_no_interruption
    interrupted_only_attempt_counts
    attempt_that_ends_after_the_shutdown_is_recorded
}

/// Starts a job, and shuts the queue down while its closure is running.
async fn interrupt(
    database: &TestDatabase,
    max_attempts: u16,
    change: &str,
) -> (Tasks, Jobs, TestWorkers, TaskId, Vec<TaskId>) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    let id = jobs.enqueue(Act::Hold).max_attempts(max_attempts).await.unwrap().id();
    workers.started(1).await;
    if !change.is_empty() {
        assert_eq!(database.execute(change).await, 1);
    }
    let report = jobs.shutdown(Duration::from_millis(500)).await;
    assert_eq!(report.still_running, [id]);
    assert!(!report.is_clean());
    let interrupted = report.interrupted.clone();
    (tasks, jobs, workers, id, interrupted)
}

/// Starts a queue like the next process, after the previous one has exited. Here its closure is
/// still running, so on SQLite the next process gets a copy of the file.
async fn next_process(database: &TestDatabase) -> (TestDatabase, Tasks) {
    match database {
        TestDatabase::Sqlite(_) => {
            let copy = OnFile::fresh();
            let path = copy.url().replace("sqlite:", "");
            database.execute(&format!("VACUUM INTO '{path}'")).await;
            let copy = TestDatabase::Sqlite(copy);
            let tasks = copy.tasks().await;
            (copy, tasks)
        }
        TestDatabase::Postgres(server) => {
            database.execute("DELETE FROM tower_offload_client").await;
            let store = SqlStore::open(&server.url()).await.unwrap();
            (TestDatabase::Sqlite(OnFile::fresh()), Tasks::new(store))
        }
    }
}

async fn interrupted_attempt_does_not_count(database: TestDatabase) {
    let (_tasks, _jobs, first, id, interrupted) = interrupt(&database, 3, &set_interruptions(&database, 9)).await;
    assert_eq!(interrupted, [id]);
    let (copy, tasks) = next_process(&database).await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    workers.started(1).await;
    let running = until(&tasks, id, |record| record.state == TaskState::Running).await;
    assert_eq!((running.attempt, running.failure), (1, None));
    assert_eq!(jobs.stats().recovered, 1);
    let next = if let TestDatabase::Sqlite(_) = database { &copy } else { &database };
    assert_eq!(interruptions(next).await, 10);
    workers.release();
    let succeeded = ended(&tasks, id).await;
    assert_eq!((succeeded.state, succeeded.attempt), (TaskState::Succeeded, 1));
    assert!(jobs.shutdown(LONG).await.is_clean());
    first.release();
}

async fn interrupted_job_waits_without_a_failure(database: TestDatabase) {
    // After real crashes the next attempt would be delayed.
    let crashes = match database {
        TestDatabase::Sqlite(_) => "UPDATE river_job SET metadata = jsonb_set(metadata, '$.\"tower_offload:lost\"', 3)",
        TestDatabase::Postgres(_) => "UPDATE river_job SET metadata = metadata || '{\"tower_offload:lost\": 3}'",
    };
    let (_tasks, _jobs, first, id, _) = interrupt(&database, 3, crashes).await;
    let (_copy, tasks) = next_process(&database).await;
    let jobs = Jobs::builder(&tasks).start().await.unwrap(); // nothing works on the job
    let queued = until(&tasks, id, |record| record.state == TaskState::Queued).await;
    assert_eq!((queued.attempt, queued.failure, queued.started_at, queued.due_at), (0, None, None, None));
    assert!(jobs.shutdown(LONG).await.is_clean());
    first.release();
}

/// Returns the statement that records this number of interruptions of the job.
fn set_interruptions(database: &TestDatabase, count: u32) -> String {
    let note = format!("{{\"claimed_at\": 0, \"count\": {count}}}");
    match database {
        TestDatabase::Sqlite(_) => {
            format!(
                "UPDATE river_job SET metadata = jsonb_set(metadata, '$.\"tower_offload:interrupted\"', jsonb('{note}'))"
            )
        }
        TestDatabase::Postgres(_) => {
            format!("UPDATE river_job SET metadata = metadata || '{{\"tower_offload:interrupted\": {note}}}'")
        }
    }
}

/// Returns the number of interruptions of the job.
async fn interruptions(database: &TestDatabase) -> i64 {
    let count = match database {
        TestDatabase::Sqlite(_) => "SELECT metadata ->> '$.\"tower_offload:interrupted\".count' FROM river_job",
        TestDatabase::Postgres(_) => "SELECT (metadata #>> '{tower_offload:interrupted,count}')::bigint FROM river_job",
    };
    database.number(count).await
}

/// Each shutdown notes the jobs that are running. A job that is requeued was not interrupted.
async fn shutdown_that_requeues_is_no_interruption(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    let id = jobs.enqueue(ActAsync(Act::Hold)).await.unwrap().id();
    workers.started(1).await;
    assert_eq!(database.execute(&set_interruptions(&database, 9)).await, 1);
    let report = jobs.shutdown(GRACE).await;
    assert!(report.is_clean() && report.returned == 1, "{report}");
    assert_eq!(interruptions(&database).await, 9);
    assert_eq!(record(&tasks, id).await.state, TaskState::Queued);
}

/// A job that never ends by itself must not be repeated forever.
async fn interruptions_beyond_the_limit_count(database: TestDatabase) {
    let change = set_interruptions(&database, 10);
    let (_tasks, _jobs, first, id, interrupted) = interrupt(&database, 3, &change).await;
    assert_eq!(interrupted, []);
    let (_copy, tasks) = next_process(&database).await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    workers.started(1).await;
    let running = until(&tasks, id, |record| record.state == TaskState::Running).await;
    assert_eq!(running.attempt, 2);
    workers.release();
    ended(&tasks, id).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
    first.release();
}

/// A job with one attempt runs at most once.
async fn interrupted_only_attempt_counts(database: TestDatabase) {
    let (_tasks, _jobs, first, id, interrupted) = interrupt(&database, 1, "").await;
    assert_eq!(interrupted, []);
    let (_copy, tasks) = next_process(&database).await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let failed = ended(&tasks, id).await;
    let failure = failed.failure.unwrap();
    assert_eq!((failed.state, failure.class.as_str()), (TaskState::Failed, "process_lost"));
    assert_eq!(failure.message, "the process was shut down while the attempt was running");
    assert!(workers.started.lock().unwrap().is_empty());
    assert!(jobs.shutdown(LONG).await.is_clean());
    first.release();
}

async fn attempt_that_ends_after_the_shutdown_is_recorded(database: TestDatabase) {
    let (tasks, _jobs, workers, id, interrupted) = interrupt(&database, 3, "").await;
    assert_eq!(interrupted, [id]);
    assert_eq!(record(&tasks, id).await.state, TaskState::Running);
    workers.release();
    let succeeded = ended(&tasks, id).await;
    assert_eq!((succeeded.state, succeeded.attempt), (TaskState::Succeeded, 1));
    assert_eq!(succeeded.result.unwrap().as_str(), json!("released").to_string());
}
