//! Results of jobs.

use serde_json::json;
use tower_offload_tasks::{Reason, TaskState};

use super::support::{Act, ActAsync, LONG, TestDatabase, TestWorkers, ended, on_each_database, record};

on_each_database! {
    job_is_accepted_with_a_record_and_its_result_is_stored
    failing_job_is_retried_until_its_attempts_are_used
    panicking_job_has_failed
}

async fn job_is_accepted_with_a_record_and_its_result_is_stored(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let result = json!({"rows": [1, 2, 3]});
    let accepted = jobs.enqueue(Act::Return(result.clone())).await.unwrap();
    assert_eq!(accepted.location(), &format!("/tasks/{}", accepted.id()));
    record(&tasks, accepted.id()).await;
    let ended = ended(&tasks, accepted.id()).await;
    assert_eq!((ended.state, ended.attempt, ended.max_attempts), (TaskState::Succeeded, 1, 3));
    assert_eq!(ended.result.unwrap().parse::<serde_json::Value>().unwrap(), result);
    assert!(ended.started_at >= Some(ended.created_at) && ended.finished_at >= ended.started_at);
    let other = jobs.enqueue(ActAsync(Act::Return(json!("x")))).await.unwrap();
    assert_eq!(super::support::ended(&tasks, other.id()).await.state, TaskState::Succeeded);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn failing_job_is_retried_until_its_attempts_are_used(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let accepted = jobs.enqueue(Act::Fail).await.unwrap();
    let ended = ended(&tasks, accepted.id()).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::Failed, 3));
    let failure = ended.failure.unwrap();
    assert_eq!((&*failure.class, &*failure.message), ("out_of_paper", "there is no paper"));
    assert_eq!(failure.detail.unwrap().as_str(), "7");
    assert_eq!(workers.started.lock().unwrap().len(), 3);
    assert_eq!(ended.reason, None::<Reason>);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn panicking_job_has_failed(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    for accepted in [
        jobs.enqueue(Act::Panic).max_attempts(1).await.unwrap(),
        jobs.enqueue(ActAsync(Act::Panic)).max_attempts(1).await.unwrap(),
    ] {
        let failure = ended(&tasks, accepted.id()).await.failure.unwrap();
        assert_eq!((&*failure.class, &*failure.message), ("panic", "as requested"));
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}
