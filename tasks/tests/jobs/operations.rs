//! Operations of operators: retry, discard, reschedule, many at once, lists and the summary.

use std::time::SystemTime;

use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sqlx::Connection;
use tokio::time::Instant;
use tower::ServiceExt;
use tower_offload::Background;
use tower_offload_tasks::{
    BulkAction, MemoryStore, Record, StatusService, TaskId, TaskState, Tasks, Timestamp,
    jobs::{Jobs, Unique},
    service::Access,
    store::{Filter, Page},
};
use tower_offload_tests::eventually;

use super::{
    databases::OnServer,
    support::{Act, ActAsync, LONG, SHORT, TestDatabase, TestWorkers, ended, on_each_database, record, until},
};

on_each_database! {
    failed_job_is_retried_under_its_id
    succeeded_job_is_retried_without_its_result
    cancelled_job_that_is_retried_is_not_cancelled_again
    subscriber_follows_a_retried_job_although_another_one_saw_its_end
    operations_name_the_state_that_does_not_permit_them
    job_that_equals_another_one_is_not_retried
    job_that_river_has_deleted_is_not_retried
    discarded_job_has_failed_with_this_class
    due_time_is_changed_in_both_directions
    one_of_two_retries_has_an_effect
    job_of_an_earlier_version_gets_its_queue
    retry_and_the_end_of_an_attempt_exclude_each_other
    discard_and_a_claim_exclude_each_other
    many_jobs_are_changed_at_once
    list_is_filtered_by_queue_text_and_rivers_id
    summary_counts_states_kinds_and_queues
    list_by_text_reads_a_bounded_number_of_records_and_goes_on
    operations_over_http_obey_authorization_and_read_only
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}

fn act() -> Act {
    Act::Return(json!(1))
}

async fn start(database: &TestDatabase) -> (Tasks, TestWorkers, Jobs) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    (tasks, workers, jobs)
}

/// Holds the jobs in their queue.
async fn pause(jobs: &Jobs) {
    jobs.pause_queue("default").await.unwrap();
}

async fn resume(jobs: &Jobs) {
    jobs.resume_queue("default").await.unwrap();
}

