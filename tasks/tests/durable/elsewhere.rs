//! Jobs that a client in another language inserts, works, cancels or deletes.

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
    jobs::{Durable, Unique},
};

use super::{
    stranger::{Answer, Report, Stranger, builder, there_is},
    support::{Act, LONG, Place, ended, on_each_database, record, until},
};
use crate::databases::OnServer;

on_each_database! {
    a_job_that_is_worked_elsewhere_tells_what_it_becomes_and_its_output_is_the_result
    what_fails_elsewhere_is_tried_again_and_says_why_in_rivers_words
    what_is_snoozed_elsewhere_waits_and_no_attempt_is_counted
    what_is_cancelled_elsewhere_is_cancelled_whoever_asks
    what_is_deleted_elsewhere_is_lost
    what_is_over_and_worked_once_more_elsewhere_keeps_its_status
    a_kind_that_a_client_elsewhere_does_not_know_costs_an_attempt_unless_it_fetches_known_kinds_only
    a_job_inserted_elsewhere_gets_a_record_when_it_is_worked_here
    a_duplicate_of_a_job_inserted_elsewhere_is_answered_with_that_jobs_record
    an_output_that_is_too_large_for_a_status_is_left_out_and_the_job_has_succeeded
    an_output_with_numbers_beyond_every_float_is_told_as_it_is
}

/// A process that works none of these.
pub(crate) async fn without_workers(place: &Place) -> (Tasks, Durable) {
    let tasks = place.tasks().await;
    let durable = Durable::builder(&tasks).start().await.unwrap();
    (tasks, durable)
}

async fn river_id(place: &Place) -> i64 {
    place.number("SELECT id FROM river_job").await
}

async fn running(tasks: &Tasks, id: TaskId, attempt: u32) -> Record {
    until(tasks, id, |record| record.state == TaskState::Running && record.attempt == attempt).await
}

async fn waiting(tasks: &Tasks, id: TaskId) -> Record {
    until(tasks, id, |record| record.state == TaskState::Queued && record.started_at.is_some()).await
}

fn said(failure: &Failure) -> (&str, &str) {
    (&failure.class, &failure.message)
}

async fn a_job_that_is_worked_elsewhere_tells_what_it_becomes_and_its_output_is_the_result(place: Place) {
    let (tasks, durable) = without_workers(&place).await;
    let id = durable.enqueue(Report { customer: 7 }).await.unwrap().id();
    assert_eq!(record(&tasks, id).await.state, TaskState::Queued);
    let stranger = Stranger::start(&place).await;
    let begun = running(&tasks, id, 1).await;
    assert!(begun.started_at >= Some(begun.created_at) && begun.progress.is_none());
    stranger.answer(Answer::Complete(json!({"rows": 3})));
    let ended = ended(&tasks, id).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 1));
    assert_eq!(ended.result.unwrap().parse::<Value>().unwrap(), json!({"rows": 3}));
    assert!(ended.finished_at >= ended.started_at);
    stranger.stop().await;
}

async fn what_fails_elsewhere_is_tried_again_and_says_why_in_rivers_words(place: Place) {
    let (tasks, durable) = without_workers(&place).await;
    let id = durable.enqueue(Report { customer: 7 }).await.unwrap().id();
    let stranger = Stranger::start(&place).await;
    stranger.answer(Answer::Fail("there is no paper"));
    let failed = waiting(&tasks, id).await;
    assert_eq!((failed.attempt, said(&failed.failure.unwrap())), (1, ("error", "there is no paper")));
    stranger.client.jobs().retry(river_id(&place).await).await.unwrap();
    assert_eq!(running(&tasks, id, 2).await.failure, None);
    stranger.answer(Answer::Fail("there is no ink"));
    let ended = ended(&tasks, id).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::Failed, 2));
    assert_eq!(said(&ended.failure.unwrap()), ("error", "there is no ink"));
    stranger.stop().await;
}

async fn what_is_snoozed_elsewhere_waits_and_no_attempt_is_counted(place: Place) {
    let (tasks, durable) = without_workers(&place).await;
    let id = durable.enqueue(Report { customer: 7 }).await.unwrap().id();
    let stranger = Stranger::start(&place).await;
    running(&tasks, id, 1).await;
    stranger.answer(Answer::Snooze);
    let snoozed = waiting(&tasks, id).await;
    assert_eq!((snoozed.attempt, snoozed.failure), (0, None));
    stranger.client.jobs().retry(river_id(&place).await).await.unwrap();
    stranger.answer(Answer::Complete(json!(1)));
    let ended = ended(&tasks, id).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 1));
    stranger.stop().await;
}

