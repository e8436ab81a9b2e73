//! Where a queue can be opened, and where not.

use std::error::Error;

use tower_offload::ThreadPool;
use tower_offload_tasks::{MemoryStore, SqlStore, StoreError, Tasks, jobs::Durable};

use super::support::{Act, LONG, Place, Stage, on_each_database};

on_each_database! {
    of_two_queues_on_the_same_tasks_the_second_is_refused
    a_schema_of_river_that_is_not_known_is_refused
    a_queue_that_could_not_be_opened_can_be_opened_later
    one_without_workers_enqueues_for_others
}

#[tokio::test]
async fn records_in_memory_are_no_place_for_jobs() {
    let error = Durable::builder(&Tasks::new(MemoryStore::new())).start().await.unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("SqlStore"), "{error}");
}

async fn of_two_queues_on_the_same_tasks_the_second_is_refused(place: Place) {
    let store = SqlStore::open(&place.url()).await.unwrap();
    let tasks = Tasks::new(store.clone());
    let durable = Stage::new().start(&tasks).await;
    let error = Stage::new().builder(&tasks).start().await.unwrap_err();
    assert!(error.is_invalid(), "{error}");
    let twice = |_: Act, _| Ok::<_, String>(());
    let builder = Durable::builder(&tasks).sync_worker(ThreadPool::blocking(1), LONG, twice);
    let error = builder.sync_worker(ThreadPool::blocking(1), LONG, twice).start().await.unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("kind \"act\""), "{error}");
    for builder in [
        Stage::new().builder(&tasks).concurrency(0),
        Stage::new().builder(&tasks).queue("no queue has spaces", 1),
        Stage::new().builder(&tasks).queue("none", 0),
    ] {
        let error = builder.start().await.unwrap_err();
        assert!(error.is_invalid(), "{error}");
    }
    let error = Stage::new().builder(&Tasks::new(store)).start().await.unwrap_err();
    assert!(error.is_invalid(), "other tasks on the same store are no way around it: {error}");
    assert!(durable.drain(LONG).await.is_clean());
    let next = Stage::new().start(&tasks).await;
    assert!(next.drain(LONG).await.is_clean(), "one that was drained is in nobody's way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_start_at_once_on_an_empty_database_all_start() {
    let Some(server) = super::databases::OnServer::fresh().await else { return };
    let start = async || {
        let tasks = Tasks::new(SqlStore::open(&server.url()).await.unwrap());
        Stage::new().start(&tasks).await
    };
    let (first, second, third) = tokio::join!(start(), start(), start());
    for durable in [first, second, third] {
        assert!(durable.drain(LONG).await.is_clean());
    }
}

/// Recovery and triggers are written for one version of River's tables.
async fn a_schema_of_river_that_is_not_known_is_refused(place: Place) {
    let tasks = place.tasks().await;
    let durable = Stage::new().start(&tasks).await;
    assert!(durable.drain(LONG).await.is_clean());
    drop(durable);
    assert_eq!(place.number("SELECT max(version) FROM river_migration").await, 8);
    place.execute("INSERT INTO river_migration (line, version) VALUES ('main', 9)").await;
    let tasks = reopened(&place, tasks).await;
    let error = Stage::new().builder(&tasks).start().await.unwrap_err();
    assert!(error.is_store());
    assert!(error.source().unwrap().source().unwrap().to_string().contains("version 9"), "{error:?}");
}

async fn a_queue_that_could_not_be_opened_can_be_opened_later(place: Place) {
    let tasks = place.tasks().await;
    let durable = Stage::new().start(&tasks).await;
    assert!(durable.drain(LONG).await.is_clean());
    drop(durable);
    place.execute("INSERT INTO river_migration (line, version) VALUES ('main', 9)").await;
    let tasks = reopened(&place, tasks).await;
    Stage::new().builder(&tasks).start().await.unwrap_err();
    place.execute("DELETE FROM river_migration WHERE version = 9").await;
    let durable = Stage::new().start(&tasks).await;
    assert!(durable.drain(LONG).await.is_clean());
}

async fn one_without_workers_enqueues_for_others(place: Place) {
    let tasks = place.tasks().await;
    let durable = Durable::builder(&tasks).start().await.unwrap();
    let accepted = durable.enqueue(Act::Return(1.into())).await.unwrap();
    assert!(durable.drain(LONG).await.is_clean());
    drop(durable);
    let tasks = reopened(&place, tasks).await;
    let durable = Stage::new().start(&tasks).await;
    super::support::ended(&tasks, accepted.id()).await;
    assert!(durable.drain(LONG).await.is_clean());
}

/// The "second process on the same SQLite file", as far as one process shows it; a real one is in the crash tests.
#[tokio::test]
async fn a_second_store_on_one_file_is_told_who_has_it() {
    let file = super::databases::OnFile::fresh();
    let tasks = Tasks::new(SqlStore::open(&file.url()).await.unwrap());
    let durable = Stage::new().start(&tasks).await;
    let error: StoreError = SqlStore::open(&file.url()).await.unwrap_err();
    assert!(error.is_locked() && error.source().unwrap().to_string().contains("in use by process"), "{error:?}");
    assert!(durable.drain(LONG).await.is_clean());
}

async fn reopened(place: &Place, tasks: Tasks) -> Tasks {
    tasks.shutdown(LONG).await;
    drop(tasks);
    // The file is let go of soon after the last handle is gone.
    loop {
        match SqlStore::open(&place.url()).await {
            Ok(store) => return Tasks::new(store),
            Err(error) if error.is_locked() => tokio::time::sleep(super::support::SHORT).await,
            Err(error) => panic!("{error:?}"),
        }
    }
}