async fn failed_job_is_retried_under_its_id(database: TestDatabase) {
    let (tasks, workers, jobs) = start(&database).await;
    let id = jobs.enqueue(Act::Fail).await.unwrap().id();
    let failed = ended(&tasks, id).await;
    assert_eq!((failed.state, failed.attempt, failed.max_attempts), (TaskState::Failed, 3, 3));
    pause(&jobs).await;
    let queued = tasks.retry(id).await.unwrap();
    assert_eq!((queued.id, queued.state, queued.attempt, queued.max_attempts), (id, TaskState::Queued, 3, 4));
    assert_eq!((&queued.failure, queued.finished_at, &queued.result), (&None, None, &None));
    assert!(queued.version > failed.version);
    resume(&jobs).await;
    let again = ended(&tasks, id).await;
    assert_eq!((again.state, again.attempt), (TaskState::Failed, 4));
    assert_eq!(again.failure.unwrap().class, "out_of_paper");
    assert_eq!(workers.started.lock().unwrap().len(), 4);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn succeeded_job_is_retried_without_its_result(database: TestDatabase) {
    let (tasks, _workers, jobs) = start(&database).await;
    let id = jobs.enqueue(act()).await.unwrap().id();
    assert!(ended(&tasks, id).await.result.is_some());
    pause(&jobs).await;
    let queued = tasks.retry(id).await.unwrap();
    assert_eq!((queued.state, &queued.result, queued.max_attempts), (TaskState::Queued, &None, 3));
    assert_eq!(database.number("SELECT count(*) FROM river_job WHERE metadata -> 'output' IS NOT NULL").await, 0);
    resume(&jobs).await;
    let again = ended(&tasks, id).await;
    assert_eq!((again.state, again.attempt), (TaskState::Succeeded, 2));
    assert_eq!(again.result.unwrap().as_str(), "1");
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn cancelled_job_that_is_retried_is_not_cancelled_again(database: TestDatabase) {
    let (tasks, _workers, jobs) = start(&database).await;
    let id = jobs.enqueue(act()).delay(LONG).await.unwrap().id();
    for attempt in [1, 2] {
        tasks.cancel(id).await.unwrap();
        assert_eq!(ended(&tasks, id).await.state, TaskState::Cancelled);
        pause(&jobs).await;
        let queued = tasks.retry(id).await.unwrap();
        assert_eq!((queued.cancel_requested_at, queued.reason, queued.due_at), (None, None, None));
        if attempt == 1 {
            // It can be cancelled again at once.
            tasks.cancel(id).await.unwrap();
            assert_eq!(record(&tasks, id).await.state, TaskState::Cancelled);
            tasks.retry(id).await.unwrap();
        }
        resume(&jobs).await;
        let done = ended(&tasks, id).await;
        assert_eq!((done.state, done.attempt), (TaskState::Succeeded, attempt));
        pause(&jobs).await;
        tasks.retry(id).await.unwrap();
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn subscriber_follows_a_retried_job_although_another_one_saw_its_end(database: TestDatabase) {
    let (tasks, _workers, jobs) = start(&database).await;
    let id = jobs.enqueue(act()).await.unwrap().id();
    let mut first = tasks.subscribe(id).await.unwrap().unwrap();
    while first.changed().await.unwrap().is_some() {}
    pause(&jobs).await;
    tasks.retry(id).await.unwrap();
    let mut second = tasks.subscribe(id).await.unwrap().unwrap();
    assert_eq!(second.record().state, TaskState::Queued);
    resume(&jobs).await;
    while second.changed().await.unwrap().is_some() {}
    assert_eq!((second.record().state, second.record().attempt), (TaskState::Succeeded, 2));
    assert_eq!(first.record().attempt, 1);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn operations_name_the_state_that_does_not_permit_them(database: TestDatabase) {
    let (tasks, workers, jobs) = start(&database).await;
    let running = jobs.enqueue(Act::Hold).await.unwrap().id();
    workers.started(1).await;
    let queued = jobs.enqueue(act()).delay(LONG).await.unwrap().id();
    let done = jobs.enqueue(act()).await.unwrap().id();
    ended(&tasks, done).await;
    for id in [running, queued] {
        assert_eq!(tasks.retry(id).await.unwrap_err().state(), Some(record(&tasks, id).await.state));
    }
    for (id, state) in [(running, TaskState::Running), (done, TaskState::Succeeded)] {
        for error in [tasks.discard(id).await.unwrap_err(), tasks.reschedule(id, now()).await.unwrap_err()] {
            assert_eq!(error.state(), Some(state));
            assert!(error.to_string().contains(state.as_str()), "{error}");
        }
    }
    let unknown = TaskId::from_bytes([7; TaskId::BYTES]);
    assert!(tasks.retry(unknown).await.unwrap_err().is_unknown());
    let background = Background::default();
    let task =
        tasks.track("task").spawn_blocking(&background, |_| Ok::<_, std::convert::Infallible>(())).await.unwrap();
    ended(&tasks, task.id()).await;
    assert!(tasks.retry(task.id()).await.unwrap_err().is_not_a_job());
    workers.release();
    assert!(jobs.shutdown(LONG).await.is_clean());

    let memory = Tasks::new(MemoryStore::new());
    let task =
        memory.track("task").spawn_blocking(&background, |_| Ok::<_, std::convert::Infallible>(())).await.unwrap();
    assert!(memory.retry(task.id()).await.unwrap_err().is_no_queue());
    assert!(memory.bulk(BulkAction::Retry, &Filter::default(), Page::first(1000)).await.unwrap_err().is_no_queue());
}

async fn job_that_equals_another_one_is_not_retried(database: TestDatabase) {
    let (tasks, _workers, jobs) = start(&database).await;
    let enqueue = || jobs.enqueue(Act::Fail).unique(Unique::by_content());
    let failed = enqueue().await.unwrap().id();
    assert_eq!(ended(&tasks, failed).await.state, TaskState::Failed);
    let equal = enqueue().delay(LONG).await.unwrap().id();
    assert_ne!(failed, equal);
    assert!(tasks.retry(failed).await.unwrap_err().is_duplicate());
    // One that cannot be changed does not hold up the others.
    let other = jobs.enqueue(Act::Fail).await.unwrap().id();
    ended(&tasks, other).await;
    pause(&jobs).await;
    let report = tasks.bulk(BulkAction::Retry, &Filter::default(), Page::first(1000)).await.unwrap();
    assert_eq!((report.changed, report.remaining), (1, false));
    assert_eq!(record(&tasks, other).await.state, TaskState::Queued);
    assert_eq!(record(&tasks, failed).await.state, TaskState::Failed);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn job_that_river_has_deleted_is_not_retried(database: TestDatabase) {
    let (tasks, _workers, jobs) = start(&database).await;
    let id = jobs.enqueue(act()).await.unwrap().id();
    ended(&tasks, id).await;
    database.execute("DELETE FROM river_job").await;
    assert!(tasks.retry(id).await.unwrap_err().is_deleted());
    assert_eq!(record(&tasks, id).await.state, TaskState::Succeeded);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn discarded_job_has_failed_with_this_class(database: TestDatabase) {
    let (tasks, workers, jobs) = start(&database).await;
    let id = jobs.enqueue(act()).delay(LONG).await.unwrap().id();
    let mut subscription = tasks.subscribe(id).await.unwrap().unwrap();
    let discarded = tasks.discard(id).await.unwrap();
    assert_eq!((discarded.state, discarded.attempt, discarded.due_at), (TaskState::Failed, 0, None));
    assert!(discarded.finished_at.is_some());
    assert_eq!(discarded.failure.unwrap().class, "discarded");
    while subscription.changed().await.unwrap().is_some() {}
    assert_eq!(subscription.record().state, TaskState::Failed);
    assert_eq!(workers.started.lock().unwrap().len(), 0);
    tasks.retry(id).await.unwrap();
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn due_time_is_changed_in_both_directions(database: TestDatabase) {
    let (tasks, _workers, jobs) = start(&database).await;
    let id = jobs.enqueue(act()).delay(LONG).await.unwrap().id();
    for due_at in [now().after(LONG * 100), Timestamp::from_millis(u64::MAX)] {
        let later = tasks.reschedule(id, due_at).await.unwrap();
        assert_eq!((later.state, later.due_at), (TaskState::Queued, Some(due_at)));
    }
    pause(&jobs).await;
    let queued = tasks.reschedule(id, Timestamp::default()).await.unwrap();
    assert_eq!((queued.state, queued.due_at), (TaskState::Queued, None));
    let later = tasks.reschedule(id, now().after(LONG)).await.unwrap();
    assert!(later.due_at.is_some_and(|due_at| due_at > now()));
    tasks.reschedule(id, Timestamp::default()).await.unwrap();
    resume(&jobs).await;
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// A lock on all jobs, so that operations on them wait for each other.
enum Held {
    Sqlite(sqlx::SqliteConnection),
    Postgres(sqlx::PgConnection),
}

impl Held {
    async fn new(database: &TestDatabase) -> Self {
        match database {
            TestDatabase::Sqlite(file) => {
                let mut connection = file.connect().await;
                sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await.unwrap();
                Self::Sqlite(connection)
            }
            TestDatabase::Postgres(server) => {
                let mut connection = server.connect().await;
                sqlx::raw_sql("BEGIN; SELECT id FROM river_job FOR UPDATE").execute(&mut connection).await.unwrap();
                Self::Postgres(connection)
            }
        }
    }

    /// Waits until this number of transactions wait. On SQLite that is not visible, and no
    /// assertion depends on it.
    async fn waiting(&self, database: &TestDatabase, transactions: i64) {
        const WAITING: &str =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        match self {
            Self::Sqlite(_) => tokio::time::sleep(SHORT).await,
            Self::Postgres(_) => {
                eventually("the transactions wait", async || database.number(WAITING).await >= transactions).await;
            }
        }
    }

    async fn release(self) {
        match self {
            Self::Sqlite(mut connection) => {
                sqlx::query("COMMIT").execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            Self::Postgres(mut connection) => drop(sqlx::query("COMMIT").execute(&mut connection).await.unwrap()),
        }
    }
}

/// Operations on many jobs and the page recognize a job by its queue.
async fn job_of_an_earlier_version_gets_its_queue(database: TestDatabase) {
    let (tasks, _workers, jobs) = start(&database).await;
    let (ended_before, changes_later) =
        (jobs.enqueue(act()).await.unwrap().id(), jobs.enqueue(act()).delay(LONG).await.unwrap().id());
    ended(&tasks, ended_before).await;
    database.execute("UPDATE tower_offload_task SET queue = NULL").await;
    tasks.cancel(changes_later).await.unwrap();
    assert_eq!(ended(&tasks, changes_later).await.queue.as_deref(), Some("default"));
    assert!(jobs.shutdown(LONG).await.is_clean());
    // As if the triggers were those of the earlier version.
    match database {
        TestDatabase::Sqlite(_) => database.execute("DROP TRIGGER tower_offload_changed").await,
        TestDatabase::Postgres(_) => database.execute("DROP TRIGGER tower_offload_changed ON river_job").await,
    };
    database.execute("UPDATE tower_offload_task SET queue = NULL").await;
    let jobs = TestWorkers::new().start(&tasks).await;
    assert_eq!(record(&tasks, ended_before).await.queue.as_deref(), Some("default"));
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn one_of_two_retries_has_an_effect(database: TestDatabase) {
    let (tasks, _workers, jobs) = start(&database).await;
    let id = jobs.enqueue(act()).await.unwrap().id();
    ended(&tasks, id).await;
    pause(&jobs).await;
    let held = Held::new(&database).await;
    let retry = || {
        let tasks = tasks.clone();
        tokio::spawn(async move { tasks.retry(id).await })
    };
    let retries = [retry(), retry()];
    held.waiting(&database, 1).await; // a process changes jobs one after the other
    held.release().await;
    let mut succeeded = 0;
    for retry in retries {
        match retry.await.unwrap() {
            Ok(record) => succeeded += i32::from(record.state == TaskState::Queued),
            Err(error) => assert_eq!(error.state(), Some(TaskState::Queued), "{error}"),
        }
    }
    assert_eq!(succeeded, 1);
    resume(&jobs).await;
    assert_eq!(ended(&tasks, id).await.attempt, 2);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_does_not_run_a_job_whose_record_was_evicted() {
    let Some(server) = OnServer::fresh().await else { return };
    let mut one = server.connect().await;
    let database = TestDatabase::Postgres(server);
    let (tasks, _workers, jobs) = start(&database).await;
    let id = jobs.enqueue(act()).await.unwrap().id();
    ended(&tasks, id).await;
    pause(&jobs).await;
    // Like the sweep.
    let mut sweep = one.begin().await.unwrap();
    sqlx::query("DELETE FROM tower_offload_task").execute(&mut *sweep).await.unwrap();
    let retry = {
        let tasks = tasks.clone();
        tokio::spawn(async move { tasks.retry(id).await })
    };
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("the retry waits", async || database.number(waits).await == 1).await;
    sweep.commit().await.unwrap();
    let error = retry.await.unwrap().unwrap_err();
    assert!(error.is_unknown(), "{error}");
    assert_eq!(database.number("SELECT count(*) FROM river_job WHERE state = 'completed'").await, 1);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn retry_and_the_end_of_an_attempt_exclude_each_other(database: TestDatabase) {
    let (tasks, workers, jobs) = start(&database).await;
    let id = jobs.enqueue(Act::Hold).await.unwrap().id();
    workers.started(1).await;
    let held = Held::new(&database).await;
    let retry = {
        let tasks = tasks.clone();
        tokio::spawn(async move { tasks.retry(id).await })
    };
    held.waiting(&database, 1).await;
    workers.release(); // the end waits, too
    held.waiting(&database, 2).await;
    held.release().await;
    let attempts = match retry.await.unwrap() {
        Ok(_) => 2,
        Err(error) => {
            assert_eq!(error.state(), Some(TaskState::Running), "{error}");
            1
        }
    };
    let done = until(&tasks, id, |record| record.state.is_final() && record.attempt == attempts).await;
    assert_eq!(done.state, TaskState::Succeeded);
    assert_eq!(workers.started.lock().unwrap().len(), attempts as usize);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn discard_and_a_claim_exclude_each_other(database: TestDatabase) {
    let (tasks, workers, jobs) = start(&database).await;
    for _ in 0..5 {
        let begun = workers.started.lock().unwrap().len();
        pause(&jobs).await;
        let id = jobs.enqueue(act()).await.unwrap().id();
        let discard = tasks.discard(id);
        let (discarded, ()) = tokio::join!(discard, resume(&jobs));
        let done = ended(&tasks, id).await;
        let runs = workers.started.lock().unwrap().len() - begun;
        match discarded {
            Ok(record) => assert_eq!((record.state, done.state, runs), (TaskState::Failed, TaskState::Failed, 0)),
            Err(error) => {
                assert!(error.state().is_some(), "{error}");
                assert_eq!((done.state, runs), (TaskState::Succeeded, 1));
            }
        }
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn many_jobs_are_changed_at_once(database: TestDatabase) {
    let (tasks, workers, jobs) = start(&database).await;
    let enqueue = async |owner: &str, count| {
        let enqueues = (0..count).map(|_| async { jobs.enqueue(act()).owner(owner).delay(LONG).await.unwrap().id() });
        futures_util::future::join_all(enqueues).await
    };
    let (ann, bob) = (enqueue("ann", 250).await, enqueue("bob", 3).await);
    let bulk = async |action, filter: Filter| {
        let report = tasks.bulk(action, &filter, Page::first(1000)).await.unwrap();
        assert!(!report.remaining && report.after.is_none(), "{report:?}");
        report.changed
    };
    let states = async |ids: &[TaskId], state| {
        for id in ids {
            assert_eq!(record(&tasks, *id).await.state, state);
        }
    };
    let of_ann = || Filter::default().owner("ann");
    assert_eq!(bulk(BulkAction::Discard, of_ann().state(TaskState::Running)).await, 0);
    // A limit, and an end at a task: the two newest ones after it are discarded.
    let newest = tasks.list(&of_ann(), Page::first(6)).await.unwrap().records;
    let page = Page::first(2).after(newest[2].id);
    let report = tasks.bulk(BulkAction::Discard, &of_ann(), page).await.unwrap();
    assert_eq!((report.changed, report.remaining, report.after), (2, true, Some(newest[4].id)));
    states(&[newest[3].id, newest[4].id], TaskState::Failed).await;
    states(&[newest[2].id, newest[5].id], TaskState::Queued).await;
    assert_eq!(bulk(BulkAction::Discard, of_ann()).await, 248);
    states(&ann, TaskState::Failed).await;
    states(&bob, TaskState::Queued).await;
    pause(&jobs).await;
    assert_eq!(bulk(BulkAction::Retry, of_ann().text("DISCARDED")).await, 250);
    assert_eq!(bulk(BulkAction::Retry, of_ann()).await, 0);
    states(&ann, TaskState::Queued).await;

    let held = jobs.enqueue(ActAsync(Act::Hold)).await.unwrap().id();
    workers.started(1).await;
    assert_eq!(bulk(BulkAction::Cancel, Filter::default()).await, 254);
    states(&ann, TaskState::Cancelled).await;
    states(&bob, TaskState::Cancelled).await;
    assert_eq!(ended(&tasks, held).await.state, TaskState::Cancelled);
    assert!(record(&tasks, bob[0]).await.cancel_requested_at.is_some());
    assert_eq!(bulk(BulkAction::Cancel, Filter::default()).await, 0);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

fn ids(records: &[Record]) -> Vec<TaskId> {
    records.iter().map(|record| record.id).collect()
}

async fn list_is_filtered_by_queue_text_and_rivers_id(database: TestDatabase) {
    let (tasks, workers, jobs) = start(&database).await;
    let failed = jobs.enqueue(Act::Fail).owner("ann").await.unwrap();
    assert_eq!(failed.status().queue.as_deref(), Some("default"));
    let failed = failed.id();
    ended(&tasks, failed).await;
    let held = jobs.enqueue(ActAsync(Act::Hold)).await.unwrap().id();
    workers.started(4).await;
    until(&tasks, held, |record| record.state == TaskState::Running).await;
    let list = async |filter: Filter| ids(&tasks.list(&filter, Page::default()).await.unwrap().records);
    let filter = Filter::default;
    assert_eq!(list(filter()).await, [held, failed]);
    assert_eq!(list(filter().queue("futures")).await, [held]);
    assert_eq!(list(filter().queue("default").state(TaskState::Failed)).await, [failed]);
    assert_eq!(list(filter().name("act").state(TaskState::Failed).state(TaskState::Running)).await, [failed]);
    assert_eq!(list(filter().name("act")).await, [failed]);
    assert_eq!(list(filter().state(TaskState::Failed).state(TaskState::Running)).await, [held, failed]);
    for text in ["NO PAPER", "out_of_paper", &failed.to_string(), &failed.to_string()[..12]] {
        assert!(list(filter().text(text)).await.contains(&failed), "{text}");
    }
    for text in ["%", "_aper", "there\\", "'; DROP TABLE tower_offload_task; --", "a\0", "\u{fffd}", "../"] {
        assert_eq!(list(filter().text(text)).await, [], "{text:?}");
        assert_eq!(list(filter().queue(text)).await, [], "{text:?}");
    }
    assert_eq!(list(filter().text("x".repeat(1 << 20))).await, []);
    let river_id = database.number("SELECT river_id FROM tower_offload_task WHERE state = 1").await;
    assert_eq!(list(filter().river_id(river_id)).await, [held]);
    assert_eq!(list(filter().river_id(river_id).owner("ann")).await, []);
    assert_eq!(list(filter().river_id(i64::MAX)).await, []);
    tasks.cancel(held).await.unwrap();
    ended(&tasks, held).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn summary_counts_states_kinds_and_queues(database: TestDatabase) {
    let (tasks, _workers, jobs) = start(&database).await;
    let failed = jobs.enqueue(Act::Fail).await.unwrap().id();
    ended(&tasks, failed).await;
    let done = jobs.enqueue(ActAsync(act())).await.unwrap().id();
    ended(&tasks, done).await;
    pause(&jobs).await;
    for _ in 0..2 {
        let _queued = jobs.enqueue(act()).await.unwrap();
    }
    let _delayed = jobs.enqueue(ActAsync(act())).delay(LONG).await.unwrap();
    let summary = tasks.summary().await.unwrap();
    assert_eq!((summary.states.queued, summary.states.failed, summary.states.succeeded), (3, 1, 1));
    assert_eq!((summary.counted, summary.is_complete), (5, true));
    let [act, futures] = &summary.groups[..] else { panic!("{summary:?}") };
    assert_eq!((&*act.name, act.queue.as_deref(), act.paused), ("act", Some("default"), true));
    assert_eq!((act.states.queued, act.states.failed, act.states.succeeded), (2, 1, 0));
    assert!(act.oldest_queued_seconds.is_some_and(|seconds| (0.0..600.0).contains(&seconds)), "{summary:?}");
    assert!(act.run_seconds.is_some() && act.wait_seconds.is_none(), "it succeeded in no first attempt");
    assert_eq!((&*futures.name, futures.queue.as_deref(), futures.paused), ("act-async", Some("futures"), false));
    assert_eq!(futures.oldest_queued_seconds, None, "it is not due");
    assert!(futures.wait_seconds.is_some_and(|wait| wait.p50 <= wait.p99));
    let again = tasks.summary().await.unwrap();
    assert!(std::sync::Arc::ptr_eq(&summary, &again), "it is computed once a second");
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// Inserts finished tasks of two kinds. The oldest 3 have another name.
async fn insert_tasks(database: &TestDatabase, count: i64) {
    let (id, wide) = match database {
        TestDatabase::Sqlite(_) => ("CAST(printf('%08d%014d', number, 0) AS BLOB)", "printf('%s', number)"),
        TestDatabase::Postgres(_) => {
            ("convert_to(lpad(number::text, 8, '0') || repeat('0', 14), 'UTF8')", "number::text")
        }
    };
    let since = now().as_millis() - 1_000_000; // otherwise they are swept
    let insert = format!(
        "INSERT INTO tower_offload_task (id, epoch, name, owner, state, attempt, max_attempts, version, created_at, started_at, finished_at,
            error_class, error_message, queue)
        WITH RECURSIVE numbers(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < {count})
        SELECT {id}, 0, CASE WHEN number <= 3 THEN 'needle' WHEN number % 2 = 0 THEN 'report' ELSE 'mail' END,
            CASE WHEN number % 10 = 0 THEN 'ann' END, CASE WHEN number % 1000 = 0 THEN 11 ELSE 10 END, 1, 1, 3, {since} + number, {since} + number + 5, {since} + number + 15,
            CASE WHEN number % 1000 = 0 THEN 'io' END, CASE WHEN number % 1000 = 0 THEN 'failed at ' || {wide} END, 'default' FROM numbers"
    );
    assert_eq!(database.execute(&insert).await, u64::try_from(count).unwrap());
}

/// Returns the number of pages, and of the records in them.
async fn pages(tasks: &Tasks, filter: &Filter) -> (usize, usize) {
    let (mut page, mut pages, mut found) = (Page::first(100), 0, 0);
    loop {
        let listing = tasks.list(filter, page).await.unwrap();
        (pages, found) = (pages + 1, found + listing.records.len());
        let Some(next) = listing.next else { return (pages, found) };
        assert!(page.after.is_none_or(|after| next < after), "no page is repeated");
        page = page.after(next);
    }
}

async fn list_by_text_reads_a_bounded_number_of_records_and_goes_on(database: TestDatabase) {
    let tasks = database.tasks().await;
    tasks.start().await.unwrap();
    insert_tasks(&database, 20_010).await;
    let first = tasks.list(&Filter::default().text("needle"), Page::default()).await.unwrap();
    assert_eq!(first.records, []);
    let next = first.next.unwrap();
    assert!(tasks.get(next).await.unwrap().into_record().is_none(), "the place does not name a task");
    for filter in [Filter::default().text("NEEDLE"), Filter::default().text("needle").unowned().queue("default")] {
        assert_eq!(pages(&tasks, &filter).await, (2, 3));
    }
    assert_eq!(pages(&tasks, &Filter::default().name("needle")).await, (1, 3), "the name has an index");
    assert_eq!(pages(&tasks, &Filter::default().state(TaskState::Failed)).await, (1, 20));
    assert_eq!(pages(&tasks, &Filter::default().name("report").state(TaskState::Failed)).await, (1, 20));
    assert_eq!(pages(&tasks, &Filter::default().owner("ann").text("failed at")).await, (1, 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn lists_and_summary_of_100_000_records_on_sqlite() {
    measure(TestDatabase::Sqlite(crate::databases::OnFile::fresh())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn lists_and_summary_of_100_000_records_on_postgres() {
    let Some(server) = crate::databases::OnServer::fresh().await else { return };
    measure(TestDatabase::Postgres(server)).await;
}

async fn measure(database: TestDatabase) {
    let tasks = Tasks::builder(tower_offload_tasks::SqlStore::open(&database.url()).await.unwrap())
        .retention(tower_offload_tasks::Retention::default().max_records(1_000_000).max_age(LONG * 1_000_000))
        .build();
    tasks.start().await.unwrap();
    insert_tasks(&database, 100_000).await;
    if let TestDatabase::Postgres(_) = &database {
        database.execute("ANALYZE tower_offload_task").await;
    }
    let filter = Filter::default;
    let filters = [
        ("all", filter()),
        ("state", filter().state(TaskState::Failed)),
        ("state without tasks", filter().state(TaskState::Running)),
        ("name", filter().name("needle")),
        ("name and state", filter().name("mail").state(TaskState::Failed)),
        ("queue", filter().queue("other")),
        ("owner", filter().owner("ann")),
        ("text that is rare", filter().text("needle")),
        ("text that is frequent", filter().text("mail")),
        ("unowned", filter().unowned()),
    ];
    for (name, filter) in &filters {
        let mut times = Vec::new();
        for _ in 0..9 {
            let begun = Instant::now();
            tasks.list(filter, Page::default()).await.unwrap();
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        println!("{name}: median {:?}, maximum {:?}", times[4], times[8]);
    }
    let begun = Instant::now();
    let summary = tasks.summary().await.unwrap();
    println!("summary of {} tasks: {:?}", summary.counted, begun.elapsed());
}

async fn send(service: &StatusService, method: &str, target: &str, body: &str) -> (u16, Value) {
    let request = Request::builder().method(method).uri(target).header("content-type", "application/json");
    let response = service.clone().oneshot(request.body(body.to_owned()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap())
}

async fn operations_over_http_obey_authorization_and_read_only(database: TestDatabase) {
    let (tasks, _workers, jobs) = start(&database).await;
    let service = |access: Access| tasks.service().authorize(move |_, _| access.clone());
    let (admin, bob) = (service(Access::All), service(Access::Owner("bob".to_owned())));
    let read_only = service(Access::All).read_only();
    let id = jobs.enqueue(act()).owner("ann").delay(LONG).await.unwrap().id();
    let (retry, discard, job) = (format!("/{id}/retry"), format!("/{id}/discard"), format!("/{id}"));
    let later = r#"{"due_at":"2099-01-01T00:00:00Z"}"#;
    let bulk = |action| format!(r#"{{"action":"{action}","filter":{{"name":"act","queue":"default"}}}}"#);
    for (method, target, body) in [
        ("POST", &retry, ""),
        ("POST", &discard, ""),
        ("PATCH", &job, later),
        ("POST", &"/kinds/act/pause".to_owned(), ""),
    ] {
        assert!(matches!(send(&bob, method, target, body).await.0, 403 | 404), "{target}");
        assert_eq!(send(&read_only, method, target, body).await.0, 403, "{target}");
        assert_eq!(send(&tasks.service(), method, target, body).await.0, 403, "{target}");
    }
    assert_eq!(send(&bob, "POST", "/bulk", &bulk("discard")).await.1["changed"], 0);
    assert_eq!(record(&tasks, id).await.state, TaskState::Queued);

    assert_eq!(send(&admin, "PATCH", &job, later).await.1["due_at"], "2099-01-01T00:00:00.000Z");
    let (status, refused) = send(&admin, "POST", &retry, "").await;
    assert_eq!((status, &refused["reason"]), (409, &json!("state")));
    let (status, discarded) = send(&admin, "POST", &discard, "").await;
    assert_eq!(
        (status, &discarded["state"], &discarded["error"]["class"]),
        (200, &json!("failed"), &json!("discarded"))
    );
    assert_eq!(
        send(&admin, "POST", "/queues/default/pause", "").await,
        (200, json!({"name": "default", "paused": true}))
    );
    assert_eq!(send(&admin, "POST", "/queues/none/pause", "").await.0, 404);
    let (status, queued) = send(&admin, "POST", &retry, "").await;
    assert_eq!((status, &queued["state"], &queued["id"]), (200, &json!("queued"), &json!(id)));
    assert_eq!(send(&admin, "POST", "/bulk", &bulk("cancel")).await.1, json!({"changed": 1, "remaining": false}));
    assert_eq!(send(&admin, "POST", "/bulk", &bulk("retry")).await.1, json!({"changed": 1, "remaining": false}));
    let queues = send(&read_only, "GET", "/queues", "").await.1;
    assert!(queues["queues"].as_array().unwrap().contains(&json!({"name": "default", "paused": true})), "{queues}");
    assert!(queues["kinds"].as_array().unwrap().contains(&json!({"name": "act", "paused": false})), "{queues}");
    let summary = send(&read_only, "GET", "/summary", "").await.1;
    assert_eq!((&summary["groups"][0]["name"], &summary["groups"][0]["paused"]), (&json!("act"), &json!(true)));
    assert_eq!(send(&admin, "POST", "/queues/default/resume", "").await.1["paused"], false);
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
    let river_id = database.number("SELECT river_id FROM tower_offload_task").await;
    let found = send(&admin, "GET", &format!("/?river_id={river_id}"), "").await.1;
    assert_eq!(found["tasks"][0]["id"], json!(id));
    assert!(jobs.shutdown(LONG).await.is_clean());
}