async fn what_is_cancelled_elsewhere_is_cancelled_whoever_asks(place: Place) {
    let (tasks, durable) = without_workers(&place).await;
    let waits = durable.enqueue(Report { customer: 1 }).await.unwrap().id();
    let client = builder(&place).await.build().unwrap();
    client.jobs().cancel(river_id(&place).await).await.unwrap();
    let cancelled = ended(&tasks, waits).await;
    assert_eq!((cancelled.state, cancelled.reason), (TaskState::Cancelled, Some(Reason::Requested)));
    let runs = durable.enqueue(Report { customer: 2 }).await.unwrap().id();
    let stranger = Stranger::start(&place).await;
    running(&tasks, runs, 1).await;
    client.jobs().cancel(place.number("SELECT max(id) FROM river_job").await).await.unwrap();
    let cancelled = ended(&tasks, runs).await;
    assert_eq!((cancelled.state, cancelled.reason), (TaskState::Cancelled, Some(Reason::Requested)));
    let asked_here = durable.enqueue(Report { customer: 3 }).await.unwrap().id();
    running(&tasks, asked_here, 1).await;
    tasks.cancel(asked_here).await.unwrap();
    assert_eq!(ended(&tasks, asked_here).await.state, TaskState::Cancelled);
    let by_its_worker = durable.enqueue(Report { customer: 4 }).await.unwrap().id();
    stranger.answer(Answer::Cancel);
    let cancelled = ended(&tasks, by_its_worker).await;
    assert_eq!((cancelled.state, cancelled.reason), (TaskState::Cancelled, Some(Reason::Requested)));
    stranger.stop().await;
}

async fn what_is_deleted_elsewhere_is_lost(place: Place) {
    let (tasks, durable) = without_workers(&place).await;
    let id = durable.enqueue(Report { customer: 7 }).await.unwrap().id();
    builder(&place).await.build().unwrap().jobs().delete(river_id(&place).await).await.unwrap();
    let deleted = ended(&tasks, id).await;
    assert_eq!((deleted.state, deleted.reason), (TaskState::Lost, Some(Reason::JobDeleted)));
}

/// A final status is final.
async fn what_is_over_and_worked_once_more_elsewhere_keeps_its_status(place: Place) {
    let (tasks, durable) = without_workers(&place).await;
    let id = durable.enqueue(Report { customer: 7 }).max_attempts(1).await.unwrap().id();
    let stranger = Stranger::start(&place).await;
    stranger.answer(Answer::Fail("there is no paper"));
    let failed = ended(&tasks, id).await;
    stranger.client.jobs().retry(river_id(&place).await).await.unwrap();
    stranger.answer(Answer::Complete(json!(1)));
    there_is(&place, "SELECT count(*) FROM river_job WHERE state = 'completed'").await;
    assert_eq!(record(&tasks, id).await, failed);
    stranger.stop().await;
}

async fn a_kind_that_a_client_elsewhere_does_not_know_costs_an_attempt_unless_it_fetches_known_kinds_only(
    place: Place,
) {
    let (tasks, durable) = without_workers(&place).await;
    let unknown = durable.enqueue(Act::Fail).await.unwrap().id();
    let stranger = Stranger::start_with(builder(&place).await.fetch_only_known_kinds(true));
    let known = durable.enqueue(Report { customer: 7 }).await.unwrap().id();
    stranger.answer(Answer::Complete(json!(1)));
    ended(&tasks, known).await;
    assert_eq!((record(&tasks, unknown).await.state, record(&tasks, unknown).await.attempt), (TaskState::Queued, 0));
    stranger.stop().await;
    let stranger = Stranger::start(&place).await;
    let failed = waiting(&tasks, unknown).await;
    assert_eq!((failed.attempt, &*failed.failure.unwrap().class), (1, "error"));
    stranger.stop().await;
}

