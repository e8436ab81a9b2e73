//! Jobs that the background rejects are enqueued.

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_offload::{AfterResponse, AfterResponseLayer, Background, ThreadPool};
use tower_offload_tasks::{
    Accepted, Reason, TaskId, TaskState, Tasks,
    jobs::{Jobs, OrEnqueue, Unique},
};

use super::support::{Act, LONG, TestDatabase, TestWorkers, ended, on_each_database, record};

on_each_database! {
    job_runs_here_or_is_enqueued_if_the_background_is_full
    only_enqueued_jobs_run_if_the_response_fails
    unique_and_delayed_jobs_are_always_enqueued
}

async fn count_jobs(database: &TestDatabase) -> i64 {
    database.number("SELECT count(*) FROM river_job").await
}

async fn job_runs_here_or_is_enqueued_if_the_background_is_full(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let background =
        Background::builder().pool(ThreadPool::blocking(2)).max_tasks(2).max_running(1).on_failure(|_| ()).build();
    let mut accepted = Vec::new();
    for _ in 0..2 {
        // One task is running and one is queued.
        let here = background.task("here").or_enqueue(jobs.enqueue(Act::Hold).owner("ann")).await.unwrap();
        workers.started(1).await;
        accepted.push(here.id());
    }
    assert_eq!(count_jobs(&database).await, 0, "no job is enqueued");
    let there =
        background.task("there").or_enqueue(jobs.enqueue(Act::Return(json!("there"))).owner("ann")).await.unwrap();
    assert_eq!(count_jobs(&database).await, 1);
    let done = ended(&tasks, there.id()).await;
    assert_eq!((done.name.as_str(), done.owner.as_deref(), done.state), ("act", Some("ann"), TaskState::Succeeded));
    workers.release();
    for id in accepted {
        let done = ended(&tasks, id).await;
        assert_eq!((done.name.as_str(), done.owner.as_deref(), done.state), ("act", Some("ann"), TaskState::Succeeded));
    }
    let failing = background.task("here").or_enqueue(jobs.enqueue(Act::Fail)).await.unwrap();
    let failed = ended(&tasks, failing.id()).await;
    assert_eq!((failed.state, failed.attempt), (TaskState::Failed, 1), "a task of the background has one attempt");
    assert_eq!(failed.failure.unwrap().class, "out_of_paper");

    // A closed background rejects tasks, but the queue does not.
    background.shutdown(LONG).await;
    let late = background.task("late").or_enqueue(jobs.enqueue(Act::Return(json!("late")))).await.unwrap();
    assert_eq!(ended(&tasks, late.id()).await.state, TaskState::Succeeded);
    assert_eq!(count_jobs(&database).await, 2);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn only_enqueued_jobs_run_if_the_response_fails(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    for (capacity, state, reason) in
        [(64, TaskState::Cancelled, Some(Reason::ResponseFailed)), (1, TaskState::Succeeded, None)]
    {
        let background = Background::builder().pool(ThreadPool::blocking(2)).max_tasks(capacity).max_running(1).build();
        let id = fail_after_submitting(background, jobs.clone(), &tasks, capacity == 1).await;
        let done = ended(&tasks, id).await;
        assert_eq!((done.state, done.reason), (state, reason));
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// Handles a request whose handler submits the job and then fails.
async fn fail_after_submitting(background: Background, jobs: Jobs, tasks: &Tasks, is_full: bool) -> TaskId {
    let blocker = std::sync::Arc::new(tokio::sync::Notify::new());
    if is_full {
        let blocks = |blocker: std::sync::Arc<tokio::sync::Notify>| async move { blocker.notified().await };
        background.spawn(blocks(blocker.clone())).unwrap();
        while background.spawn(blocks(blocker.clone())).is_ok() {}
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let tasks = tasks.clone();
    let handler = service_fn(move |request: http::Request<()>| {
        let (after, jobs, sender) =
            (request.extensions().get::<AfterResponse>().unwrap().clone(), jobs.clone(), sender.clone());
        let tasks = tasks.clone();
        async move {
            let accepted: Accepted =
                after.task("act").or_enqueue(jobs.enqueue(Act::Return(json!("done")))).await.unwrap();
            record(&tasks, accepted.id()).await;
            let headers =
                HeaderMap::from_iter([(HeaderName::from_static("prefer"), HeaderValue::from_static("wait=30"))]);
            let response: http::Response<bytes::Bytes> = tasks.respond(accepted.clone(), &headers).await;
            // A request does not wait for a task that starts after its response.
            assert_eq!(response.headers().contains_key("preference-applied"), is_full);
            if is_full {
                ended(&tasks, accepted.id()).await; // the job finishes before the response
            }
            sender.send(accepted.id()).unwrap();
            Err::<http::Response<http_body_util::Empty<bytes::Bytes>>, _>(std::io::Error::other("the handler fails"))
        }
    });
    let mut service = ServiceBuilder::new().layer(AfterResponseLayer::new(background)).service(handler);
    service.ready().await.unwrap().call(http::Request::new(())).await.unwrap_err();
    blocker.notify_waiters();
    receiver.recv().unwrap()
}

async fn unique_and_delayed_jobs_are_always_enqueued(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    let background = Background::builder().pool(ThreadPool::blocking(2)).build();
    let act = || jobs.enqueue(Act::Return(json!(1)));
    let _unique = background.task("x").or_enqueue(act().unique(Unique::by_content())).await.unwrap();
    let _later = background.task("x").or_enqueue(act().delay(LONG)).await.unwrap();
    assert_eq!(count_jobs(&database).await, 2);
    assert!(jobs.shutdown(LONG).await.is_clean());
}
