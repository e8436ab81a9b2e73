//! Several processes on one Postgres: what becomes of the jobs of one that is given up, and of what it says then. Real processes, killed
//! and stopped, are in the crash tests.

use std::time::Duration;

use serde_json::json;
use tower_offload_tasks::{SqlStore, TaskState, Tasks, jobs::Durable};

use super::{
    databases::OnServer,
    support::{Act, ActAsync, LONG, Place, SHORT, Stage, ended, on_each_database, record, until},
};

on_each_database! {
    a_job_that_was_running_when_its_process_died_begins_again_at_once_and_the_attempt_counts
    one_whose_process_dies_each_time_ends_at_its_limit
    one_that_was_to_be_cancelled_when_its_process_died_is_cancelled
    a_claim_whose_answer_was_lost_is_taken_back
}

/// As it stands in the database when the process that ran it was killed.
const RUNNING_ELSEWHERE: &str = "UPDATE river_job SET state = 'running', attempt = attempt + 1, ";

async fn killed(place: &Place, tasks: &Tasks, durable: Durable) -> Tasks {
    assert!(durable.drain(LONG).await.is_clean());
    drop(durable);
    let by = match place {
        Place::File(_) => "jsonb_array('to-gone')",
        Place::Server(_) => "array['to-gone']",
    };
    let now = match place {
        Place::File(_) => "strftime('%Y-%m-%d %H:%M:%f', 'now')",
        Place::Server(_) => "now()",
    };
    let statement = format!("{RUNNING_ELSEWHERE} attempted_by = {by}, attempted_at = {now} WHERE state = 'available'");
    place.execute(&statement).await;
    tasks.clone()
}

/// P14
async fn a_job_that_was_running_when_its_process_died_begins_again_at_once_and_the_attempt_counts(place: Place) {
    let tasks = place.tasks().await;
    let enqueuer = Durable::builder(&tasks).start().await.unwrap();
    let job = enqueuer.enqueue(Act::Return(json!(1))).await.unwrap();
    let tasks = killed(&place, &tasks, enqueuer).await;
    assert_eq!(record(&tasks, job.id()).await.state, TaskState::Running, "the trigger tells");
    let durable = started(&Stage::new(), &tasks).await;
    let ended = ended(&tasks, job.id()).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 2));
    assert!(durable.drain(LONG).await.is_clean());
}

/// P15
async fn one_whose_process_dies_each_time_ends_at_its_limit(place: Place) {
    let tasks = place.tasks().await;
    let mut durable = Durable::builder(&tasks).start().await.unwrap();
    let job = durable.enqueue(Act::Return(json!(1))).max_attempts(2).await.unwrap();
    for attempt in 1..=2 {
        let tasks = killed(&place, &tasks, durable).await;
        let running = record(&tasks, job.id()).await;
        assert_eq!((running.state, running.attempt), (TaskState::Running, attempt));
        durable = loop {
            match Durable::builder(&tasks).start().await {
                Ok(durable) => break durable,
                Err(error) => assert!(error.is_invalid(), "{error:?}"),
            }
            tokio::time::sleep(SHORT).await;
        };
        let state = if attempt == 1 { TaskState::Queued } else { TaskState::Failed };
        until(&tasks, job.id(), |record| record.state == state).await;
    }
    let failed = record(&tasks, job.id()).await;
    assert_eq!((failed.attempt, failed.failure.unwrap().class.as_str()), (2, "process_lost"));
    assert_eq!(place.number("SELECT count(*) FROM river_job WHERE state = 'discarded'").await, 1);
    assert!(durable.drain(LONG).await.is_clean());
}

async fn one_that_was_to_be_cancelled_when_its_process_died_is_cancelled(place: Place) {
    let tasks = place.tasks().await;
    let enqueuer = Durable::builder(&tasks).start().await.unwrap();
    let job = enqueuer.enqueue(Act::Return(json!(1))).await.unwrap();
    let asked = match place {
        Place::File(_) => "UPDATE river_job SET metadata = jsonb_set(metadata, '$.cancel_attempted_at', 'now')",
        Place::Server(_) => "UPDATE river_job SET metadata = metadata || '{\"cancel_attempted_at\": \"now\"}'",
    };
    place.execute(asked).await;
    let tasks = killed(&place, &tasks, enqueuer).await;
    let stage = Stage::new();
    let durable = started(&stage, &tasks).await;
    assert_eq!(ended(&tasks, job.id()).await.state, TaskState::Cancelled);
    assert!(stage.begun.lock().unwrap().is_empty());
    assert!(durable.drain(LONG).await.is_clean());
}

/// The one before is gone soon after its last handle.
async fn started(stage: &Stage, tasks: &Tasks) -> Durable {
    loop {
        match stage.builder(tasks).start().await {
            Ok(durable) => return durable,
            Err(error) => assert!(error.is_invalid(), "{error:?}"),
        }
        tokio::time::sleep(SHORT).await;
    }
}

