//! Enqueueing jobs, and jobs that are rejected.

use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer, ser};
use serde_json::json;
use tower_offload_tasks::{
    Json, TaskState,
    jobs::{Job, Unique},
};

use super::support::{Act, ActAsync, LONG, TestDatabase, TestWorkers, ended, on_each_database, record};

on_each_database! {
    invalid_jobs_are_rejected_and_leave_no_rows
    unique_job_exists_once
    unique_job_of_another_owner_is_a_duplicate
    delayed_job_does_not_start_early
    concurrent_jobs_are_all_accepted_and_run_once
    jobs_are_rejected_after_shutdown
    job_without_a_worker_stays_queued
}

#[derive(Serialize, Deserialize)]
struct Text(String);

impl Job for Text {
    const KIND: &'static str = "text";
}

#[derive(Deserialize)]
struct Unserializable;

impl Serialize for Unserializable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(ser::Error::custom("no JSON form"))
    }
}

impl Job for Unserializable {
    const KIND: &'static str = "unserializable";
}

#[derive(Deserialize)]
struct Panicking;

impl Serialize for Panicking {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("as requested")
    }
}

impl Job for Panicking {
    const KIND: &'static str = "panicking";
}

async fn invalid_jobs_are_rejected_and_leave_no_rows(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    let large = jobs.enqueue(Text("x".repeat(Json::MAX_BYTES))).await.unwrap_err();
    assert!(large.is_content() && large.to_string().contains("at most 65536 are allowed"), "{large}");
    let nul = jobs.enqueue(Text("a\0b".to_owned())).await.unwrap_err();
    assert!(nul.is_content() && nul.to_string().contains("NUL"), "{nul}");
    let unserializable = jobs.enqueue(Unserializable).await.unwrap_err();
    assert!(unserializable.is_content() && unserializable.to_string().contains("no JSON form"), "{unserializable}");
    assert!(jobs.enqueue(Panicking).await.unwrap_err().is_content());
    assert!(jobs.enqueue(Text(String::new())).owner("").await.unwrap_err().is_invalid());
    let queue = jobs.enqueue(Text(String::new())).queue("no queue has spaces").await.unwrap_err();
    assert!(queue.is_invalid(), "{queue:?}");
    let attempts = jobs.enqueue(Text(String::new())).max_attempts(0).await.unwrap_err();
    assert!(attempts.is_invalid() && attempts.to_string().contains("got 0: change `Job::MAX_ATTEMPTS`"), "{attempts}");
    let body = attempts.into_response::<bytes::Bytes>().into_body();
    assert!(String::from_utf8_lossy(&body).contains("an invalid option: maximum number of attempts"), "{body:?}");
    assert_eq!(large.into_response::<bytes::Bytes>().status(), http::StatusCode::UNPROCESSABLE_ENTITY);
    let priority = jobs.enqueue(Text(String::new())).priority(9).await.unwrap_err();
    assert!(priority.is_invalid(), "{priority:?}");
    assert_eq!(database.number("SELECT count(*) FROM river_job").await, 0);
    assert_eq!(database.number("SELECT count(*) FROM tower_offload_task").await, 0);
    let quotes = jobs.enqueue(Text("'; DROP TABLE river_job; --".to_owned())).owner("o'brien").await.unwrap();
    assert_eq!(record(&tasks, quotes.id()).await.owner.as_deref(), Some("o'brien"));
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn unique_job_exists_once(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let act = || Act::Return(json!("once"));
    let first = jobs.enqueue(act()).unique(Unique::by_content()).await.unwrap();
    let second = jobs.enqueue(act()).unique(Unique::by_content()).await.unwrap();
    assert_eq!(first.id(), second.id());
    ended(&tasks, first.id()).await;
    let third = jobs.enqueue(act()).unique(Unique::by_content()).await.unwrap();
    assert_eq!((third.id(), third.status().state), (first.id(), TaskState::Succeeded));
    let other = jobs.enqueue(Act::Return(json!("other"))).unique(Unique::by_content()).await.unwrap();
    assert_ne!(other.id(), first.id());
    ended(&tasks, other.id()).await;

    // Concurrently, so that several jobs share a transaction.
    let enqueues = (0..20).map(|_| async { jobs.enqueue(Act::Return(json!(7))).unique(Unique::by_content()).await });
    let ids: Vec<_> = futures_util::future::join_all(enqueues).await.into_iter().map(|one| one.unwrap().id()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
    ended(&tasks, ids[0]).await;
    assert_eq!(workers.started.lock().unwrap().len(), 3);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn unique_job_of_another_owner_is_a_duplicate(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    let act = || Act::Return(json!("secret"));
    let _accepted = jobs.enqueue(act()).owner("ann").unique(Unique::by_content()).await.unwrap();
    let duplicate = jobs.enqueue(act()).owner("bob").unique(Unique::by_content()).await.unwrap_err();
    assert!(duplicate.is_duplicate() && !duplicate.is_store());
    // The owner is known even if the record was evicted.
    database.execute("DELETE FROM tower_offload_task").await;
    let again = jobs.enqueue(act()).owner("bob").unique(Unique::by_content()).await.unwrap_err();
    assert!(again.is_duplicate());
    let _accepted = jobs.enqueue(act()).owner("ann").unique(Unique::by_content()).await.unwrap();
    assert_eq!(duplicate.into_response::<bytes::Bytes>().status(), http::StatusCode::CONFLICT);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn delayed_job_does_not_start_early(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let past = std::time::SystemTime::UNIX_EPOCH;
    let due = jobs.enqueue(Act::Return(json!("due"))).at(past).await.unwrap();
    ended(&tasks, due.id()).await;
    assert_eq!(
        database.number("SELECT count(*) FROM river_job WHERE scheduled_at > created_at").await,
        0,
        "a time in the past has no effect"
    );
    let later = jobs.enqueue(Act::Return(json!("later"))).delay(Duration::from_secs(3600)).await.unwrap();
    let now = jobs.enqueue(Act::Return(json!("now"))).await.unwrap();
    ended(&tasks, now.id()).await;
    assert_eq!(record(&tasks, later.id()).await.state, TaskState::Queued);
    assert_eq!(workers.started.lock().unwrap().len(), 2);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn concurrent_jobs_are_all_accepted_and_run_once(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let enqueues = (0..500).map(|number| {
        let (jobs, tasks) = (jobs.clone(), tasks.clone());
        tokio::spawn(async move {
            let accepted = jobs.enqueue(Act::Return(json!(number))).await.unwrap();
            record(&tasks, accepted.id()).await;
            (number, accepted.id())
        })
    });
    for one in futures_util::future::join_all(enqueues).await {
        let (number, id) = one.unwrap();
        let ended = ended(&tasks, id).await;
        assert_eq!(ended.result.unwrap().parse::<u32>().unwrap(), number);
    }
    assert_eq!(workers.started.lock().unwrap().len(), 500, "each job runs once");
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn jobs_are_rejected_after_shutdown(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
    assert!(jobs.is_closed());
    let error = jobs.enqueue(Act::Fail).await.unwrap_err();
    assert!(error.is_closed());
    assert_eq!(error.into_response::<bytes::Bytes>().status(), http::StatusCode::SERVICE_UNAVAILABLE);
}

async fn job_without_a_worker_stays_queued(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    let unknown = jobs.enqueue(Text("for another process".to_owned())).await.unwrap();
    let known = jobs.enqueue(ActAsync(Act::Return(json!(1)))).await.unwrap();
    ended(&tasks, known.id()).await;
    assert_eq!(record(&tasks, unknown.id()).await.state, TaskState::Queued);
    assert!(jobs.shutdown(LONG).await.is_clean());
}
