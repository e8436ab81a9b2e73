//! Rows that other programs change or delete, values that databases change, and failures that must
//! not be silent.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::Connection;
use tower_offload::ThreadPool;
use tower_offload_tasks::{
    Reason, SqlStore, TaskState, Tasks,
    jobs::{Backoff, Job, Jobs, Unique},
};
use tower_offload_tests::eventually;
use tracing_subscriber::layer::SubscriberExt;

use super::{
    databases::{OnFile, OnServer},
    support::{
        A_WHILE, Act, ActAsync, BEFORE_THE_NEXT_AUDIT, GRACE, LONG, TestDatabase, TestWorkers, ended, on_each_database,
        record, start_when_free, until,
    },
};

on_each_database! {
    job_without_a_row_is_lost
    unreadable_metadata_does_not_stop_recovery
    result_is_exactly_what_was_returned
    numbers_that_are_accepted_can_be_read
    equal_maps_are_equal_content
    content_of_any_form_can_be_unique
    kinds_and_queues_are_checked_with_one_message
    ends_are_counted
    record_says_when_the_next_attempt_is_due
    many_jobs_of_a_crashed_process_are_recovered
    running_job_at_shutdown_does_not_spoil_the_report
    cancel_requests_under_load_are_all_accepted
}

async fn job_without_a_row_is_lost(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    let id = jobs.enqueue(Act::Return(json!(1))).delay(LONG).await.unwrap().id();
    match database {
        // SQLite has no statement that fires no trigger, except a trigger that is missing.
        TestDatabase::Sqlite(_) => {
            database.execute("DROP TRIGGER tower_offload_deleted").await;
            database.execute("DELETE FROM river_job").await;
            assert!(jobs.shutdown(LONG).await.is_clean());
            drop(jobs);
            let _next = start(&tasks).await; // looks for such records at once
            assert_lost(&tasks, id).await;
        }
        TestDatabase::Postgres(_) => {
            database.execute("TRUNCATE river_job").await;
            assert_lost(&tasks, id).await;
            tasks.cancel(id).await.unwrap();
        }
    }
}

async fn assert_lost(tasks: &Tasks, id: tower_offload_tasks::TaskId) {
    let lost = tokio::time::timeout(BEFORE_THE_NEXT_AUDIT, ended(tasks, id)).await.expect("it never ends");
    assert_eq!((lost.state, lost.reason), (TaskState::Lost, Some(Reason::JobDeleted)));
}

async fn start(tasks: &Tasks) -> Jobs {
    start_when_free(|| TestWorkers::new().builder(tasks)).await.unwrap()
}

/// Changes all jobs as if their process had crashed. No other queue may be running, since it would
/// recover them.
async fn crash(database: &TestDatabase) {
    let by = match database {
        TestDatabase::Sqlite(_) => "jsonb_array('to-gone')",
        TestDatabase::Postgres(_) => "array['to-gone']",
    };
    database.execute(&format!("UPDATE river_job SET state = 'running', attempt = 1, attempted_by = {by}")).await;
}

