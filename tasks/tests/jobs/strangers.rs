//! Triggers and sessions of other programs that change what the database does.

use std::{convert::Infallible, error::Error};

use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use tower_offload_tasks::{
    TaskState, Tasks,
    jobs::{Job, Jobs},
};

use tower_offload_tests::eventually_within;

use super::support::{
    Act, BEFORE_THE_NEXT_AUDIT, LONG, TestDatabase, TestWorkers, ended, on_each_database, start_when_free,
};

on_each_database! {
    job_whose_record_is_discarded_is_not_accepted
    job_whose_row_is_discarded_is_not_accepted
    end_without_the_triggers_is_copied_to_the_record
    job_deleted_without_the_triggers_is_lost
    jobs_of_a_paused_queue_are_not_unserved
    number_below_every_float_is_no_result
}

/// Makes the database discard rows that are inserted into a table.
async fn discard(database: &TestDatabase, table: &str) {
    match database {
        TestDatabase::Sqlite(_) => {
            let trigger = format!("CREATE TRIGGER discard BEFORE INSERT ON {table} BEGIN SELECT RAISE(IGNORE); END");
            database.execute(&trigger).await;
        }
        TestDatabase::Postgres(_) => {
            let function = "CREATE FUNCTION discard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$";
            database.execute(function).await;
            let trigger =
                format!("CREATE TRIGGER discard BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION discard()");
            database.execute(&trigger).await;
        }
    }
}

async fn job_whose_record_is_discarded_is_not_accepted(database: TestDatabase) {
    refused_with(database, "tower_offload_task", "a trigger on it discards rows").await;
}

async fn job_whose_row_is_discarded_is_not_accepted(database: TestDatabase) {
    refused_with(database, "river_job", "").await;
}

