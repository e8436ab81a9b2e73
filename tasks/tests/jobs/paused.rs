//! Queues and kinds that are paused.

use serde_json::json;
use tower_offload_tasks::{TaskState, Timestamp, jobs::Jobs};
use tower_offload_tests::eventually;

use super::support::{
    A_WHILE, Act, ActAsync, LONG, TestDatabase, TestWorkers, ended, on_each_database, record, start_when_free,
};

on_each_database! {
    paused_queue_starts_no_jobs_until_it_is_resumed
    paused_kind_is_put_aside_and_does_not_hold_up_other_kinds
    paused_kind_does_not_use_its_limit
    paused_kind_stays_paused_after_a_restart
    job_that_was_put_aside_can_be_changed
    pause_of_another_process_is_noticed
    unknown_queues_and_invalid_kinds_are_refused
}

const ASIDE: &str = "SELECT count(*) FROM river_job WHERE queue = 'tower_offload_paused' AND attempt = 0";

fn act() -> Act {
    Act::Return(json!(1))
}

async fn paused(jobs: &Jobs) -> Vec<String> {
    let queues = jobs.queues().await.unwrap();
    queues.queues.into_iter().chain(queues.kinds).filter(|state| state.paused).map(|state| state.name).collect()
}

async fn put_aside(database: &TestDatabase, count: i64) {
    eventually("the jobs are put aside", async || database.number(ASIDE).await == count).await;
}

