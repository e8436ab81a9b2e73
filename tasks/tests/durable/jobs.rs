//! What becomes of a job.

use serde_json::json;
use tower_offload_tasks::{Reason, TaskState};

use super::support::{Act, ActAsync, LONG, Place, Stage, ended, on_each_database, record};

on_each_database! {
    a_job_is_accepted_with_its_record_done_and_its_result_kept
    a_job_that_fails_is_tried_as_often_as_it_may_and_says_why
    a_job_that_panics_has_failed
}

async fn a_job_is_accepted_with_its_record_done_and_its_result_kept(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let durable = stage.start(&tasks).await;
    let result = json!({"rows": [1, 2, 3]});
    let accepted = durable.enqueue(Act::Return(result.clone())).await.unwrap();
    assert_eq!(accepted.location(), &format!("/tasks/{}", accepted.id()));
    record(&tasks, accepted.id()).await;
    let ended = ended(&tasks, accepted.id()).await;
    assert_eq!((ended.state, ended.attempt, ended.max_attempts), (TaskState::Succeeded, 1, 3));
    assert_eq!(ended.result.unwrap().parse::<serde_json::Value>().unwrap(), result);
    assert!(ended.started_at >= Some(ended.created_at) && ended.finished_at >= ended.started_at);
    let others = durable.enqueue(ActAsync(Act::Return(json!("x")))).await.unwrap();
    assert_eq!(super::support::ended(&tasks, others.id()).await.state, TaskState::Succeeded);
    assert!(durable.drain(LONG).await.is_clean());
}

async fn a_job_that_fails_is_tried_as_often_as_it_may_and_says_why(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let durable = stage.start(&tasks).await;
    let accepted = durable.enqueue(Act::Fail).await.unwrap();
    let ended = ended(&tasks, accepted.id()).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::Failed, 3));
    let failure = ended.failure.unwrap();
    assert_eq!((&*failure.class, &*failure.message), ("out_of_paper", "there is no paper"));
    assert_eq!(failure.detail.unwrap().as_str(), "7");
    assert_eq!(stage.begun.lock().unwrap().len(), 3);
    assert_eq!(ended.reason, None::<Reason>);
    assert!(durable.drain(LONG).await.is_clean());
}

async fn a_job_that_panics_has_failed(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let durable = stage.start(&tasks).await;
    for accepted in [
        durable.enqueue(Act::Panic).max_attempts(1).await.unwrap(),
        durable.enqueue(ActAsync(Act::Panic)).max_attempts(1).await.unwrap(),
    ] {
        let failure = ended(&tasks, accepted.id()).await.failure.unwrap();
        assert_eq!((&*failure.class, &*failure.message), ("panic", "told to"));
    }
    assert!(durable.drain(LONG).await.is_clean());
}
