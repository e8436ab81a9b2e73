//! Jobs that River clients in other languages insert, work, cancel or delete.

use std::str::FromStr;

use http::Request;
use http_body_util::BodyExt;
use riverqueue::{Client, InsertOpts, UniqueOpts};
use serde_json::{Value, json};
use sqlx::{Connection, postgres::PgConnectOptions, postgres::PgPoolOptions};
use tokio::sync::mpsc;
use tower::ServiceExt;
use tower_offload_tasks::{
    Failure, Reason, Record, TaskId, TaskState, Tasks,
    jobs::{Jobs, Unique},
};

use super::{
    other_client::{OtherClient, Outcome, Report, builder, wait_for_count},
    support::{Act, LONG, TestDatabase, ended, on_each_database, record, until},
};
use crate::databases::OnServer;

on_each_database! {
    status_follows_a_job_worked_by_another_client
    failures_of_another_client_are_retried_and_recorded
    snooze_of_another_client_does_not_count_as_an_attempt
    cancellation_works_in_both_directions
    deleted_job_is_lost
    job_that_another_client_retries_reopens_its_record
    unknown_kind_costs_an_attempt_unless_it_is_not_fetched
    job_of_another_client_gets_a_record_when_worked_here
    duplicate_of_another_clients_job_returns_its_record
    output_that_is_too_large_is_omitted_from_the_status
    output_with_huge_numbers_is_unchanged
}

/// Starts a queue without workers.
pub(crate) async fn without_workers(database: &TestDatabase) -> (Tasks, Jobs) {
    let tasks = database.tasks().await;
    let jobs = Jobs::builder(&tasks).start().await.unwrap();
    (tasks, jobs)
}

async fn river_id(database: &TestDatabase) -> i64 {
    database.number("SELECT id FROM river_job").await
}

async fn running(tasks: &Tasks, id: TaskId, attempt: u32) -> Record {
    until(tasks, id, |record| record.state == TaskState::Running && record.attempt == attempt).await
}

async fn waiting(tasks: &Tasks, id: TaskId) -> Record {
    until(tasks, id, |record| record.state == TaskState::Queued && record.started_at.is_some()).await
}

fn class_and_message(failure: &Failure) -> (&str, &str) {
    (&failure.class, &failure.message)
}

async fn status_follows_a_job_worked_by_another_client(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let id = jobs.enqueue(Report { customer: 7 }).await.unwrap().id();
    assert_eq!(record(&tasks, id).await.state, TaskState::Queued);
    let other = OtherClient::start(&database).await;
    let started = running(&tasks, id, 1).await;
    assert!(started.started_at >= Some(started.created_at) && started.progress.is_none());
    other.finish(Outcome::Complete(json!({"rows": 3})));
    let ended = ended(&tasks, id).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 1));
    assert_eq!(ended.result.unwrap().parse::<Value>().unwrap(), json!({"rows": 3}));
    assert!(ended.finished_at >= ended.started_at);
    other.stop().await;
}

async fn failures_of_another_client_are_retried_and_recorded(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let id = jobs.enqueue(Report { customer: 7 }).await.unwrap().id();
    let other = OtherClient::start(&database).await;
    other.finish(Outcome::Fail("there is no paper"));
    let failed = waiting(&tasks, id).await;
    assert_eq!((failed.attempt, class_and_message(&failed.failure.unwrap())), (1, ("error", "there is no paper")));
    other.client.jobs().retry(river_id(&database).await).await.unwrap();
    assert_eq!(running(&tasks, id, 2).await.failure, None);
    other.finish(Outcome::Fail("there is no ink"));
    let ended = ended(&tasks, id).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::Failed, 2));
    assert_eq!(class_and_message(&ended.failure.unwrap()), ("error", "there is no ink"));
    other.stop().await;
}

