//! What the background has no place for goes to the queue.

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_offload::{AfterResponse, AfterResponseLayer, Background, ThreadPool};
use tower_offload_tasks::{
    Accepted, Reason, TaskId, TaskState,
    jobs::{OrEnqueue, Unique},
};

use super::support::{Act, LONG, Place, Stage, ended, on_each_database, record};

on_each_database! {
    a_job_is_done_here_while_there_is_a_place_and_enqueued_when_there_is_none
    what_is_enqueued_runs_though_the_response_fails_and_what_is_done_here_does_not
    what_should_be_unique_or_has_no_worker_here_is_always_enqueued
}

async fn jobs(place: &Place) -> i64 {
    place.number("SELECT count(*) FROM river_job").await
}

async fn a_job_is_done_here_while_there_is_a_place_and_enqueued_when_there_is_none(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let durable = stage.start(&tasks).await;
    let background =
        Background::builder().pool(ThreadPool::blocking(2)).max_tasks(2).max_running(1).on_failure(|_| ()).build();
    let mut accepted = Vec::new();
    for _ in 0..2 {
        // One runs and one waits, or both have gone to the same two places.
        let here = background.task("here").or_enqueue(durable.enqueue(Act::Hold).owner("ann")).await.unwrap();
        stage.begun(1).await;
        accepted.push(here.id());
    }
    assert_eq!(jobs(&place).await, 0, "none of it is in the queue");
    let there =
        background.task("there").or_enqueue(durable.enqueue(Act::Return(json!("there"))).owner("ann")).await.unwrap();
    assert_eq!(jobs(&place).await, 1);
    let done = ended(&tasks, there.id()).await;
    assert_eq!((done.name.as_str(), done.owner.as_deref(), done.state), ("act", Some("ann"), TaskState::Succeeded));
    stage.release();
    for id in accepted {
        let done = ended(&tasks, id).await;
        assert_eq!((done.name.as_str(), done.owner.as_deref(), done.state), ("act", Some("ann"), TaskState::Succeeded));
    }
    let failing = background.task("here").or_enqueue(durable.enqueue(Act::Fail)).await.unwrap();
    let failed = ended(&tasks, failing.id()).await;
    assert_eq!((failed.state, failed.attempt), (TaskState::Failed, 1), "here a task has one attempt");
    assert_eq!(failed.failure.unwrap().class, "out_of_paper");

    // A process that ends takes no more tasks, but the queue does.
    background.shutdown(LONG).await;
    let late = background.task("late").or_enqueue(durable.enqueue(Act::Return(json!("late")))).await.unwrap();
    assert_eq!(ended(&tasks, late.id()).await.state, TaskState::Succeeded);
    assert_eq!(jobs(&place).await, 2);
    assert!(durable.drain(LONG).await.is_clean());
}

async fn what_is_enqueued_runs_though_the_response_fails_and_what_is_done_here_does_not(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let durable = stage.start(&tasks).await;
    for (capacity, state, reason) in
        [(64, TaskState::Cancelled, Some(Reason::ResponseFailed)), (1, TaskState::Succeeded, None)]
    {
        let background = Background::builder().pool(ThreadPool::blocking(2)).max_tasks(capacity).max_running(1).build();
        let of_handler = durable.clone();
        let id = fail_after_registering(background, of_handler, &tasks, capacity == 1).await;
        let done = ended(&tasks, id).await;
        assert_eq!((done.state, done.reason), (state, reason));
    }
    assert!(durable.drain(LONG).await.is_clean());
}

/// A request whose handler registers the job and then fails.
async fn fail_after_registering(
    background: Background,
    durable: tower_offload_tasks::jobs::Durable,
    tasks: &tower_offload_tasks::Tasks,
    is_full: bool,
) -> TaskId {
    let blocker = std::sync::Arc::new(tokio::sync::Notify::new());
    if is_full {
        let blocks = |blocker: std::sync::Arc<tokio::sync::Notify>| async move { blocker.notified().await };
        background.spawn(blocks(blocker.clone())).unwrap();
        while background.spawn(blocks(blocker.clone())).is_ok() {}
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let tasks = tasks.clone();
    let handler = service_fn(move |request: http::Request<()>| {
        let (after, durable, sender) =
            (request.extensions().get::<AfterResponse>().unwrap().clone(), durable.clone(), sender.clone());
        let tasks = tasks.clone();
        async move {
            let accepted: Accepted =
                after.task("act").or_enqueue(durable.enqueue(Act::Return(json!("done")))).await.unwrap();
            record(&tasks, accepted.id()).await;
            let patient =
                HeaderMap::from_iter([(HeaderName::from_static("prefer"), HeaderValue::from_static("wait=30"))]);
            let response: http::Response<bytes::Bytes> = tasks.respond(accepted.clone(), &patient).await;
            // What begins after this response cannot be waited for, what is in the queue can.
            assert_eq!(response.headers().contains_key("preference-applied"), is_full);
            if is_full {
                ended(&tasks, accepted.id()).await; // before there is a response
            }
            sender.send(accepted.id()).unwrap();
            Err::<http::Response<http_body_util::Empty<bytes::Bytes>>, _>(std::io::Error::other("it fails"))
        }
    });
    let mut service = ServiceBuilder::new().layer(AfterResponseLayer::new(background)).service(handler);
    service.ready().await.unwrap().call(http::Request::new(())).await.unwrap_err();
    blocker.notify_waiters();
    receiver.recv().unwrap()
}

async fn what_should_be_unique_or_has_no_worker_here_is_always_enqueued(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let durable = stage.start(&tasks).await;
    let background = Background::builder().pool(ThreadPool::blocking(2)).build();
    let act = || durable.enqueue(Act::Return(json!(1)));
    let _unique = background.task("x").or_enqueue(act().unique(Unique::by_content())).await.unwrap();
    let _later = background.task("x").or_enqueue(act().delay(LONG)).await.unwrap();
    assert_eq!(jobs(&place).await, 2);
    assert!(durable.drain(LONG).await.is_clean());
}
