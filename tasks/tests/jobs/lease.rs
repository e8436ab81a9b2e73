//! Recovery of the jobs of crashed processes. The crash tests do the same with real processes.

use std::time::Duration;

use serde_json::json;
use tower_offload_tasks::{SqlStore, TaskState, Tasks, jobs::Jobs};

use super::{
    databases::OnServer,
    support::{
        A_WHILE, Act, ActAsync, LONG, TestDatabase, TestWorkers, ended, on_each_database, record, start_when_free,
        until,
    },
};

on_each_database! {
    job_of_a_crashed_process_restarts_and_the_attempt_counts
    job_that_crashes_its_process_fails_after_max_attempts
    recovered_job_with_a_cancel_request_is_cancelled
    claim_whose_reply_was_lost_is_requeued
    lost_claim_with_a_cancel_request_is_cancelled
}

/// Changes a job as if its process had crashed.
const RUNNING_ELSEWHERE: &str = "UPDATE river_job SET state = 'running', attempt = attempt + 1, ";

async fn crash(database: &TestDatabase, tasks: &Tasks, jobs: Jobs) -> Tasks {
    assert!(jobs.shutdown(LONG).await.is_clean());
    drop(jobs);
    let by = match database {
        TestDatabase::Sqlite(_) => "jsonb_array('to-gone')",
        TestDatabase::Postgres(_) => "array['to-gone']",
    };
    let now = match database {
        TestDatabase::Sqlite(_) => "strftime('%Y-%m-%d %H:%M:%f', 'now')",
        TestDatabase::Postgres(_) => "now()",
    };
    let statement = format!("{RUNNING_ELSEWHERE} attempted_by = {by}, attempted_at = {now} WHERE state = 'available'");
    database.execute(&statement).await;
    tasks.clone()
}