async fn snooze_of_another_client_does_not_count_as_an_attempt(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let id = jobs.enqueue(Report { customer: 7 }).await.unwrap().id();
    let other = OtherClient::start(&database).await;
    running(&tasks, id, 1).await;
    other.finish(Outcome::Snooze);
    let snoozed = until(&tasks, id, |record| record.state == TaskState::Queued).await;
    assert_eq!((snoozed.attempt, snoozed.failure), (0, None));
    other.client.jobs().retry(river_id(&database).await).await.unwrap();
    other.finish(Outcome::Complete(json!(1)));
    let ended = ended(&tasks, id).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 1));
    other.stop().await;
}

async fn cancellation_works_in_both_directions(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let queued = jobs.enqueue(Report { customer: 1 }).await.unwrap().id();
    let client = builder(&database).await.build().unwrap();
    client.jobs().cancel(river_id(&database).await).await.unwrap();
    let cancelled = ended(&tasks, queued).await;
    assert_eq!((cancelled.state, cancelled.reason), (TaskState::Cancelled, Some(Reason::Requested)));
    let running_job = jobs.enqueue(Report { customer: 2 }).await.unwrap().id();
    let other = OtherClient::start(&database).await;
    running(&tasks, running_job, 1).await;
    client.jobs().cancel(database.number("SELECT max(id) FROM river_job").await).await.unwrap();
    let cancelled = ended(&tasks, running_job).await;
    assert_eq!((cancelled.state, cancelled.reason), (TaskState::Cancelled, Some(Reason::Requested)));
    let cancelled_here = jobs.enqueue(Report { customer: 3 }).await.unwrap().id();
    running(&tasks, cancelled_here, 1).await;
    tasks.cancel(cancelled_here).await.unwrap();
    assert_eq!(ended(&tasks, cancelled_here).await.state, TaskState::Cancelled);
    let by_its_worker = jobs.enqueue(Report { customer: 4 }).await.unwrap().id();
    other.finish(Outcome::Cancel);
    let cancelled = ended(&tasks, by_its_worker).await;
    assert_eq!((cancelled.state, cancelled.reason), (TaskState::Cancelled, Some(Reason::Requested)));
    other.stop().await;
}

async fn deleted_job_is_lost(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let id = jobs.enqueue(Report { customer: 7 }).await.unwrap().id();
    builder(&database).await.build().unwrap().jobs().delete(river_id(&database).await).await.unwrap();
    let deleted = ended(&tasks, id).await;
    assert_eq!((deleted.state, deleted.reason), (TaskState::Lost, Some(Reason::JobDeleted)));
}

async fn job_that_another_client_retries_reopens_its_record(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let id = jobs.enqueue(Report { customer: 7 }).max_attempts(1).await.unwrap().id();
    let other = OtherClient::start(&database).await;
    other.finish(Outcome::Fail("there is no paper"));
    let failed = ended(&tasks, id).await;
    assert_eq!((failed.state, failed.attempt, failed.max_attempts), (TaskState::Failed, 1, 1));
    other.client.jobs().retry(river_id(&database).await).await.unwrap();
    let running = running(&tasks, id, 2).await;
    assert_eq!((running.max_attempts, running.failure, running.finished_at), (2, None, None));
    assert!(running.version > failed.version);
    other.finish(Outcome::Complete(json!(1)));
    let succeeded = ended(&tasks, id).await;
    assert_eq!((succeeded.state, succeeded.result.unwrap().as_str()), (TaskState::Succeeded, "1"));
    other.stop().await;
}

async fn unknown_kind_costs_an_attempt_unless_it_is_not_fetched(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let unknown = jobs.enqueue(Act::Fail).await.unwrap().id();
    let other = OtherClient::start_with(builder(&database).await.fetch_only_known_kinds(true));
    let known = jobs.enqueue(Report { customer: 7 }).await.unwrap().id();
    other.finish(Outcome::Complete(json!(1)));
    ended(&tasks, known).await;
    assert_eq!((record(&tasks, unknown).await.state, record(&tasks, unknown).await.attempt), (TaskState::Queued, 0));
    other.stop().await;
    let other = OtherClient::start(&database).await;
    let failed = waiting(&tasks, unknown).await;
    assert_eq!((failed.attempt, &*failed.failure.unwrap().class), (1, "error"));
    other.stop().await;
}