async fn unreadable_metadata_does_not_stop_recovery(database: TestDatabase) {
    let tasks = database.tasks().await;
    let enqueuer = Jobs::builder(&tasks).start().await.unwrap();
    let values = ["\"many\"", "-1", "1e30", "{}", "null", "1.5"];
    let mut ids = Vec::new();
    for _ in 0..=values.len() {
        ids.push(enqueuer.enqueue(Act::Return(json!(1))).await.unwrap().id());
    }
    assert!(enqueuer.shutdown(LONG).await.is_clean());
    drop(enqueuer);
    crash(&database).await;
    for (index, value) in values.iter().enumerate() {
        let metadata = format!("{{\"tower_offload:lost\": {value}}}");
        let update = match database {
            TestDatabase::Sqlite(_) => format!("UPDATE river_job SET metadata = '{metadata}' WHERE id = {}", index + 1),
            TestDatabase::Postgres(_) => {
                format!("UPDATE river_job SET metadata = metadata || '{metadata}' WHERE id = {}", index + 1)
            }
        };
        assert_eq!(database.execute(&update).await, 1);
    }
    if let TestDatabase::Sqlite(_) = database {
        database.execute("UPDATE river_job SET metadata = 'no JSON' WHERE id = 1").await;
    }
    let jobs = start(&tasks).await;
    let running = "SELECT count(*) FROM river_job WHERE attempted_by IS NOT NULL AND state = 'running' AND attempt = 1";
    eventually("the jobs are recovered", async || database.number(running).await == 0).await;
    ended(&tasks, ids[values.len()]).await;
    let _ = jobs.shutdown(LONG).await;
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Wei(u128);

impl Job for Wei {
    const KIND: &'static str = "wei";
}

async fn result_is_exactly_what_was_returned(database: TestDatabase) {
    let tasks = database.tasks().await;
    let work = |wei: Wei, _| async move { Ok::<_, Infallible>(json_text(&wei.0.to_string())) };
    let jobs = Jobs::builder(&tasks).worker(LONG, work).start().await.unwrap();
    for amount in [0, u128::from(u64::MAX), (1 << 64) + 1, u128::MAX] {
        let id = jobs.enqueue(Wei(amount)).await.unwrap().id();
        let record = ended(&tasks, id).await;
        assert_eq!(record.state, TaskState::Succeeded, "{:?}", record.failure);
        assert_eq!(record.result.unwrap().as_str(), amount.to_string());
        assert!(record.finished_at >= record.started_at && record.started_at.is_some());
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// Keeps the text of a number.
fn json_text(text: &str) -> Box<serde_json::value::RawValue> {
    serde_json::value::RawValue::from_string(text.to_owned()).unwrap()
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Limit {
    limit: f64,
}

impl Job for Limit {
    const KIND: &'static str = "limit";
    const MAX_ATTEMPTS: u16 = 1;
}

async fn numbers_that_are_accepted_can_be_read(database: TestDatabase) {
    let tasks = database.tasks().await;
    let work = |limit: Limit, _| async move { Ok::<_, Infallible>(limit.limit.to_bits().to_string()) };
    let jobs = Jobs::builder(&tasks).worker(LONG, work).start().await.unwrap();
    for limit in [f64::MAX, f64::MIN_POSITIVE, 5e-324, 0.1 + 0.2, 1e300, 123_456_789.123_456_78] {
        let id = jobs.enqueue(Limit { limit }).await.unwrap().id();
        let record = ended(&tasks, id).await;
        assert_eq!(record.state, TaskState::Succeeded, "{limit}: {:?}", record.failure);
        assert_eq!(record.result.unwrap().parse::<String>().unwrap(), limit.to_bits().to_string(), "{limit}");
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}

#[derive(Serialize, Deserialize)]
struct Tagged {
    tags: HashMap<String, HashMap<String, u32>>,
}

impl Job for Tagged {
    const KIND: &'static str = "tagged";
}

async fn equal_maps_are_equal_content(database: TestDatabase) {
    let jobs = TestWorkers::new().start(&database.tasks().await).await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        let inner = || ["x", "y", "z"].map(|tag| (tag.to_owned(), 1)).into();
        let tags = ["a", "b", "c", "d", "e"].map(|tag| (tag.to_owned(), inner())).into();
        ids.push(jobs.enqueue(Tagged { tags }).unique(Unique::by_content()).await.unwrap().id());
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let other = jobs.enqueue(Tagged { tags: HashMap::new() }).unique(Unique::by_content()).await.unwrap();
    assert_ne!(other.id(), ids[0]);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn content_of_any_form_can_be_unique(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    // A string, and an array in an object.
    for act in [Act::Fail, Act::Return(json!([1, {"b": 1, "a": 2}]))] {
        let enqueue = || jobs.enqueue(act.clone()).max_attempts(1).unique(Unique::by_content());
        let id = enqueue().await.unwrap().id();
        assert_eq!(enqueue().await.unwrap().id(), id);
        let ended = ended(&tasks, id).await;
        let is_failure = matches!(act, Act::Fail);
        assert_eq!(ended.state == TaskState::Failed, is_failure, "the worker gets what was enqueued");
        assert_eq!(ended.failure.map(|failure| failure.class), is_failure.then(|| "out_of_paper".to_owned()));
    }
    let wrapped = "SELECT count(*) FROM river_job WHERE CAST(args AS text) LIKE '%tower_offload%'";
    assert_eq!(database.number(wrapped).await, 0);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

#[derive(Serialize, Deserialize)]
struct Short;

impl Job for Short {
    const KIND: &'static str = "a";
}

async fn kinds_and_queues_are_checked_with_one_message(database: TestDatabase) {
    let tasks = database.tasks().await;
    let work = |_: Short, _| Ok::<_, Infallible>(());
    let builder = Jobs::builder(&tasks).blocking_worker(ThreadPool::blocking(1), LONG, work);
    let at_start = builder.start().await.unwrap_err();
    assert!(at_start.is_invalid(), "{at_start:?}");
    let at_start = at_start.to_string();
    assert!(at_start.starts_with("job kind \"a\" is shorter than 2 bytes"), "{at_start}");
    let queue = Jobs::builder(&tasks).queue("Mail", 1).start().await.unwrap_err().to_string();
    let no_time = Jobs::builder(&tasks).worker(Duration::ZERO, |_: Act, _| async { Ok::<_, Infallible>(()) });
    let error = no_time.start().await.unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("timeout of zero"), "{error}");
    let jobs = TestWorkers::new().start(&tasks).await;
    let at_enqueue = jobs.enqueue(Short).await.unwrap_err();
    assert!(at_enqueue.is_invalid() && at_enqueue.to_string().ends_with(&at_start), "{at_enqueue}");
    let error = jobs.enqueue(Act::Fail).queue("Mail").await.unwrap_err();
    assert!(error.is_invalid() && error.to_string().ends_with(&queue), "{error}, {queue}");
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn record_says_when_the_next_attempt_is_due(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().builder(&tasks).backoff(Backoff::fixed(2 * LONG)).start().await.unwrap();
    let within = |record: &tower_offload_tasks::Record, delay: Duration| {
        let due = record.due_at.expect("it is due").as_millis() - record.created_at.as_millis();
        let delay = delay.as_millis() as u64;
        let late = LONG.as_millis() as u64 / 2; // on a busy machine
        assert!((delay.saturating_sub(1000)..delay + late).contains(&due), "{due}");
    };
    let delayed = jobs.enqueue(Act::Return(json!(1))).delay(LONG).await.unwrap();
    assert!(delayed.status().due_at.is_some());
    within(&record(&tasks, delayed.id()).await, LONG);
    let failing = jobs.enqueue(Act::Fail).await.unwrap();
    assert_eq!(failing.status().due_at, None);
    let failed =
        until(&tasks, failing.id(), |record| record.failure.is_some() && record.state == TaskState::Queued).await;
    within(&failed, 2 * LONG);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// A job of a kind whose arguments have changed.
#[derive(Serialize, Deserialize)]
struct Old(u32);

impl Job for Old {
    const KIND: &'static str = "act";
    const MAX_ATTEMPTS: u16 = 1;
}

async fn ends_are_counted(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let succeeds = jobs.enqueue(Act::Return(json!(1))).await.unwrap().id();
    let fails = jobs.enqueue(Act::Fail).await.unwrap().id(); // three attempts
    let unparsable = jobs.enqueue(Old(7)).await.unwrap().id();
    for id in [succeeds, fails, unparsable] {
        ended(&tasks, id).await;
    }
    let cancelled = jobs.enqueue(ActAsync(Act::Hold)).await.unwrap().id();
    workers.started(5).await;
    tasks.cancel(cancelled).await.unwrap();
    ended(&tasks, cancelled).await;
    eventually("the ends are counted", async || {
        jobs.stats().cancelled > 0 && jobs.stats().succeeded > 0 && jobs.stats().discarded >= 2
    })
    .await;
    let stats = jobs.stats();
    assert_eq!((stats.succeeded, stats.retried, stats.discarded, stats.cancelled), (1, 2, 2, 1), "{stats:?}");
    assert_eq!((stats.unparsable, stats.timed_out, stats.running, stats.waiting), (1, 0, 0, 0), "{stats:?}");
    assert_eq!(record(&tasks, unparsable).await.failure.unwrap().class, "arguments");
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// Several batches.
async fn many_jobs_of_a_crashed_process_are_recovered(database: TestDatabase) {
    let tasks = database.tasks().await;
    let enqueuer = Jobs::builder(&tasks).start().await.unwrap();
    let enqueues = (0..1100).map(|number| enqueuer.enqueue(Act::Return(json!(number))).into_future());
    let ids: Vec<_> = futures_util::future::join_all(enqueues).await.into_iter().map(|one| one.unwrap().id()).collect();
    assert!(enqueuer.shutdown(LONG).await.is_clean());
    drop(enqueuer);
    crash(&database).await;
    let jobs = start(&tasks).await;
    for id in ids {
        let ended = ended(&tasks, id).await;
        assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 2));
    }
    assert_eq!(jobs.stats().recovered, 1100);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn running_job_at_shutdown_does_not_spoil_the_report(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let stuck = jobs.enqueue(Act::Hold).await.unwrap().id();
    let other = jobs.enqueue(ActAsync(Act::Hold)).await.unwrap().id();
    workers.started(2).await;
    let report = jobs.shutdown(GRACE).await;
    assert_eq!(report.still_running, [stuck]);
    let returned = record(&tasks, other).await;
    assert_eq!((returned.state, returned.attempt), (TaskState::Queued, 0));
    assert!(report.unwritten.is_empty(), "{report}");
    assert_eq!(report.to_string(), format!("jobs: 1 requeued, 1 still running (job {stuck})"));
    workers.release();
}

async fn cancel_requests_under_load_are_all_accepted(database: TestDatabase) {
    if let TestDatabase::Postgres(server) = &database {
        let isolation = "SET default_transaction_isolation = 'repeatable read'";
        database.execute(&format!("ALTER DATABASE {} {isolation}", server.name)).await;
    }
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    let (tasks, jobs) = (&tasks, &jobs);
    let cancels = (0..200).map(|number| async move {
        let id = jobs.enqueue(Act::Return(json!(number))).delay(LONG).await.unwrap().id();
        tasks.cancel(id).await.map(|_| id)
    });
    for cancelled in futures_util::future::join_all(cancels).await {
        let id = cancelled.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
        assert_eq!(until(tasks, id, |record| record.state.is_final()).await.state, TaskState::Cancelled);
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// Functions outlive the table whose triggers call them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_starts_on_rivers_tables_that_were_created_again() {
    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
    drop(jobs);
    let tables = "DROP TABLE river_job, river_leader, river_queue, river_client, river_client_queue, river_migration, \
                  river_notification CASCADE";
    let tables = match database.number("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'river_%'").await {
        0 => return,
        _ => tables,
    };
    for table in tables.trim_start_matches("DROP TABLE ").trim_end_matches(" CASCADE").split(", ") {
        database.execute(&format!("DROP TABLE IF EXISTS {} CASCADE", table.trim())).await;
    }
    database.execute("DROP TYPE IF EXISTS river_job_state CASCADE").await;
    database.execute("DROP FUNCTION IF EXISTS river_job_state_in_bitmask CASCADE").await;
    let jobs = start(&tasks).await;
    let id = jobs.enqueue(Act::Return(json!(1))).await.unwrap().id();
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn river_works_after_the_tables_of_this_crate_are_dropped() {
    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let tasks = database.tasks().await;
    let jobs = Jobs::builder(&tasks).start().await.unwrap();
    let _accepted = jobs.enqueue(Act::Return(json!(1))).await.unwrap();
    assert!(jobs.shutdown(LONG).await.is_clean());
    for table in ["task", "client", "process", "tombstone", "migration"] {
        database.execute(&format!("DROP TABLE tower_offload_{table}")).await;
    }
    assert_eq!(database.execute("UPDATE river_job SET state = 'running', attempt = 1").await, 1);
    assert_eq!(database.execute("UPDATE river_job SET state = 'completed', finalized_at = now()").await, 1);
    assert_eq!(database.execute("DELETE FROM river_job").await, 1);
    database.execute("TRUNCATE river_job").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_that_finds_another_river_job_is_rejected() {
    let Some(server) = OnServer::fresh().await else { return };
    let mut connection = server.connect().await;
    let database = TestDatabase::Postgres(server);
    let jobs = TestWorkers::new().start(&database.tasks().await).await;
    database.execute("CREATE SCHEMA other").await;
    database.execute("CREATE TABLE other.river_job (LIKE public.river_job INCLUDING ALL)").await;
    let mut transaction = connection.begin().await.unwrap();
    sqlx::query("SET LOCAL search_path = other, public").execute(&mut *transaction).await.unwrap();
    let error = jobs.enqueue(Act::Fail).tx(&mut transaction).await.unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("search path"), "{error}");
    transaction.rollback().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    let _id = jobs.enqueue(Act::Return(json!(1))).delay(LONG).tx(&mut transaction).await.unwrap();
    transaction.commit().await.unwrap();
    let Some(second) = OnServer::fresh().await else { return };
    let mut connection = second.connect().await;
    let second = TestDatabase::Postgres(second);
    let other = TestWorkers::new().start(&second.tasks().await).await;
    let mut transaction = connection.begin().await.unwrap();
    let error = jobs.enqueue(Act::Fail).tx(&mut transaction).await.unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("belongs to database"), "{error}");
    transaction.rollback().await.unwrap();
    assert!(jobs.shutdown(LONG).await.is_clean() && other.shutdown(LONG).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_of_another_file_is_rejected() {
    let (one, other) = (TestDatabase::Sqlite(OnFile::fresh()), OnFile::fresh());
    let jobs = TestWorkers::new().start(&one.tasks().await).await;
    let mut connection = sqlx::SqliteConnection::connect(&format!("{}?mode=rwc", other.url())).await.unwrap();
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let error = jobs.enqueue(Act::Fail).tx(&mut transaction).await.unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("belongs to file"), "{error}");
    transaction.rollback().await.unwrap();
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// Only a job that equals the one in the transaction has to wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_with_a_unique_job_delays_only_its_duplicates() {
    let Some(server) = OnServer::fresh().await else { return };
    let mut connection = server.connect().await;
    let database = TestDatabase::Postgres(server);
    let jobs = TestWorkers::new().start(&database.tasks().await).await;
    let mut transaction = connection.begin().await.unwrap();
    let unique = |number: u32| jobs.enqueue(Act::Return(json!(number))).unique(Unique::by_content());
    let original = unique(0).tx(&mut transaction).await.unwrap();
    let duplicates: Vec<_> = (0..20)
        .map(|_| {
            tokio::spawn({
                let jobs = jobs.clone();
                async move { jobs.enqueue(Act::Return(json!(0))).unique(Unique::by_content()).await }
            })
        })
        .collect();
    tokio::time::sleep(A_WHILE).await; // until the duplicates wait
    let others = (1..20).map(|number| unique(number).into_future());
    for accepted in futures_util::future::join_all(others).await {
        let _accepted = accepted.unwrap();
    }
    assert!(duplicates.iter().all(|duplicate| !duplicate.is_finished()));
    transaction.commit().await.unwrap();
    for duplicate in duplicates {
        assert_eq!(duplicate.await.unwrap().unwrap().id(), original);
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// Makes the database reject the result `"rejected"`, as one of another encoding rejects some
/// texts.
async fn reject_one_result(database: &TestDatabase) {
    database
        .execute(
            "CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.metadata ->> 'output' = 'rejected' THEN RAISE EXCEPTION 'no such character' USING ERRCODE = '22P05'; END IF; \
             RETURN NEW; END $$",
        )
        .await;
    database.execute("CREATE TRIGGER reject BEFORE UPDATE ON river_job FOR EACH ROW EXECUTE FUNCTION reject()").await;
}

/// River itself would repeat a statement that the server rejects, with all other jobs in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_that_the_database_rejects_stops_no_other_job() {
    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let store = SqlStore::open_with_lease(&database.url(), Duration::from_secs(2)).await.unwrap();
    let tasks = Tasks::new(store);
    let jobs = TestWorkers::new().builder(&tasks).backoff(Backoff::fixed(LONG)).start().await.unwrap();
    database.execute("CREATE TABLE first_client AS SELECT id FROM tower_offload_client").await;
    reject_one_result(&database).await;
    let rejected = jobs.enqueue(Act::Return(json!("rejected"))).max_attempts(1).await.unwrap().id();
    tokio::time::sleep(A_WHILE).await; // until River repeats the end
    let other = jobs.enqueue(Act::Return(json!("other"))).await.unwrap().id();
    assert_eq!(ended_unfollowed(&tasks, other).await.state, TaskState::Succeeded);
    let failed = ended_unfollowed(&tasks, rejected).await;
    assert_eq!(failed.state, TaskState::Failed);
    let failure = failed.failure.unwrap();
    assert_eq!(failure.class, "result");
    // Clients see it, so it has neither the server nor the text of the database.
    assert_eq!(failure.message, "the database rejected the result");
    // Another client has replaced the first one. Its lease is renewed, and that of the first one
    // ends. Leases go by the server's clock.
    let others = "SELECT count(*) FROM tower_offload_client WHERE id NOT IN (SELECT id FROM first_client)";
    eventually("another client has a lease", async || database.number(others).await == 1).await;
    let clients = "SELECT count(*) FROM tower_offload_client";
    eventually("no other client has a lease", async || database.number(clients).await == 1).await;
    let expiry = "SELECT (extract(epoch FROM expires_at) * 1000)::bigint FROM tower_offload_client";
    let before = database.number(expiry).await;
    eventually("its lease is renewed", async || database.number(expiry).await > before).await;
    let _ = jobs.shutdown(Duration::from_secs(1)).await;
}

/// Each client that River does not write the ends of is replaced, unless too many have jobs that
/// are running.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn number_of_replaced_clients_is_limited() {
    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let store = SqlStore::open_with_lease(&database.url(), Duration::from_secs(1)).await.unwrap();
    let (tasks, workers) = (Tasks::new(store), TestWorkers::new());
    let jobs = workers.builder(&tasks).backoff(Backoff::fixed(LONG)).start().await.unwrap();
    reject_one_result(&database).await;
    let reject = async || {
        let id = jobs.enqueue(Act::Return(json!("rejected"))).max_attempts(1).await.unwrap().id();
        assert_eq!(ended_unfollowed(&tasks, id).await.state, TaskState::Failed);
    };
    let mut held = Vec::new();
    for replaced in 1..=3 {
        held.push(jobs.enqueue(Act::Hold).await.unwrap().id());
        workers.started(2 * replaced - 1).await;
        reject().await;
        eventually("it is replaced", async || jobs.stats().clients > replaced).await;
        // A client is not replaced again before the interval has passed.
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    reject().await;
    tokio::time::sleep(Duration::from_secs(2)).await; // in which it would be replaced
    assert_eq!(jobs.stats().clients, 4);
    let connections = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()";
    let before = database.number(connections).await;
    let other = jobs.enqueue(Act::Return(json!("other"))).await.unwrap().id();
    assert_eq!(ended_unfollowed(&tasks, other).await.state, TaskState::Succeeded);
    workers.release();
    for id in held {
        assert_eq!(ended_unfollowed(&tasks, id).await.state, TaskState::Succeeded);
    }
    // Their clients end, and their connections are closed.
    eventually("replaced clients end", async || jobs.stats().clients <= 2).await;
    eventually("their connections are closed", async || database.number(connections).await <= before - 3).await;
    let _ = jobs.shutdown(Duration::from_secs(5)).await;
}

/// Nothing else is wrong with the jobs of the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_that_is_not_written_stops_no_other_job() {
    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let store = SqlStore::open_with_lease(&database.url(), Duration::from_secs(2)).await.unwrap();
    let (tasks, workers) = (Tasks::new(store), TestWorkers::new());
    let jobs = workers.builder(&tasks).backoff(Backoff::fixed(LONG)).start().await.unwrap();
    reject_one_result(&database).await;
    let held = jobs.enqueue(ActAsync(Act::Hold)).await.unwrap().id();
    workers.started(1).await;
    let rejected = jobs.enqueue(Act::Return(json!("rejected"))).max_attempts(1).await.unwrap().id();
    assert_eq!(ended_unfollowed(&tasks, rejected).await.state, TaskState::Failed);
    tokio::time::sleep(Duration::from_secs(1)).await; // in which it would restart
    let starts = workers.started.lock().unwrap().iter().filter(|id| **id == held).count();
    let running = record(&tasks, held).await;
    assert_eq!((starts, running.state, running.attempt), (1, TaskState::Running, 1), "the future was dropped");
    // The process claims with a new client.
    let other = jobs.enqueue(Act::Return(json!("other"))).await.unwrap().id();
    assert_eq!(ended_unfollowed(&tasks, other).await.state, TaskState::Succeeded);
    // A shutdown waits for the jobs of all clients.
    let report = jobs.shutdown(GRACE).await;
    assert!(report.is_clean() && report.returned == 1, "{report}");
}

/// A claim is handed back because its reply seems to be lost, and claimed again, while the first
/// attempt is about to begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_of_an_earlier_claim_has_no_effect() {
    let Some(server) = OnServer::fresh().await else { return };
    for_both(TestDatabase::Postgres(server)).await;
    for_both(TestDatabase::Sqlite(OnFile::fresh())).await;
    async fn for_both(database: TestDatabase) {
        let (tasks, workers) = (database.tasks().await, TestWorkers::new());
        let jobs = workers.start(&tasks).await;
        let id = jobs.enqueue(Act::Hold).await.unwrap().id();
        workers.started(1).await;
        let later = match database {
            TestDatabase::Postgres(_) => "attempted_at + interval '1 second'",
            TestDatabase::Sqlite(_) => "strftime('%Y-%m-%d %H:%M:%f', attempted_at, '+1 seconds')",
        };
        let claim_again = format!("UPDATE river_job SET attempted_at = {later}");
        assert_eq!(database.execute(&claim_again).await, 1);
        workers.release();
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(record(&tasks, id).await.state, TaskState::Running, "the end of another claim was written");
        // No attempt has the later claim, so it is handed back, and does not count.
        let succeeded = ended(&tasks, id).await;
        assert_eq!((succeeded.state, succeeded.attempt), (TaskState::Succeeded, 1));
        assert_eq!(workers.started.lock().unwrap().len(), 2);
        assert!(jobs.shutdown(LONG).await.is_clean());
    }
}

async fn ended_unfollowed(tasks: &Tasks, id: tower_offload_tasks::TaskId) -> tower_offload_tasks::Record {
    until(tasks, id, |record| record.state.is_final()).await
}

/// Collects the messages of events.
#[derive(Clone, Default)]
struct Messages(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Messages {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Fields(String);
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{}={value:?} ", field.name());
            }
        }
        let mut fields = Fields(format!("{} ", event.metadata().level()));
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields.0);
    }
}

/// The only test that sets the subscriber of the current thread, on which its runtime runs.
#[test]
fn failures_and_jobs_that_no_process_works_on_are_events() {
    let messages = Messages::default();
    // With only one dispatcher, tracing caches the interest of the thread that reaches an event
    // first, and disables the event for all threads if it has no subscriber: another test's.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let _default = tracing::subscriber::set_default(tracing_subscriber::registry().with(messages.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let crashed = runtime.block_on(async {
        let database = TestDatabase::Sqlite(OnFile::fresh());
        let tasks = Tasks::new(SqlStore::open(&database.url()).await.unwrap());
        let enqueuer = Jobs::builder(&tasks).start().await.unwrap();
        let _accepted = enqueuer.enqueue(Limit { limit: 1.0 }).queue("empty").await.unwrap();
        let crashed = enqueuer.enqueue(Act::Fail).max_attempts(1).await.unwrap().id();
        let crash =
            "UPDATE river_job SET state = 'running', attempt = 1, attempted_by = jsonb_array('to-gone') WHERE id = 2";
        assert_eq!(database.execute(crash).await, 1);
        assert!(enqueuer.shutdown(LONG).await.is_clean());
        drop(enqueuer);
        database
            .execute("UPDATE river_job SET scheduled_at = strftime('%Y-%m-%d %H:%M:%f', 'now', '-2 minutes')")
            .await;
        let jobs = start(&tasks).await;
        let id = jobs.enqueue(ActAsync(Act::Fail)).max_attempts(2).await.unwrap().id();
        ended(&tasks, id).await;
        let unparsable = jobs.enqueue(Old(7)).await.unwrap().id();
        ended(&tasks, unparsable).await;
        eventually("the jobs are counted", async || jobs.stats().discarded >= 3 && jobs.stats().unserved > 0).await;
        assert_eq!(jobs.stats().unserved, 1);
        assert!(jobs.shutdown(LONG).await.is_clean());
        crashed
    });
    let messages = messages.0.lock().unwrap();
    let crashed = format!("id={crashed} river_id=2 kind=\"act\" queue=\"default\" attempt=1 class=\"process_lost\"");
    for (level, parts) in [
        ("INFO", ["the job queue has no workers", ""]),
        ("ERROR", ["job failed, its process crashed during the last attempt", &crashed]),
        ("WARN", ["job failed and will be retried", "out_of_paper"]),
        ("ERROR", ["job failed, all attempts are used", "there is no paper"]),
        ("ERROR", ["job failed, all attempts are used", "class=\"arguments\""]),
        ("WARN", ["no process works on these jobs", "queue=\"empty\""]),
    ] {
        let found = messages
            .iter()
            .any(|message| message.starts_with(level) && parts.iter().all(|part| message.contains(part)));
        assert!(found, "{parts:?} in {messages:#?}");
    }
}
