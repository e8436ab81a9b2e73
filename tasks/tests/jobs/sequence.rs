//! Sequences and limits per key, on either database.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use riverqueue::{InsertOpts, JobMetadata};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tower_offload::ThreadPool;
use tower_offload_tasks::{
    BulkAction, TaskId, TaskState, Timestamp,
    jobs::{Backoff, Job, Jobs, Unique},
    store::{Filter, Page},
};

use super::{
    other_client::{OtherClient, Outcome, Report, builder, wait_for_count},
    other_languages::without_workers,
    support::{BEFORE_THE_NEXT_AUDIT, LONG, TestDatabase, ended, on_each_database, record},
};

on_each_database! {
    jobs_of_a_key_run_one_at_a_time_in_order
    key_continues_after_any_end_of_its_head
    key_holds_until_its_job_is_retried_or_it_is_released
    delayed_head_holds_its_key
    retried_job_rejoins_at_the_end
    retry_does_not_promote_a_waiting_job
    skipped_unique_job_does_not_join
    limit_is_exact_and_waiting_retries_do_not_count
    job_waits_for_its_turn_and_then_for_the_limit
    postponed_job_does_not_wait_for_its_limit
    jobs_that_are_retried_at_once_keep_their_order
    another_client_inserts_and_works_members
    invalid_keys_are_rejected
    stuck_keys_are_healed_and_counted
    healed_key_still_holds_and_admitted_jobs_run
}

#[derive(Serialize, Deserialize)]
struct Step {
    key: String,
    number: u32,
    /// The number of attempts that fail.
    fail: u32,
}

impl Job for Step {
    const KIND: &'static str = "step";
}

fn step(key: &str, number: u32) -> Step {
    Step { key: key.to_owned(), number, fail: 0 }
}

/// Returns River's states of all jobs, in the order of their ids.
async fn states(database: &TestDatabase) -> Vec<String> {
    let query = "SELECT CAST(state AS text) FROM river_job ORDER BY id";
    match database {
        TestDatabase::Sqlite(file) => sqlx::query_scalar(query).fetch_all(&mut file.connect().await).await.unwrap(),
        TestDatabase::Postgres(server) => {
            sqlx::query_scalar(query).fetch_all(&mut server.connect().await).await.unwrap()
        }
    }
}

/// Ends, or retries, a job like any client.
async fn set_state(database: &TestDatabase, id: u32, state: &str) {
    let is_final = ["completed", "cancelled", "discarded"].contains(&state);
    let finalized_at = if is_final { "CURRENT_TIMESTAMP" } else { "NULL" };
    let update = format!("UPDATE river_job SET state = '{state}', finalized_at = {finalized_at} WHERE id = {id}");
    assert_eq!(database.execute(&update).await, 1);
}

async fn enqueue(jobs: &Jobs, key: &str, count: u32) -> Vec<TaskId> {
    let mut ids = Vec::new();
    for number in 0..count {
        ids.push(jobs.enqueue(step(key, number)).sequence(key).await.unwrap().id());
    }
    ids
}