async fn refused_with(database: TestDatabase, table: &str, text: &str) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    discard(&database, table).await;
    let error = jobs.enqueue(Act::Return(json!(1))).await.unwrap_err();
    let mut causes = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        causes += &format!(": {error}");
        cause = error.source();
    }
    assert!(causes.contains(text) && !causes.contains("runtime"), "{causes}");
    assert_eq!(database.number("SELECT count(*) FROM river_job").await, 0, "{causes}");
    assert_eq!(database.number("SELECT count(*) FROM tower_offload_task").await, 0, "{causes}");
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// A session with `session_replication_role = replica` fires no triggers.
async fn end_without_the_triggers_is_copied_to_the_record(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    let id = jobs.enqueue(Act::Return(json!(1))).delay(LONG).await.unwrap().id();
    let failed = jobs.enqueue(Act::Return(json!(1))).delay(LONG).await.unwrap().id();
    let end = "UPDATE river_job SET state = CASE id WHEN 1 THEN 'completed' ELSE 'discarded' END, attempt = 1, finalized_at = created_at, ";
    match database {
        TestDatabase::Sqlite(_) => {
            database.execute("DROP TRIGGER tower_offload_changed").await;
            database.execute(&format!("{end} metadata = jsonb('{{\"output\":7}}')")).await;
        }
        TestDatabase::Postgres(_) => {
            let end = end.replace("ELSE 'discarded' END", "ELSE 'discarded' END::river_job_state");
            let end = format!("{end} metadata = '{{\"output\": 7}}'");
            database.execute(&format!("DO $$ BEGIN SET LOCAL session_replication_role = replica; {end}; END $$")).await;
        }
    }
    let (first, jobs) = (jobs.clone(), restart(jobs, &tasks).await);
    let succeeded = tokio::time::timeout(BEFORE_THE_NEXT_AUDIT, ended(&tasks, id)).await.expect("it never ends");
    assert_eq!((succeeded.state, succeeded.attempt), (TaskState::Succeeded, 1));
    assert_eq!(succeeded.result.unwrap().as_str(), "7");
    assert_eq!(ended(&tasks, failed).await.state, TaskState::Failed);
    // The first queue may have looked at any time until it has ended. Neither counts what the
    // triggers copy.
    eventually_within(BEFORE_THE_NEXT_AUDIT, "the copies are counted", async || {
        first.stats().copied + jobs.stats().copied == 2
    })
    .await;
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn job_deleted_without_the_triggers_is_lost(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = Jobs::builder(&tasks).start().await.unwrap();
    let id = jobs.enqueue(Act::Return(json!(1))).await.unwrap().id();
    let other = jobs.enqueue(Act::Return(json!(1))).await.unwrap().id();
    let delete = "DELETE FROM river_job WHERE id = 1";
    match database {
        TestDatabase::Sqlite(_) => {
            database.execute("DROP TRIGGER tower_offload_deleted").await;
            database.execute(delete).await;
        }
        TestDatabase::Postgres(_) => {
            let delete = format!("DO $$ BEGIN SET LOCAL session_replication_role = replica; {delete}; END $$");
            database.execute(&delete).await;
        }
    }
    let (first, jobs) = (jobs.clone(), restart(jobs, &tasks).await);
    let lost = tokio::time::timeout(BEFORE_THE_NEXT_AUDIT, ended(&tasks, id)).await.expect("it never ends");
    assert_eq!(lost.state, TaskState::Lost);
    assert_eq!(ended(&tasks, other).await.state, TaskState::Succeeded);
    // Either queue may have looked, and the triggers count nothing.
    eventually_within(BEFORE_THE_NEXT_AUDIT, "the loss is counted", async || {
        first.stats().lost + jobs.stats().lost == 1
    })
    .await;
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// No process works on the jobs of either queue, and a paused queue is meant to wait.
async fn jobs_of_a_paused_queue_are_not_unserved(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = Jobs::builder(&tasks).start().await.unwrap();
    for queue in ["empty", "paused"] {
        let _accepted = jobs.enqueue(Act::Return(json!(1))).queue(queue).await.unwrap();
    }
    let (now, earlier, metadata) = match database {
        TestDatabase::Sqlite(_) => {
            let time = |change: &str| format!("strftime('%Y-%m-%d %H:%M:%f', 'now', '{change}')");
            (time("+0 seconds"), time("-2 minutes"), "jsonb('{}')")
        }
        TestDatabase::Postgres(_) => ("now()".to_owned(), "now() - interval '2 minutes'".to_owned(), "'{}'"),
    };
    let pause = format!(
        "INSERT INTO river_queue (name, metadata, created_at, updated_at, paused_at) VALUES ('paused', {metadata}, {now}, {now}, {now})"
    );
    assert_eq!(database.execute(&pause).await, 1);
    assert_eq!(database.execute(&format!("UPDATE river_job SET scheduled_at = {earlier}")).await, 2);
    let jobs = restart(jobs, &tasks).await;
    eventually_within(BEFORE_THE_NEXT_AUDIT, "the jobs are reported", async || jobs.stats().unserved > 0).await;
    assert_eq!(jobs.stats().unserved, 1);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// Starts the next queue, which looks for such jobs at once.
async fn restart(jobs: Jobs, tasks: &Tasks) -> Jobs {
    assert!(jobs.shutdown(LONG).await.is_clean());
    drop(jobs);
    start_when_free(|| TestWorkers::new().builder(tasks)).await.unwrap()
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Number {
    text: String,
}

impl Job for Number {
    const KIND: &'static str = "number";
    const MAX_ATTEMPTS: u16 = 1;
}

async fn number_below_every_float_is_no_result(database: TestDatabase) {
    let tasks = database.tasks().await;
    let work = |number: Number, _| async move { Ok::<_, Infallible>(RawValue::from_string(number.text).unwrap()) };
    let jobs = Jobs::builder(&tasks).worker(LONG, work).start().await.unwrap();
    for (text, is_stored) in [("1e-300", true), ("0e-9", true), ("1e-20000", false), ("[-1e-400]", false)] {
        let id = jobs.enqueue(Number { text: text.to_owned() }).await.unwrap().id();
        let ended = ended(&tasks, id).await;
        if is_stored {
            // Postgres writes numbers without an exponent.
            assert_eq!(ended.result.expect(text).parse::<f64>().unwrap(), text.parse::<f64>().unwrap());
        } else {
            let failure = ended.failure.expect(text);
            assert_eq!(failure.class, "result", "{failure:?}");
        }
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}