async fn paused_queue_starts_no_jobs_until_it_is_resumed(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    for _ in 0..2 {
        jobs.pause_queue("default").await.unwrap();
    }
    assert_eq!(paused(&jobs).await, ["default"]);
    let held = jobs.enqueue(act()).await.unwrap().id();
    let other = jobs.enqueue(ActAsync(act())).await.unwrap().id();
    assert_eq!(ended(&tasks, other).await.state, TaskState::Succeeded);
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(record(&tasks, held).await.state, TaskState::Queued);
    jobs.resume_queue("default").await.unwrap();
    assert_eq!(ended(&tasks, held).await.attempt, 1);
    assert_eq!(paused(&jobs).await, [""; 0]);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn paused_kind_is_put_aside_and_does_not_hold_up_other_kinds(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    jobs.pause_kind("act").await.unwrap();
    assert_eq!(paused(&jobs).await, ["act"]);
    let mut held = Vec::new();
    for _ in 0..50 {
        held.push(jobs.enqueue(act()).await.unwrap().id());
    }
    let other = jobs.enqueue(ActAsync(act())).queue("default").await.unwrap().id();
    assert_eq!(ended(&tasks, other).await.state, TaskState::Succeeded);
    put_aside(&database, 50).await;
    let waiting = record(&tasks, held[0]).await;
    assert_eq!((waiting.state, waiting.attempt, waiting.started_at), (TaskState::Queued, 0, None));
    assert_eq!((waiting.queue.as_deref(), waiting.failure), (Some("default"), None));
    assert_eq!(workers.started.lock().unwrap().len(), 1);
    jobs.resume_kind("act").await.unwrap();
    for id in held {
        let done = ended(&tasks, id).await;
        assert_eq!((done.state, done.attempt), (TaskState::Succeeded, 1));
    }
    assert_eq!(database.number("SELECT count(*) FROM river_job WHERE queue <> 'default'").await, 0);
    let noted = match database {
        TestDatabase::Sqlite(_) => {
            "SELECT count(*) FROM river_job WHERE metadata -> '$.\"tower_offload:queue\"' IS NOT NULL"
        }
        TestDatabase::Postgres(_) => "SELECT count(*) FROM river_job WHERE metadata ? 'tower_offload:queue'",
    };
    assert_eq!(database.number(noted).await, 0);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn paused_kind_does_not_use_its_limit(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    jobs.pause_kind("act").await.unwrap();
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(jobs.enqueue(act()).at_most(1, "api").await.unwrap().id());
    }
    held.push(jobs.enqueue(act()).sequence("a").at_most(1, "api").await.unwrap().id());
    let behind = jobs.enqueue(ActAsync(act())).sequence("a").await.unwrap().id();
    put_aside(&database, 3).await;
    let other = jobs.enqueue(ActAsync(act())).at_most(1, "api").await.unwrap().id();
    assert_eq!(ended(&tasks, other).await.state, TaskState::Succeeded);
    assert_eq!(record(&tasks, behind).await.state, TaskState::Queued);

    let postponed = held[1];
    tasks.reschedule(postponed, Timestamp::from_millis(u64::MAX)).await.unwrap();
    let pending = "SELECT count(*) FROM river_job WHERE state = 'pending' AND queue = 'tower_offload_paused'";
    assert_eq!(database.number(pending).await, 2);
    assert_eq!(tasks.discard(held[0]).await.unwrap().state, TaskState::Failed);
    tasks.retry(held[0]).await.unwrap();
    assert_eq!(database.number(pending).await, 2, "its kind is still paused");

    jobs.resume_kind("act").await.unwrap();
    for id in [held[0], held[2], behind] {
        let done = ended(&tasks, id).await;
        assert_eq!((done.state, done.attempt), (TaskState::Succeeded, 1));
    }
    assert_eq!(record(&tasks, postponed).await.state, TaskState::Queued);
    tasks.reschedule(postponed, Timestamp::default()).await.unwrap();
    assert_eq!(ended(&tasks, postponed).await.state, TaskState::Succeeded);
    assert_eq!(database.number("SELECT count(*) FROM tower_offload_sequence").await, 0);
    assert_eq!(jobs.stats().healed, 0);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn paused_kind_stays_paused_after_a_restart(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    jobs.pause_kind("act").await.unwrap();
    assert!(jobs.shutdown(LONG).await.is_clean());
    drop(jobs);
    let jobs = start_when_free(|| workers.builder(&tasks)).await.unwrap();
    let id = jobs.enqueue(act()).await.unwrap().id();
    put_aside(&database, 1).await;
    assert_eq!(workers.started.lock().unwrap().len(), 0);
    jobs.resume_kind("act").await.unwrap();
    assert_eq!(ended(&tasks, id).await.attempt, 1);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn job_that_was_put_aside_can_be_changed(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    jobs.pause_kind("act").await.unwrap();
    let (cancelled, discarded) = (jobs.enqueue(act()).await.unwrap().id(), jobs.enqueue(act()).await.unwrap().id());
    put_aside(&database, 2).await;
    tasks.cancel(cancelled).await.unwrap();
    assert_eq!(tasks.discard(discarded).await.unwrap().state, TaskState::Failed);
    assert_eq!(ended(&tasks, cancelled).await.state, TaskState::Cancelled);
    jobs.resume_kind("act").await.unwrap();
    for id in [cancelled, discarded] {
        tasks.retry(id).await.unwrap();
        assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn pause_of_another_process_is_noticed(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    database.execute("INSERT INTO tower_offload_paused_kind (kind, paused_at) VALUES ('act', 1)").await;
    eventually("the pause is noticed", async || {
        let _accepted = jobs.enqueue(act()).await.unwrap();
        tokio::time::sleep(A_WHILE).await;
        database.number(ASIDE).await > 0
    })
    .await;
    database.execute("DELETE FROM tower_offload_paused_kind").await;
    let unfinished = "SELECT count(*) FROM tower_offload_task WHERE state < 10";
    eventually("the jobs are moved back and run", async || database.number(unfinished).await == 0).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn unknown_queues_and_invalid_kinds_are_refused(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    for name in
        ["*", "", "no-such-queue", "a\0", "'; DROP TABLE river_job; --", "%", "../default", &"x".repeat(1 << 20)]
    {
        assert!(jobs.pause_queue(name).await.unwrap_err().is_unknown(), "{name:.20}");
        assert!(jobs.resume_queue(name).await.unwrap_err().is_unknown(), "{name:.20}");
    }
    for kind in ["*", "", "a", "a\0", "a'; DROP TABLE river_job; --", "%", "../act", &"x".repeat(1 << 20)] {
        assert!(jobs.pause_kind(kind).await.unwrap_err().is_unknown(), "{kind:.20}");
    }
    const PAUSE: &str = "
INSERT INTO tower_offload_paused_kind (kind, paused_at)
WITH RECURSIVE numbers(number) AS (SELECT 0 UNION ALL SELECT number + 1 FROM numbers WHERE number < 999)
SELECT 'kind-' || CAST(number AS text), 1 FROM numbers";
    assert_eq!(database.execute(PAUSE).await, 1000);
    assert!(jobs.pause_kind("one-more").await.unwrap_err().is_invalid());
    jobs.pause_kind("kind-0").await.unwrap();
    jobs.resume_kind("one-more").await.unwrap();
    assert!(jobs.shutdown(LONG).await.is_clean());
}