async fn jobs_of_a_key_run_one_at_a_time_in_order(database: TestDatabase) {
    let tasks = database.tasks().await;
    let log = Arc::new(Mutex::new((HashMap::<String, u32>::new(), HashMap::<String, Vec<u32>>::new())));
    let (of_worker, failed) = (log.clone(), Arc::new(Mutex::new(HashMap::<(String, u32), u32>::new())));
    let builder = Jobs::builder(&tasks).backoff(Backoff::fixed(Duration::ZERO));
    let jobs = builder.blocking_worker(ThreadPool::blocking(4), LONG, move |Step { key, number, fail }, _| {
        let running = |change: fn(&mut u32)| {
            let mut log = of_worker.lock().unwrap();
            let running = log.0.entry(key.clone()).or_default();
            change(running);
            assert!(*running <= 1, "two jobs of {key} run at once");
        };
        running(|running| *running += 1);
        std::thread::yield_now();
        running(|running| *running -= 1);
        let mut failed = failed.lock().unwrap();
        let failures = failed.entry((key.clone(), number)).or_default();
        if *failures < fail {
            *failures += 1;
            return Err("as requested");
        }
        of_worker.lock().unwrap().1.entry(key).or_default().push(number);
        Ok(())
    });
    let jobs = jobs.start().await.unwrap();
    let mut last = Vec::new();
    for number in 0..6 {
        for key in ["a", "b", "c"] {
            let job = Step { fail: u32::from(number == 2), ..step(key, number) };
            last.push(jobs.enqueue(job).sequence(key).priority(4 - (number % 4) as u8).await.unwrap().id());
        }
    }
    for id in last {
        assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
    }
    for (key, numbers) in &log.lock().unwrap().1 {
        assert_eq!(numbers, &[0, 1, 2, 3, 4, 5], "{key}");
    }
    assert_eq!(database.number("SELECT count(*) FROM tower_offload_sequence").await, 0);
    assert_eq!(jobs.stats().healed, 0);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn key_continues_after_any_end_of_its_head(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let ids = enqueue(&jobs, "a", 5).await;
    let other = enqueue(&jobs, "b", 1).await[0];
    assert_eq!(states(&database).await, ["available", "pending", "pending", "pending", "pending", "available"]);
    assert_eq!(record(&tasks, ids[1]).await.state, TaskState::Queued);
    set_state(&database, 1, "completed").await;
    set_state(&database, 2, "discarded").await;
    assert_eq!(states(&database).await[2], "available");
    tasks.cancel(ids[2]).await.unwrap();
    ended(&tasks, ids[2]).await;
    assert_eq!(states(&database).await[3], "available");
    database.execute("DELETE FROM river_job WHERE id = 4").await;
    assert_eq!(states(&database).await[3], "available", "the last one");
    tasks.cancel(other).await.unwrap();
    ended(&tasks, other).await;
    assert!(jobs.blocked_sequences().await.unwrap().is_empty());
}

async fn key_holds_until_its_job_is_retried_or_it_is_released(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let mut ids = Vec::new();
    for number in 0..3 {
        ids.push(jobs.enqueue(step("a", number)).sequence("a").hold_on_failure().await.unwrap().id());
    }
    assert!(!jobs.release_sequence("a").await.unwrap(), "it does not hold");
    set_state(&database, 1, "discarded").await;
    assert_eq!(states(&database).await, ["discarded", "pending", "pending"]);
    let blocked = jobs.blocked_sequences().await.unwrap();
    assert_eq!((blocked.len(), &*blocked[0].key, blocked[0].held_by, blocked[0].waiting), (1, "a", Some(ids[0]), 2));
    assert!(blocked[0].since.as_millis() > 1_700_000_000_000);

    set_state(&database, 1, "available").await;
    assert_eq!(states(&database).await, ["available", "pending", "pending"], "its turn continues");
    assert_eq!(record(&tasks, ids[0]).await.state, TaskState::Queued);
    assert!(jobs.blocked_sequences().await.unwrap().is_empty());
    set_state(&database, 1, "cancelled").await;
    assert!(jobs.release_sequence("a").await.unwrap());
    assert!(!jobs.release_sequence("a").await.unwrap());
    assert_eq!(states(&database).await, ["cancelled", "available", "pending"]);
    set_state(&database, 2, "completed").await;
    assert_eq!(states(&database).await, ["cancelled", "completed", "available"]);
    database.execute("DELETE FROM river_job WHERE id = 3").await;
    let blocked = jobs.blocked_sequences().await.unwrap();
    assert_eq!((blocked.len(), blocked[0].waiting), (1, 0), "a deleted job has not succeeded");
    assert!(jobs.release_sequence("a").await.unwrap());
}

async fn delayed_head_holds_its_key(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let head = jobs.enqueue(step("a", 0)).sequence("a").delay(LONG).await.unwrap().id();
    let next = jobs.enqueue(step("a", 1)).sequence("a").delay(LONG).await.unwrap().id();
    assert_eq!(states(&database).await, ["scheduled", "pending"]);
    assert!(record(&tasks, next).await.due_at.is_some());
    tasks.cancel(head).await.unwrap();
    ended(&tasks, head).await;
    assert_eq!(states(&database).await, ["cancelled", "scheduled"]);
}

async fn retried_job_rejoins_at_the_end(database: TestDatabase) {
    let (_tasks, jobs) = without_workers(&database).await;
    enqueue(&jobs, "a", 3).await;
    set_state(&database, 1, "completed").await;
    set_state(&database, 1, "available").await;
    assert_eq!(states(&database).await, ["pending", "available", "pending"]);
    set_state(&database, 2, "completed").await;
    set_state(&database, 3, "completed").await;
    assert_eq!(states(&database).await, ["available", "completed", "completed"]);
}

async fn retry_does_not_promote_a_waiting_job(database: TestDatabase) {
    let (_tasks, jobs) = without_workers(&database).await;
    enqueue(&jobs, "a", 2).await;
    let client = builder(&database).await.build().unwrap();
    client.jobs().retry(2).await.unwrap();
    for state in ["available", "scheduled", "running", "retryable"] {
        set_state(&database, 2, state).await;
        assert_eq!(states(&database).await, ["available", "pending"], "{state}");
    }
    set_state(&database, 1, "pending").await;
    assert_eq!(states(&database).await, ["available", "pending"], "the head does not wait");
}

async fn skipped_unique_job_does_not_join(database: TestDatabase) {
    let (_tasks, jobs) = without_workers(&database).await;
    let enqueue = || jobs.enqueue(step("a", 0)).sequence("a").unique(Unique::by_content());
    let id = enqueue().await.unwrap().id();
    assert_eq!(enqueue().await.unwrap().id(), id);
    let next = jobs.enqueue(step("a", 1)).sequence("a").unique(Unique::by_content()).await.unwrap().id();
    assert_eq!(jobs.enqueue(step("a", 1)).unique(Unique::by_content()).await.unwrap().id(), next);
    assert_eq!(states(&database).await, ["available", "pending"]);
    assert_eq!(database.number("SELECT count(*) FROM tower_offload_sequence").await, 2);
}

async fn limit_is_exact_and_waiting_retries_do_not_count(database: TestDatabase) {
    let (_tasks, jobs) = without_workers(&database).await;
    for number in 0..5 {
        jobs.enqueue(step("a", number)).at_most(2, "api").await.map(drop).unwrap();
    }
    jobs.enqueue(step("a", 5)).at_most(1, "other").await.map(drop).unwrap();
    assert_eq!(states(&database).await, ["available", "available", "pending", "pending", "pending", "available"]);
    set_state(&database, 1, "running").await;
    set_state(&database, 3, "available").await;
    assert_eq!(states(&database).await[2], "pending");
    let future = "UPDATE river_job SET state = 'retryable', scheduled_at = '2999-01-01 00:00:00' WHERE id = 1";
    database.execute(future).await;
    assert_eq!(states(&database).await[..4], ["retryable", "available", "available", "pending"]);
    database.execute("UPDATE river_job SET state = 'available', scheduled_at = CURRENT_TIMESTAMP WHERE id = 1").await;
    assert_eq!(states(&database).await[..4], ["pending", "available", "available", "pending"], "it waits again");
    for (id, next) in [(2, 4), (3, 5), (4, 1)] {
        set_state(&database, id, "completed").await;
        assert_eq!(states(&database).await[next - 1], "available", "{next}");
    }
}

async fn job_waits_for_its_turn_and_then_for_the_limit(database: TestDatabase) {
    let (_tasks, jobs) = without_workers(&database).await;
    for key in ["a", "a", "b"] {
        jobs.enqueue(step(key, 0)).sequence(key).at_most(1, "api").await.map(drop).unwrap();
    }
    assert_eq!(states(&database).await, ["available", "pending", "pending"]);
    set_state(&database, 1, "completed").await;
    assert_eq!(states(&database).await, ["completed", "pending", "available"], "it has waited for the limit longer");
    set_state(&database, 3, "completed").await;
    assert_eq!(states(&database).await, ["completed", "available", "completed"]);
}

async fn postponed_job_does_not_wait_for_its_limit(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let mut ids = Vec::new();
    for number in 0..3 {
        ids.push(jobs.enqueue(step("a", number)).at_most(1, "api").await.unwrap().id());
    }
    for number in 0..2 {
        ids.push(jobs.enqueue(step("b", number)).sequence("b").at_most(1, "api").await.unwrap().id());
    }
    assert_eq!(states(&database).await, ["available", "pending", "pending", "pending", "pending"]);
    for id in [ids[1], ids[3]] {
        let postponed = tasks.reschedule(id, Timestamp::from_millis(u64::MAX)).await.unwrap();
        assert_eq!((postponed.state, postponed.due_at.is_some()), (TaskState::Queued, true));
    }
    assert_eq!(states(&database).await, ["available", "scheduled", "pending", "scheduled", "pending"]);
    set_state(&database, 1, "completed").await;
    assert_eq!(states(&database).await[1..], ["scheduled", "available", "scheduled", "pending"]);
    for id in [ids[3], ids[1]] {
        tasks.reschedule(id, Timestamp::default()).await.unwrap();
    }
    assert_eq!(states(&database).await[1..], ["pending", "available", "pending", "pending"], "they wait again");
    for (id, next) in [(3, 4), (4, 2), (2, 5)] {
        set_state(&database, id, "completed").await;
        assert_eq!(states(&database).await[next - 1], "available", "{next}");
    }
    assert_eq!(jobs.stats().healed, 0);
}

async fn jobs_that_are_retried_at_once_keep_their_order(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let count = 120; // more than one transaction
    enqueue(&jobs, "a", count).await;
    database.execute("UPDATE river_job SET state = 'discarded', finalized_at = CURRENT_TIMESTAMP").await;
    let report = tasks.bulk(BulkAction::Retry, &Filter::default(), Page::first(1000)).await.unwrap();
    assert_eq!((report.changed, report.remaining, report.after), (u64::from(count), false, None));
    for id in 1..=count {
        let states = states(&database).await;
        assert_eq!(states.iter().position(|state| state == "available"), Some(id as usize - 1));
        set_state(&database, id, "completed").await;
    }
}

async fn another_client_inserts_and_works_members(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let mut ids = Vec::new();
    for customer in 0..2 {
        ids.push(jobs.enqueue(Report { customer }).sequence("a").await.unwrap().id());
    }
    let other = OtherClient::start(&database).await;
    let metadata = r#"{"tower_offload:sequence": {"key": "a", "hold": true}}"#.parse::<JobMetadata>().unwrap();
    let inserted = other.client.insert(Report { customer: 2 }).opts(InsertOpts::default().with_metadata(metadata));
    inserted.await.unwrap();
    assert_eq!(states(&database).await[1..], ["pending", "pending"]);
    other.finish(Outcome::Complete(json!(1)));
    assert_eq!(ended(&tasks, ids[0]).await.state, TaskState::Succeeded);
    other.finish(Outcome::Cancel);
    assert_eq!(ended(&tasks, ids[1]).await.state, TaskState::Cancelled);
    other.finish(Outcome::Cancel);
    wait_for_count(&database, "SELECT count(*) - 1 FROM river_job WHERE state = 'cancelled'").await;
    let blocked = jobs.blocked_sequences().await.unwrap();
    assert_eq!((&*blocked[0].key, blocked[0].held_by), ("a", None), "it has no record");
    other.stop().await;
}

async fn invalid_keys_are_rejected(database: TestDatabase) {
    let (_tasks, jobs) = without_workers(&database).await;
    let long = "x".repeat(256);
    for key in ["", "a\0", &long] {
        let error = jobs.enqueue(step("a", 0)).sequence(key).await.unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains("key of the sequence"), "{error}");
        assert!(jobs.enqueue(step("a", 0)).at_most(1, key).await.unwrap_err().is_invalid());
    }
    assert!(jobs.enqueue(step("a", 0)).at_most(0, "a").await.unwrap_err().is_invalid());
    assert!(jobs.enqueue(step("a", 0)).hold_on_failure().await.unwrap_err().is_invalid());
    let client = builder(&database).await.build().unwrap();
    for metadata in [
        r#"{"tower_offload:sequence": ""}"#,
        r#"{"tower_offload:sequence": 7}"#,
        r#"{"tower_offload:sequence": {"key": "a", "hold": 1}}"#,
        &format!(r#"{{"tower_offload:sequence": "{long}"}}"#),
        r#"{"tower_offload:at_most": "a"}"#,
        r#"{"tower_offload:at_most": {"key": "a", "max": 1001}}"#,
        r#"{"tower_offload:at_most": {"key": "a", "max": 0}}"#,
    ] {
        let options = InsertOpts::default().with_metadata(metadata.parse::<JobMetadata>().unwrap());
        let error = client.insert(Report { customer: 7 }).opts(options).await.unwrap_err();
        assert!(format!("{error:?}").contains("job rejected"), "{metadata}: {error:?}");
    }
    assert!(states(&database).await.is_empty());
    jobs.enqueue(step("a", 0)).sequence("x".repeat(255)).at_most(1000, "\u{e9}'\"\\").await.map(drop).unwrap();
    assert_eq!(states(&database).await, ["available"]);
    assert!(!jobs.release_sequence("a\0b").await.unwrap());
}

async fn stuck_keys_are_healed_and_counted(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    enqueue(&jobs, "a", 2).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
    drop((tasks, jobs));
    // Like a program that ends a job while the triggers are disabled.
    database.execute("UPDATE tower_offload_sequence SET is_admitted = FALSE").await;
    if let TestDatabase::Postgres(_) = database {
        let end = "DO $$ BEGIN SET LOCAL session_replication_role = replica; \
                   UPDATE river_job SET state = 'completed', finalized_at = now() WHERE id = 1; END $$";
        database.execute(end).await;
    }
    let (_tasks, jobs) = without_workers(&database).await;
    let healed = async {
        while jobs.stats().healed == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(BEFORE_THE_NEXT_AUDIT, healed).await.unwrap();
    if let TestDatabase::Postgres(_) = database {
        assert_eq!(states(&database).await, ["completed", "available"]);
    }
    assert_eq!(database.number("SELECT count(*) FROM tower_offload_sequence WHERE is_admitted").await, 1);
}

async fn healed_key_still_holds_and_admitted_jobs_run(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    for number in 0..2 {
        jobs.enqueue(step("a", number)).sequence("a").hold_on_failure().await.map(drop).unwrap();
    }
    enqueue(&jobs, "b", 1).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
    drop((tasks, jobs));
    let changes = [
        "UPDATE river_job SET state = 'discarded', finalized_at = CURRENT_TIMESTAMP WHERE id = 1",
        "UPDATE river_job SET state = 'pending' WHERE id = 3",
    ];
    for change in changes {
        match database {
            TestDatabase::Sqlite(_) => {
                for trigger in ["tower_offload_left", "tower_offload_held_back"] {
                    database.execute(&format!("DROP TRIGGER IF EXISTS {trigger}")).await;
                }
                database.execute(change).await;
            }
            TestDatabase::Postgres(_) => {
                let disabled = format!("DO $$ BEGIN SET LOCAL session_replication_role = replica; {change}; END $$");
                database.execute(&disabled).await;
            }
        }
    }
    assert_eq!(states(&database).await, ["discarded", "pending", "pending"]);
    let (_tasks, jobs) = without_workers(&database).await;
    let healed = async {
        while jobs.stats().healed == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(BEFORE_THE_NEXT_AUDIT, healed).await.unwrap();
    assert_eq!(jobs.stats().healed, 2);
    assert_eq!(states(&database).await, ["discarded", "pending", "available"]);
    assert_eq!(jobs.blocked_sequences().await.unwrap().len(), 1);
}
