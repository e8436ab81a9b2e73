//! Starting a job queue, and errors at the start.

use serde::{Deserialize, Serialize};
use tower_offload::ThreadPool;
use tower_offload_tasks::{
    MemoryStore, SqlStore, StoreError, Tasks,
    jobs::{Job, Jobs},
};

use tower_offload_tests::eventually;

use super::support::{Act, LONG, TestDatabase, TestWorkers, on_each_database};

on_each_database! {
    second_queue_on_the_same_store_is_rejected
    unknown_version_of_rivers_schema_is_rejected
    queue_can_be_started_after_a_failed_start
    queue_without_workers_enqueues_for_other_processes
}

#[derive(Serialize, Deserialize)]
struct Never;

impl Job for Never {
    const KIND: &'static str = "never";
    const MAX_ATTEMPTS: u16 = 0;
}

#[tokio::test]
async fn memory_store_is_rejected() {
    let error = Jobs::builder(&Tasks::new(MemoryStore::new())).start().await.unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("SqlStore"), "{error}");
}

async fn second_queue_on_the_same_store_is_rejected(database: TestDatabase) {
    let store = SqlStore::open(&database.url()).await.unwrap();
    let tasks = Tasks::new(store.clone());
    let jobs = TestWorkers::new().start(&tasks).await;
    let error = TestWorkers::new().builder(&tasks).start().await.unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("clone it, or shut it down first"), "{error}");
    let twice = |_: Act, _| Ok::<_, String>(());
    let builder = Jobs::builder(&tasks).blocking_worker(ThreadPool::blocking(1), LONG, twice);
    let error = builder.blocking_worker(ThreadPool::blocking(1), LONG, twice).start().await.unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("kind \"act\" has two workers: remove one"), "{error}");
    let builder =
        Jobs::builder(&tasks).blocking_worker(ThreadPool::blocking(1), LONG, |_: Never, _| Ok::<_, String>(()));
    let error = builder.start().await.unwrap_err().to_string();
    assert!(error.contains("job kind \"never\"") && error.contains("got 0: change `Job::MAX_ATTEMPTS`"), "{error}");
    let error = jobs.enqueue(Act::Return(1.into())).priority(9).await.unwrap_err().to_string();
    assert!(error.contains("between 1 (first) and 4 (last), got 9"), "{error}");
    for builder in [
        TestWorkers::new().builder(&tasks).concurrency(0),
        TestWorkers::new().builder(&tasks).queue("no queue has spaces", 1),
        TestWorkers::new().builder(&tasks).queue("none", 0),
    ] {
        let error = builder.start().await.unwrap_err();
        assert!(error.is_invalid(), "{error}");
    }
    let error = TestWorkers::new().builder(&Tasks::new(store)).start().await.unwrap_err();
    assert!(error.is_invalid(), "other tasks on the same store: {error}");
    assert!(jobs.shutdown(LONG).await.is_clean());
    let next = TestWorkers::new().start(&tasks).await;
    assert!(next.shutdown(LONG).await.is_clean(), "another queue can start after a shutdown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_can_start_concurrently_on_an_empty_database() {
    let Some(server) = super::databases::OnServer::fresh().await else { return };
    let start = async || {
        let tasks = Tasks::new(SqlStore::open(&server.url()).await.unwrap());
        TestWorkers::new().start(&tasks).await
    };
    let (first, second, third) = tokio::join!(start(), start(), start());
    for jobs in [first, second, third] {
        assert!(jobs.shutdown(LONG).await.is_clean());
    }
}

/// Recovery and triggers support one version of River's tables.
async fn unknown_version_of_rivers_schema_is_rejected(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
    drop(jobs);
    assert_eq!(database.number("SELECT max(version) FROM river_migration").await, 8);
    database.execute("INSERT INTO river_migration (line, version) VALUES ('main', 9)").await;
    let tasks = reopen(&database, tasks).await;
    let error = TestWorkers::new().builder(&tasks).start().await.unwrap_err();
    assert!(error.is_store());
    assert!(error.to_string().contains("version 9"), "{error:?}");
}

async fn queue_can_be_started_after_a_failed_start(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
    drop(jobs);
    database.execute("INSERT INTO river_migration (line, version) VALUES ('main', 9)").await;
    let tasks = reopen(&database, tasks).await;
    TestWorkers::new().builder(&tasks).start().await.unwrap_err();
    database.execute("DELETE FROM river_migration WHERE version = 9").await;
    let jobs = TestWorkers::new().start(&tasks).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn queue_without_workers_enqueues_for_other_processes(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = Jobs::builder(&tasks).start().await.unwrap();
    let accepted = jobs.enqueue(Act::Return(1.into())).await.unwrap();
    assert!(jobs.shutdown(LONG).await.is_clean());
    drop(jobs);
    let tasks = reopen(&database, tasks).await;
    let jobs = TestWorkers::new().start(&tasks).await;
    super::support::ended(&tasks, accepted.id()).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// The crash tests do the same with two processes.
#[tokio::test]
async fn error_of_a_second_store_says_that_this_process_has_the_first() {
    let file = super::databases::OnFile::fresh();
    let tasks = Tasks::new(SqlStore::open(&file.url()).await.unwrap());
    let jobs = TestWorkers::new().start(&tasks).await;
    let error: StoreError = SqlStore::open(&file.url()).await.unwrap_err();
    assert!(error.is_locked() && error.to_string().contains("in use by this process"), "{error:?}");
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn reopen(database: &TestDatabase, tasks: Tasks) -> Tasks {
    tasks.shutdown(LONG).await;
    drop(tasks);
    // The file is unlocked shortly after the last handle was dropped.
    let mut opened = None;
    eventually("the file is unlocked", async || {
        opened = Some(SqlStore::open(&database.url()).await);
        !matches!(&opened, Some(Err(error)) if error.is_locked())
    })
    .await;
    Tasks::new(opened.unwrap().unwrap())
}

/// River knows its queues before it is ready, and the database refuses them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_is_not_ready_leaves_no_connections() {
    let Some(server) = super::databases::OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let tasks = database.tasks().await;
    let jobs = Jobs::builder(&tasks).start().await.unwrap();
    assert!(jobs.shutdown(LONG).await.is_clean());
    drop(jobs);
    let tasks = reopen(&database, tasks).await;
    for statement in [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no queues'; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON river_queue FOR EACH ROW EXECUTE FUNCTION refuse()",
    ] {
        database.execute(statement).await;
    }
    TestWorkers::new().builder(&tasks).start().await.unwrap_err();
    let leases = "SELECT count(*) FROM tower_offload_client";
    assert_eq!(database.number(leases).await, 0, "its lease has not ended");
    let prepared = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%river_%' \
                    AND pid <> pg_backend_pid()";
    eventually("the connections are closed", async || database.number(prepared).await == 0).await;
}