/// A process that stood still: its lease is taken away, and its work goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_given_up_is_not_heard_and_goes_on_as_another() {
    let Some(server) = OnServer::fresh().await else { return };
    let place = Place::Server(server);
    let store = SqlStore::open_with_lease(&place.url(), Duration::from_millis(900)).await.unwrap();
    let (tasks, stage) = (Tasks::new(store), Stage::new());
    let durable = stage.start(&tasks).await;
    let held = durable.enqueue(Act::Hold).await.unwrap();
    let dropped = durable.enqueue(ActAsync(Act::Hold)).await.unwrap();
    stage.begun(2).await;
    let client = "SELECT count(*) FROM tower_offload_client";
    assert_eq!(place.number(client).await, 1);
    place.execute("DELETE FROM tower_offload_client").await;
    let before = record(&tasks, held.id()).await.attempt;
    // Async work begins again by another client of this process; of the sync job there is still the first copy, so no second one.
    stage.begun(3).await;
    let of_held = |stage: &Stage| stage.begun.lock().unwrap().iter().filter(|id| **id == held.id()).count();
    assert_eq!((before, of_held(&stage)), (1, 1));
    assert_eq!(place.number(client).await, 1, "another one");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(of_held(&stage), 1, "never two at once");
    stage.release();
    let ended = until(&tasks, held.id(), |record| record.state.is_final()).await;
    assert_eq!(ended.state, TaskState::Succeeded);
    assert_eq!(of_held(&stage), 2, "what the first one said was not heard");
    tasks.cancel(dropped.id()).await.unwrap();
    super::support::ended(&tasks, dropped.id()).await;
    assert!(durable.drain(LONG).await.is_clean());
    assert_eq!(place.number(client).await, 0, "it leaves nothing");
}

/// The fence: a late word of a process that others have replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_completion_changes_nothing_once_another_works_on_the_job() {
    let Some(server) = OnServer::fresh().await else { return };
    let place = Place::Server(server);
    let (tasks, stage) = (place.tasks().await, Stage::new());
    let durable = stage.start(&tasks).await;
    let held = durable.enqueue(Act::Hold).await.unwrap();
    stage.begun(1).await;
    let late = |client: &str, state: &str| {
        format!(
            "WITH client AS (SELECT set_config('tower_offload.client', '{client}', false)) \
             UPDATE river_job SET state = '{state}', finalized_at = now() FROM client WHERE set_config IS NOT NULL"
        )
    };
    assert_eq!(place.execute(&late("to-late", "completed")).await, 0);
    assert_eq!(record(&tasks, held.id()).await.state, TaskState::Running);
    place.execute("UPDATE river_job SET attempted_by = array['elsewhere']").await;
    assert_eq!(place.execute(&late("to-late", "completed")).await, 0, "nor if it is a client of another kind");
    let back = "UPDATE river_job SET attempted_by = array[(SELECT id FROM tower_offload_client)]";
    place.execute(back).await;
    let touch = "UPDATE river_job SET metadata = metadata || '{\"cancel_attempted_at\": \"now\"}'";
    assert_eq!(place.execute(touch).await, 1, "anybody may ask to cancel");
    stage.release();
    assert_eq!(ended(&tasks, held.id()).await.state, TaskState::Succeeded);
    assert!(durable.drain(LONG).await.is_clean());
}

/// River has claimed a job for this process, and the connection broke before it knew.
async fn a_claim_whose_answer_was_lost_is_taken_back(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let durable = stage.start(&tasks).await;
    let held = durable.enqueue(Act::Hold).await.unwrap();
    stage.begun(1).await;
    let lost = durable.enqueue(Act::Return(json!(1))).delay(LONG).await.unwrap();
    let claim = "UPDATE river_job SET state = 'running', attempt = 1, attempted_at = created_at, attempted_by = \
                 (SELECT attempted_by FROM river_job WHERE state = 'running') WHERE state = 'scheduled'";
    assert_eq!(place.execute(claim).await, 1);
    assert_eq!(record(&tasks, lost.id()).await.state, TaskState::Running);
    let done = ended(&tasks, lost.id()).await;
    assert_eq!((done.state, done.attempt), (TaskState::Succeeded, 2));
    assert_eq!(record(&tasks, held.id()).await.attempt, 1, "what is worked is let alone");
    stage.release();
    ended(&tasks, held.id()).await;
    assert_eq!(stage.begun.lock().unwrap().len(), 2);
    assert!(durable.drain(LONG).await.is_clean());
}

#[tokio::test]
async fn nobody_else_can_use_the_triggers_or_put_a_table_before_ours() {
    let Some(server) = OnServer::fresh().await else { return };
    let place = Place::Server(server);
    let durable = Stage::new().start(&place.tasks().await).await;
    let safe = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'tower_offload_%' AND array_to_string(proconfig, ',') LIKE '%, pg_temp' \
                AND NOT has_function_privilege('public', oid, 'execute')";
    assert_eq!(place.number(safe).await, 3);
    assert!(durable.drain(LONG).await.is_clean());
}
