//! Somebody asks to cancel a job.

use serde_json::json;
use tower_offload_tasks::{Reason, TaskState};

use super::support::{Act, ActAsync, LONG, Place, Stage, ended, on_each_database, record, until};

on_each_database! {
    a_job_that_waits_is_cancelled_at_once
    async_work_is_dropped
    sync_work_that_looks_is_cancelled_and_one_that_comes_to_its_end_has_succeeded
    a_request_that_another_process_wrote_is_heard
}

async fn a_job_that_waits_is_cancelled_at_once(place: Place) {
    let tasks = place.tasks().await;
    let durable = Stage::new().start(&tasks).await;
    let waiting = durable.enqueue(Act::Return(json!(1))).delay(LONG).await.unwrap();
    let cancelled = tasks.cancel(waiting.id()).await.unwrap().into_record().unwrap();
    assert_eq!((cancelled.state, cancelled.reason), (TaskState::Cancelled, Some(Reason::Requested)));
    assert_eq!(cancelled.attempt, 0);
    assert!(cancelled.cancel_requested_at.is_some());
    let again = tasks.cancel(waiting.id()).await.unwrap().into_record().unwrap();
    assert_eq!(again, cancelled, "once is as often as you like");
    assert!(durable.drain(LONG).await.is_clean());
}

async fn async_work_is_dropped(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let durable = stage.start(&tasks).await;
    let held = durable.enqueue(ActAsync(Act::Hold)).await.unwrap();
    stage.begun(1).await;
    tasks.cancel(held.id()).await.unwrap();
    let ended = ended(&tasks, held.id()).await;
    assert_eq!((ended.state, ended.reason), (TaskState::Cancelled, Some(Reason::Requested)));
    assert_eq!(ended.attempt, 1);
    assert!(durable.drain(LONG).await.is_clean());
}

async fn sync_work_that_looks_is_cancelled_and_one_that_comes_to_its_end_has_succeeded(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let durable = stage.start(&tasks).await;
    let looks = durable.enqueue(Act::UntilCancelled).await.unwrap();
    let held = durable.enqueue(Act::Hold).await.unwrap();
    stage.begun(2).await;
    tasks.cancel(looks.id()).await.unwrap();
    tasks.cancel(held.id()).await.unwrap();
    assert_eq!(ended(&tasks, looks.id()).await.state, TaskState::Cancelled);
    let running = record(&tasks, held.id()).await;
    assert_eq!(running.state, TaskState::Running, "nobody can end a closure");
    stage.release();
    assert_eq!(ended(&tasks, held.id()).await.state, TaskState::Succeeded);
    assert!(durable.drain(LONG).await.is_clean());
}

async fn a_request_that_another_process_wrote_is_heard(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let durable = stage.start(&tasks).await;
    let held = durable.enqueue(ActAsync(Act::Hold)).await.unwrap();
    stage.begun(1).await;
    place.execute("UPDATE tower_offload_task SET cancel_requested_at = 1").await;
    assert_eq!(until(&tasks, held.id(), |record| record.state.is_final()).await.state, TaskState::Cancelled);
    assert!(durable.drain(LONG).await.is_clean());
}