async fn a_job_inserted_elsewhere_gets_a_record_when_it_is_worked_here(place: Place) {
    let tasks = place.tasks().await;
    let (begins, mut begun) = mpsc::unbounded_channel();
    let durable = Durable::builder(&tasks).async_worker(LONG, move |report: Report, progress| {
        begins.send(progress.id()).unwrap();
        async move { Ok::<_, Failure>(report.customer + 1) }
    });
    let durable = durable.start().await.unwrap();
    let client = builder(&place).await.build().unwrap();
    client.insert(Report { customer: 7 }).opts(InsertOpts::default().with_max_attempts(9)).await.unwrap();
    let id = begun.recv().await.unwrap();
    let ended = ended(&tasks, id).await;
    assert_eq!((&*ended.name, ended.state, ended.attempt, ended.max_attempts), ("report", TaskState::Succeeded, 1, 9));
    let told = tasks.service().oneshot(Request::get(format!("/{id}")).body(String::new()).unwrap()).await.unwrap();
    let told: Value = serde_json::from_slice(&told.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!((&told["name"], &told["state"], &told["result"]), (&json!("report"), &json!("succeeded"), &json!(8)));
    assert!(durable.drain(LONG).await.is_clean());
}

async fn a_duplicate_of_a_job_inserted_elsewhere_is_answered_with_that_jobs_record(place: Place) {
    let (tasks, durable) = without_workers(&place).await;
    let stranger = Stranger::start(&place).await;
    let unique = || InsertOpts::default().with_unique(UniqueOpts::new().with_by_args(true)).with_max_attempts(9);
    stranger.client.insert(Report { customer: 7 }).opts(unique()).await.unwrap();
    there_is(&place, "SELECT count(*) FROM river_job WHERE state = 'running'").await;
    let enqueue = || durable.enqueue(Report { customer: 7 }).unique(Unique::by_content());
    let id = enqueue().await.unwrap().id();
    assert_eq!(enqueue().await.unwrap().id(), id);
    let found = record(&tasks, id).await;
    assert_eq!((&*found.name, found.state, found.attempt, found.max_attempts), ("report", TaskState::Running, 1, 9));
    stranger.answer(Answer::Complete(json!("done")));
    assert_eq!(ended(&tasks, id).await.result.unwrap().as_str(), "\"done\"");
    assert_eq!(enqueue().await.unwrap().id(), id, "also of one that is over");
    stranger.client.insert(Report { customer: 8 }).opts(unique()).await.unwrap();
    stranger.answer(Answer::Complete(json!("done too")));
    there_is(&place, "SELECT count(*) - 1 FROM river_job WHERE state = 'completed'").await;
    let over = durable.enqueue(Report { customer: 8 }).unique(Unique::by_content()).await.unwrap();
    assert_eq!(record(&tasks, over.id()).await.result.unwrap().as_str(), "\"done too\"");
    assert_eq!(place.number("SELECT count(*) FROM river_job").await, 2);
    stranger.stop().await;
}

async fn an_output_that_is_too_large_for_a_status_is_left_out_and_the_job_has_succeeded(place: Place) {
    let (tasks, durable) = without_workers(&place).await;
    let stranger = Stranger::start(&place).await;
    for (length, is_kept) in [(100_000, true), (200_000, false)] {
        let id = durable.enqueue(Report { customer: 7 }).await.unwrap().id();
        stranger.answer(Answer::Complete(json!("x".repeat(length))));
        let ended = ended(&tasks, id).await;
        assert_eq!((ended.state, ended.result.is_some()), (TaskState::Succeeded, is_kept), "{length}");
    }
    stranger.stop().await;
}

async fn an_output_with_numbers_beyond_every_float_is_told_as_it_is(place: Place) {
    let (tasks, durable) = without_workers(&place).await;
    let id = durable.enqueue(Report { customer: 7 }).await.unwrap().id();
    let merge = match place {
        Place::File(_) => "jsonb_patch(metadata, '{\"output\": 1e400}')",
        Place::Server(_) => "metadata || '{\"output\": 1e400}'",
    };
    let now = "CURRENT_TIMESTAMP";
    place.execute(&format!("UPDATE river_job SET state = 'running', attempt = 1, attempted_at = {now}")).await;
    place.execute(&format!("UPDATE river_job SET state = 'completed', finalized_at = {now}, metadata = {merge}")).await;
    let ended = ended(&tasks, id).await;
    assert_eq!(ended.state, TaskState::Succeeded);
    assert!(["1e400", &format!("1{}", "0".repeat(400))].contains(&ended.result.unwrap().as_str()));
    let told = tasks.service().oneshot(Request::get(format!("/{id}")).body(String::new()).unwrap()).await.unwrap();
    assert_eq!(told.status(), 200);
}

/// A NUL is JSON, but none that Postgres keeps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_with_a_nul_is_told_from_a_file() {
    let place = Place::File(crate::databases::OnFile::fresh());
    let (tasks, durable) = without_workers(&place).await;
    let stranger = Stranger::start(&place).await;
    let id = durable.enqueue(Report { customer: 7 }).await.unwrap().id();
    stranger.answer(Answer::Complete(json!("a\0b")));
    assert_eq!(ended(&tasks, id).await.result.unwrap().parse::<Value>().unwrap(), json!("a\0b"));
    stranger.stop().await;
}

/// So a client there can write no such output, and what it does about it is its own: River's Rust client tries for ever, and completes
/// nothing else meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_that_postgres_does_not_keep_completes_no_job() {
    let Some(server) = OnServer::fresh().await else { return };
    let mut connection = server.connect().await;
    let place = Place::Server(server);
    let (tasks, durable) = without_workers(&place).await;
    let id = durable.enqueue(Report { customer: 7 }).await.unwrap().id();
    place.execute("UPDATE river_job SET state = 'running', attempt = 1, attempted_at = now()").await;
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

/// With the rights that River itself asks for, and none on tables of this crate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_only_use_rivers_tables_completes_jobs_and_their_records_follow() {
    let Some(server) = OnServer::fresh().await else { return };
    let (mut admin, url) = (server.connect().await, server.url());
    let place = Place::Server(server);
    let (tasks, durable) = without_workers(&place).await;
    let role: String =
        sqlx::query_scalar("SELECT current_database() || '_stranger'").fetch_one(&mut admin).await.unwrap();
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
    let stranger = Stranger::start_with(Client::builder(pool.clone()));
    let id = durable.enqueue(Report { customer: 7 }).await.unwrap().id();
    running(&tasks, id, 1).await;
    stranger.answer(Answer::Complete(json!(1)));
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
    stranger.stop().await;
    pool.close().await;
    let drop = format!("DROP OWNED BY \"{role}\"; DROP ROLE \"{role}\"");
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&mut admin).await.unwrap();
    admin.close().await.unwrap();
}