async fn job_of_a_crashed_process_restarts_and_the_attempt_counts(database: TestDatabase) {
    let tasks = database.tasks().await;
    let enqueuer = Jobs::builder(&tasks).start().await.unwrap();
    let job = enqueuer.enqueue(Act::Return(json!(1))).await.unwrap();
    let tasks = crash(&database, &tasks, enqueuer).await;
    assert_eq!(record(&tasks, job.id()).await.state, TaskState::Running, "the trigger updates the record");
    let jobs = start_when_free(|| TestWorkers::new().builder(&tasks)).await.unwrap();
    let ended = ended(&tasks, job.id()).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 2));
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn job_that_crashes_its_process_fails_after_max_attempts(database: TestDatabase) {
    let tasks = database.tasks().await;
    let mut jobs = Jobs::builder(&tasks).start().await.unwrap();
    let job = jobs.enqueue(Act::Return(json!(1))).max_attempts(2).await.unwrap();
    for attempt in 1..=2 {
        let tasks = crash(&database, &tasks, jobs).await;
        let running = record(&tasks, job.id()).await;
        assert_eq!((running.state, running.attempt), (TaskState::Running, attempt));
        jobs = start_when_free(|| Jobs::builder(&tasks)).await.unwrap();
        let state = if attempt == 1 { TaskState::Queued } else { TaskState::Failed };
        until(&tasks, job.id(), |record| record.state == state).await;
    }
    let failed = record(&tasks, job.id()).await;
    assert_eq!((failed.attempt, failed.failure.unwrap().class.as_str()), (2, "process_lost"));
    assert_eq!(database.number("SELECT count(*) FROM river_job WHERE state = 'discarded'").await, 1);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn recovered_job_with_a_cancel_request_is_cancelled(database: TestDatabase) {
    let tasks = database.tasks().await;
    let enqueuer = Jobs::builder(&tasks).start().await.unwrap();
    let job = enqueuer.enqueue(Act::Return(json!(1))).await.unwrap();
    let request_cancel = match database {
        TestDatabase::Sqlite(_) => {
            "UPDATE river_job SET metadata = jsonb_set(metadata, '$.cancel_attempted_at', 'now')"
        }
        TestDatabase::Postgres(_) => "UPDATE river_job SET metadata = metadata || '{\"cancel_attempted_at\": \"now\"}'",
    };
    database.execute(request_cancel).await;
    let tasks = crash(&database, &tasks, enqueuer).await;
    let workers = TestWorkers::new();
    let jobs = start_when_free(|| workers.builder(&tasks)).await.unwrap();
    assert_eq!(ended(&tasks, job.id()).await.state, TaskState::Cancelled);
    assert!(workers.started.lock().unwrap().is_empty());
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// The lease of a process is deleted while its work continues.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_that_lost_its_lease_continues_with_a_new_client() {
    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let store = SqlStore::open_with_lease(&database.url(), Duration::from_millis(900)).await.unwrap();
    let (tasks, workers) = (Tasks::new(store), TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    let held = jobs.enqueue(Act::Hold).await.unwrap();
    let dropped = jobs.enqueue(ActAsync(Act::Hold)).await.unwrap();
    workers.started(2).await;
    let client = "SELECT count(*) FROM tower_offload_client";
    assert_eq!(database.number(client).await, 1);
    database.execute("DELETE FROM tower_offload_client").await;
    let before = record(&tasks, held.id()).await.attempt;
    // The future is dropped and restarts with the new client. The closure is still running, so no
    // second attempt starts.
    workers.started(3).await;
    let attempts_of_held =
        |workers: &TestWorkers| workers.started.lock().unwrap().iter().filter(|id| **id == held.id()).count();
    assert_eq!((before, attempts_of_held(&workers)), (1, 1));
    assert_eq!(database.number(client).await, 1, "the new client");
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(attempts_of_held(&workers), 1, "two attempts overlap");
    workers.release();
    let ended = until(&tasks, held.id(), |record| record.state.is_final()).await;
    assert_eq!(ended.state, TaskState::Succeeded);
    assert_eq!(attempts_of_held(&workers), 2, "the result of the first attempt is discarded");
    assert_eq!(jobs.stats().lost_leases, 1);
    tasks.cancel(dropped.id()).await.unwrap();
    super::support::ended(&tasks, dropped.id()).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
    assert_eq!(database.number(client).await, 0, "the shutdown deletes the lease");
}

/// The fence discards updates of a process whose job another one is running.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_completion_has_no_effect() {
    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    let held = jobs.enqueue(Act::Hold).await.unwrap();
    workers.started(1).await;
    let late = |client: &str, state: &str| {
        format!(
            "WITH client AS (SELECT set_config('tower_offload.client', '{client}', false)) \
             UPDATE river_job SET state = '{state}', finalized_at = now() FROM client WHERE set_config IS NOT NULL"
        )
    };
    assert_eq!(database.execute(&late("to-late", "completed")).await, 0);
    assert_eq!(record(&tasks, held.id()).await.state, TaskState::Running);
    database.execute("UPDATE river_job SET attempted_by = array['other']").await;
    assert_eq!(database.execute(&late("to-late", "completed")).await, 0, "the other process may use another client");
    let restore = "UPDATE river_job SET attempted_by = array[(SELECT id FROM tower_offload_client)]";
    database.execute(restore).await;
    let touch = "UPDATE river_job SET metadata = metadata || '{\"cancel_attempted_at\": \"now\"}'";
    assert_eq!(database.execute(touch).await, 1, "every client may request cancellation");
    workers.release();
    assert_eq!(ended(&tasks, held.id()).await.state, TaskState::Succeeded);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// River has claimed a job for this process, and the connection failed before the reply.
async fn claim_whose_reply_was_lost_is_requeued(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let held = jobs.enqueue(Act::Hold).await.unwrap();
    workers.started(1).await;
    let claimed = jobs.enqueue(Act::Return(json!(1))).delay(LONG).await.unwrap();
    let claim = "UPDATE river_job SET state = 'running', attempt = 1, attempted_at = created_at, attempted_by = \
                 (SELECT attempted_by FROM river_job WHERE state = 'running') WHERE state = 'scheduled'";
    assert_eq!(database.execute(claim).await, 1);
    assert_eq!(record(&tasks, claimed.id()).await.state, TaskState::Running);
    let done = ended(&tasks, claimed.id()).await;
    assert_eq!((done.state, done.attempt), (TaskState::Succeeded, 1), "a claim that never began does not count");
    assert_eq!(record(&tasks, held.id()).await.attempt, 1, "the running job is not requeued");
    workers.release();
    ended(&tasks, held.id()).await;
    assert_eq!(workers.started.lock().unwrap().len(), 2);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn lost_claim_with_a_cancel_request_is_cancelled(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    let held = jobs.enqueue(Act::Hold).await.unwrap();
    workers.started(1).await;
    let claimed = jobs.enqueue(Act::Return(json!(1))).delay(LONG).await.unwrap();
    let request = match database {
        TestDatabase::Sqlite(_) => "jsonb_set(metadata, '$.cancel_attempted_at', 'now')",
        TestDatabase::Postgres(_) => "metadata || '{\"cancel_attempted_at\": \"now\"}'",
    };
    let claim = format!(
        "UPDATE river_job SET state = 'running', attempt = 1, attempted_at = created_at, metadata = {request}, attempted_by = \
         (SELECT attempted_by FROM river_job WHERE state = 'running') WHERE state = 'scheduled'"
    );
    assert_eq!(database.execute(&claim).await, 1);
    assert_eq!(ended(&tasks, claimed.id()).await.state, TaskState::Cancelled);
    workers.release();
    ended(&tasks, held.id()).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
}

#[tokio::test]
async fn trigger_functions_are_restricted() {
    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let jobs = TestWorkers::new().start(&database.tasks().await).await;
    let restricted = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'tower_offload_%' AND array_to_string(proconfig, ',') LIKE '%, pg_temp%' \
                AND NOT has_function_privilege('public', oid, 'execute')";
    assert_eq!(database.number(restricted).await, 8);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_triggers_refuse_a_start_and_damaged_ones_are_restored() {
    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
    drop(jobs);
    let enabled = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'tower_offload_%' AND tgenabled = 'O' \
                   AND tgrelid = 'river_job'::regclass";
    for damage in [
        "DROP TRIGGER tower_offload_changed ON river_job",
        "ALTER TABLE river_job DISABLE TRIGGER tower_offload_deleted",
        "COMMENT ON FUNCTION tower_offload_fence() IS 'other'",
    ] {
        database.execute(damage).await;
        let jobs = start_when_free(|| TestWorkers::new().builder(&tasks)).await.unwrap();
        assert_eq!(database.number(enabled).await, 10, "{damage}");
        assert!(jobs.shutdown(LONG).await.is_clean());
    }
    database.execute("COMMENT ON FUNCTION tower_offload_fence() IS '1000'").await;
    let started = start_when_free(|| TestWorkers::new().builder(&tasks)).await;
    let refused = started.map(drop).expect_err("an older process has started");
    let cause = refused.to_string();
    assert!(cause.contains("the triggers on `river_job` have version 1000"), "{cause}");
}
