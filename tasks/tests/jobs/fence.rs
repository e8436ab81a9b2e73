//! Ends that River writes late or twice, and the triggers that compare them with the claim.

use std::{convert::Infallible, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use tokio::sync::Notify;
use tower_offload_tasks::{
    TaskState,
    jobs::{Job, Jobs},
};

use tower_offload_tests::eventually;

use super::support::{A_WHILE, Act, LONG, TestDatabase, TestWorkers, ended, on_each_database, record, until};

on_each_database! {
    repeated_end_does_not_end_a_later_attempt
    late_end_does_not_end_a_later_attempt
    end_of_an_earlier_claim_is_not_written_for_followers
    followed_job_is_counted_once
    job_that_names_an_end_can_be_claimed
}

/// River repeats a batch if the connection fails before the reply to the commit.
async fn repeated_end_does_not_end_a_later_attempt(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = Jobs::builder(&tasks).start().await.unwrap();
    let id = jobs.enqueue(Act::Fail).await.unwrap().id();
    let (by, first, second, end) = match database {
        TestDatabase::Sqlite(_) => (
            "jsonb_array('other')",
            "'2026-01-01 00:00:00.000'",
            "'2026-01-01 00:00:01.000'",
            "metadata = jsonb_set(metadata, '$.\"tower_offload:end\"', jsonb('{\"claimed_at\":1767225600000000,\"delay\":0}'))",
        ),
        TestDatabase::Postgres(_) => (
            "array['other']",
            "'2026-01-01 00:00:00Z'",
            "'2026-01-01 00:00:01Z'",
            "metadata = metadata || '{\"tower_offload:end\": {\"claimed_at\": 1767225600000000, \"delay\": 0}}'",
        ),
    };
    let claim = |attempt: u32, at: &str| {
        format!("UPDATE river_job SET state = 'running', attempt = {attempt}, attempted_at = {at}, attempted_by = {by}")
    };
    let end = format!("UPDATE river_job SET state = 'available', {end} WHERE state = 'running'");
    assert_eq!(database.execute(&claim(1, first)).await, 1);
    assert_eq!(database.execute(&end).await, 1);
    assert_eq!(record(&tasks, id).await.state, TaskState::Queued);
    if let TestDatabase::Postgres(_) = database {
        let again = end.replace("'running'", "'available'");
        assert_eq!(database.execute(&again).await, 0, "it would delay the next attempt");
    }
    assert_eq!(database.execute(&claim(2, second)).await, 1);
    assert_eq!(database.execute(&end).await, 0, "the end of the first attempt");
    let running = record(&tasks, id).await;
    assert_eq!((running.state, running.attempt), (TaskState::Running, 2));
    if let TestDatabase::Postgres(_) = database {
        // The clock of River's host is wrong.
        assert_eq!(database.execute(&claim(3, first)).await, 1);
        let end = end.replace("'available'", "'completed', finalized_at = '2000-01-01'");
        assert_eq!(database.execute(&end).await, 1);
        let retained = "SELECT count(*) FROM river_job WHERE finalized_at > now() - interval '1 hour'";
        assert_eq!(database.number(retained).await, 1, "River would delete the job too soon");
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// The end of a job with followers is written at once. River writes it too, 10 ms later. In between
/// the job is retried, and claimed by the same client.
async fn late_end_does_not_end_a_later_attempt(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    let id = jobs.enqueue(Act::Hold).await.unwrap().id();
    workers.started(1).await;
    match database {
        TestDatabase::Sqlite(_) => {
            let claim = "CREATE TRIGGER claim_again AFTER UPDATE ON river_job WHEN NEW.state = 'completed' AND NEW.attempt = 1 \
                         BEGIN UPDATE river_job SET state = 'running', finalized_at = NULL, attempt = 2, \
                         attempted_at = strftime('%Y-%m-%d %H:%M:%f', attempted_at, '+1 seconds') WHERE id = NEW.id; END";
            database.execute(claim).await;
        }
        TestDatabase::Postgres(_) => {
            let claim = "CREATE FUNCTION claim_again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                         UPDATE river_job SET state = 'running', finalized_at = NULL, attempt = 2, \
                         attempted_at = attempted_at + interval '1 second' WHERE id = NEW.id; RETURN NULL; END $$";
            database.execute(claim).await;
            let trigger = "CREATE TRIGGER claim_again AFTER UPDATE ON river_job FOR EACH ROW \
                           WHEN (NEW.state = 'completed' AND NEW.attempt = 1) EXECUTE FUNCTION claim_again()";
            database.execute(trigger).await;
        }
    }
    let mut subscription = tasks.subscribe(id).await.unwrap().unwrap();
    workers.release();
    while subscription.changed().await.unwrap().is_some() {}
    tokio::time::sleep(A_WHILE).await;
    let running = "SELECT count(*) FROM river_job WHERE state = 'running' AND attempt = 2";
    assert_eq!(database.number(running).await, 1, "River's end of the first attempt was written");
    let _ = jobs.shutdown(LONG).await;
}

/// A claim that is handed back does not count, so the next one may have the same client and number.
async fn end_of_an_earlier_claim_is_not_written_for_followers(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    let id = jobs.enqueue(Act::Hold).await.unwrap().id();
    workers.started(1).await;
    let later = match database {
        TestDatabase::Sqlite(_) => "strftime('%Y-%m-%d %H:%M:%f', attempted_at, '+1 seconds')",
        TestDatabase::Postgres(_) => "attempted_at + interval '1 second'",
    };
    let _subscription = tasks.subscribe(id).await.unwrap().unwrap();
    assert_eq!(database.execute(&format!("UPDATE river_job SET attempted_at = {later}")).await, 1);
    workers.release();
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(record(&tasks, id).await.state, TaskState::Running, "the end of another claim was written");
    let _ = jobs.shutdown(LONG).await;
}

#[derive(Serialize, Deserialize)]
struct Number(String);

impl Job for Number {
    const KIND: &'static str = "number";
}

/// River could not write the second result, which has more digits than an `f64`.
async fn followed_job_is_counted_once(database: TestDatabase) {
    let tasks = database.tasks().await;
    let (end, started) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (starts, may_end) = (started.clone(), end.clone());
    let work = move |number: Number, _| {
        let (starts, may_end) = (starts.clone(), may_end.clone());
        async move {
            starts.notify_one();
            may_end.notified().await;
            Ok::<_, Infallible>(RawValue::from_string(number.0).unwrap())
        }
    };
    let jobs = Jobs::builder(&tasks).worker(LONG, work).start().await.unwrap();
    for (succeeded, number) in [(1, "1"), (2, "18446744073709551617")] {
        let id = jobs.enqueue(Number(number.to_owned())).await.unwrap().id();
        started.notified().await;
        let mut subscription = tasks.subscribe(id).await.unwrap().unwrap();
        end.notify_one();
        while subscription.changed().await.unwrap().is_some() {}
        assert_eq!(subscription.record().result.as_ref().unwrap().as_str(), number);
        eventually("the end is counted", async || jobs.stats().succeeded >= succeeded && jobs.stats().unwritten == 0)
            .await;
        assert_eq!(jobs.stats().succeeded, succeeded);
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// Another program may copy the metadata of a job.
async fn job_that_names_an_end_can_be_claimed(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    let metadata = "{\"tower_offload:end\": {\"claimed_at\": 1, \"delay\": 0}}";
    let metadata = match database {
        TestDatabase::Sqlite(_) => format!("jsonb('{metadata}')"),
        TestDatabase::Postgres(_) => format!("'{metadata}'::jsonb"),
    };
    let copy = format!(
        "INSERT INTO river_job (kind, queue, args, max_attempts, state, metadata) \
         SELECT kind, queue, args, max_attempts, 'available', {metadata} FROM river_job"
    );
    let id = jobs.enqueue(Act::Return(json!(1))).await.unwrap().id();
    ended(&tasks, id).await;
    assert_eq!(database.execute(&copy).await, 1);
    let completed = "SELECT count(*) FROM river_job WHERE state = 'completed'";
    eventually("the copy is claimed", async || database.number(completed).await >= 2).await;
    // Rows of before the trigger removed it keep the key.
    let held = jobs.enqueue(Act::Return(json!(2))).delay(LONG).await.unwrap().id();
    if let TestDatabase::Postgres(_) = database {
        for statement in [
            "ALTER TABLE river_job DISABLE TRIGGER USER",
            "UPDATE river_job SET metadata = metadata || '{\"tower_offload:end\": {\"claimed_at\": 1}}' WHERE state = 'scheduled'",
            "ALTER TABLE river_job ENABLE TRIGGER USER",
        ] {
            database.execute(statement).await;
        }
    }
    let now = match database {
        TestDatabase::Sqlite(_) => "strftime('%Y-%m-%d %H:%M:%f', 'now')",
        TestDatabase::Postgres(_) => "now()",
    };
    let due = format!("UPDATE river_job SET state = 'available', scheduled_at = {now} WHERE state = 'scheduled'");
    assert_eq!(database.execute(&due).await, 1);
    until(&tasks, held, |record| record.state == TaskState::Succeeded).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
}