async fn job_of_another_client_gets_a_record_when_worked_here(database: TestDatabase) {
    let tasks = database.tasks().await;
    let (sender, mut started) = mpsc::unbounded_channel();
    let jobs = Jobs::builder(&tasks).worker(LONG, move |report: Report, progress| {
        sender.send(progress.id()).unwrap();
        async move { Ok::<_, Failure>(report.customer + 1) }
    });
    let jobs = jobs.start().await.unwrap();
    let client = builder(&database).await.build().unwrap();
    client.insert(Report { customer: 7 }).opts(InsertOpts::default().with_max_attempts(9)).await.unwrap();
    let id = started.recv().await.unwrap();
    let ended = ended(&tasks, id).await;
    assert_eq!((&*ended.name, ended.state, ended.attempt, ended.max_attempts), ("report", TaskState::Succeeded, 1, 9));
    let response = tasks.service().oneshot(Request::get(format!("/{id}")).body(String::new()).unwrap()).await.unwrap();
    let status: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(
        (&status["name"], &status["state"], &status["result"]),
        (&json!("report"), &json!("succeeded"), &json!(8))
    );
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn duplicate_of_another_clients_job_returns_its_record(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let other = OtherClient::start(&database).await;
    let unique = || InsertOpts::default().with_unique(UniqueOpts::new().with_by_args(true)).with_max_attempts(9);
    other.client.insert(Report { customer: 7 }).opts(unique()).await.unwrap();
    wait_for_count(&database, "SELECT count(*) FROM river_job WHERE state = 'running'").await;
    let enqueue = || jobs.enqueue(Report { customer: 7 }).unique(Unique::by_content());
    let id = enqueue().await.unwrap().id();
    assert_eq!(enqueue().await.unwrap().id(), id);
    let found = record(&tasks, id).await;
    assert_eq!((&*found.name, found.state, found.attempt, found.max_attempts), ("report", TaskState::Running, 1, 9));
    other.finish(Outcome::Complete(json!("done")));
    assert_eq!(ended(&tasks, id).await.result.unwrap().as_str(), "\"done\"");
    assert_eq!(enqueue().await.unwrap().id(), id, "a finished job counts");
    other.client.insert(Report { customer: 8 }).opts(unique()).await.unwrap();
    other.finish(Outcome::Complete(json!("also done")));
    wait_for_count(&database, "SELECT count(*) - 1 FROM river_job WHERE state = 'completed'").await;
    let finished = jobs.enqueue(Report { customer: 8 }).unique(Unique::by_content()).await.unwrap();
    assert_eq!(record(&tasks, finished.id()).await.result.unwrap().as_str(), "\"also done\"");
    assert_eq!(database.number("SELECT count(*) FROM river_job").await, 2);
    other.stop().await;
}

async fn output_that_is_too_large_is_omitted_from_the_status(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let other = OtherClient::start(&database).await;
    for (length, is_stored) in [(100_000, true), (200_000, false)] {
        let id = jobs.enqueue(Report { customer: 7 }).await.unwrap().id();
        other.finish(Outcome::Complete(json!("x".repeat(length))));
        let ended = ended(&tasks, id).await;
        assert_eq!((ended.state, ended.result.is_some()), (TaskState::Succeeded, is_stored), "{length}");
    }
    other.stop().await;
}

async fn output_with_huge_numbers_is_unchanged(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let id = jobs.enqueue(Report { customer: 7 }).await.unwrap().id();
    let merge = match database {
        TestDatabase::Sqlite(_) => "jsonb_patch(metadata, '{\"output\": 1e400}')",
        TestDatabase::Postgres(_) => "metadata || '{\"output\": 1e400}'",
    };
    let now = "CURRENT_TIMESTAMP";
    database.execute(&format!("UPDATE river_job SET state = 'running', attempt = 1, attempted_at = {now}")).await;
    database
        .execute(&format!("UPDATE river_job SET state = 'completed', finalized_at = {now}, metadata = {merge}"))
        .await;
    let ended = ended(&tasks, id).await;
    assert_eq!(ended.state, TaskState::Succeeded);
    assert!(["1e400", &format!("1{}", "0".repeat(400))].contains(&ended.result.unwrap().as_str()));
    let response = tasks.service().oneshot(Request::get(format!("/{id}")).body(String::new()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
}

/// SQLite stores NUL, Postgres does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_with_nul_is_unchanged_on_sqlite() {
    let database = TestDatabase::Sqlite(crate::databases::OnFile::fresh());
    let (tasks, jobs) = without_workers(&database).await;
    let other = OtherClient::start(&database).await;
    let id = jobs.enqueue(Report { customer: 7 }).await.unwrap().id();
    other.finish(Outcome::Complete(json!("a\0b")));
    assert_eq!(ended(&tasks, id).await.result.unwrap().parse::<Value>().unwrap(), json!("a\0b"));
    other.stop().await;
}

/// River's Rust client then retries forever and completes no other job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_postgres_rejects_does_not_complete_the_job() {
    let Some(server) = OnServer::fresh().await else { return };
    let mut connection = server.connect().await;
    let database = TestDatabase::Postgres(server);
    let (tasks, jobs) = without_workers(&database).await;
    let id = jobs.enqueue(Report { customer: 7 }).await.unwrap().id();
    database.execute("UPDATE river_job SET state = 'running', attempt = 1, attempted_at = now()").await;
    for (output, refused) in
        [("\"\\u0000\"", "unsupported Unicode escape sequence"), ("1e200000", "value overflows numeric format")]
    {
        let complete =
            "UPDATE river_job SET state = 'completed', finalized_at = now(), metadata = metadata || $1::text::jsonb";
        let complete = sqlx::query(complete).bind(format!("{{\"output\": {output}}}")).execute(&mut connection).await;
        let error = complete.unwrap_err().to_string();
        assert!(error.contains(refused), "{error}");
        assert_eq!(record(&tasks, id).await.state, TaskState::Running);
    }
}

/// The client has the rights that River documents, and none on the tables of this crate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_with_rights_on_rivers_tables_only_completes_jobs() {
    let Some(server) = OnServer::fresh().await else { return };
    let (mut admin, url) = (server.connect().await, server.url());
    let database = TestDatabase::Postgres(server);
    let (tasks, jobs) = without_workers(&database).await;
    let role: String = sqlx::query_scalar("SELECT current_database() || '_other'").fetch_one(&mut admin).await.unwrap();
    let grant = format!(
        "CREATE ROLE \"{role}\" LOGIN;
        GRANT USAGE ON SCHEMA public TO \"{role}\";
        GRANT SELECT, INSERT, UPDATE, DELETE ON river_job, river_leader, river_queue, river_notification TO \"{role}\";
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO \"{role}\""
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(grant)).execute(&mut admin).await.unwrap();
    let pool = PgPoolOptions::new().connect_with(PgConnectOptions::from_str(&url).unwrap().username(&role));
    let pool = pool.await.unwrap();
    let denied = sqlx::query("SELECT * FROM tower_offload_task").execute(&pool).await;
    assert!(denied.unwrap_err().to_string().contains("permission denied"));
    let other = OtherClient::start_with(Client::builder(pool.clone()));
    let id = jobs.enqueue(Report { customer: 7 }).await.unwrap().id();
    running(&tasks, id, 1).await;
    other.finish(Outcome::Complete(json!(1)));
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
    other.stop().await;
    pool.close().await;
    let drop = format!("DROP OWNED BY \"{role}\"; DROP ROLE \"{role}\"");
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&mut admin).await.unwrap();
    admin.close().await.unwrap();
}
