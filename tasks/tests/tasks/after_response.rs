//! Work that is tracked and runs after the response. The D numbers are those of its conditions.

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_offload::{AfterResponse, AfterResponseLayer, Background};
use tower_offload_tasks::{Reason, TaskId, TaskState, Tasks};

use super::support::{background, done, ended, in_memory, record};

type Body = Full<&'static [u8]>;

/// The response of a handler that tracks a task and answers so.
async fn respond(
    tasks: &Tasks,
    background: &Background,
    status: StatusCode,
) -> (TaskId, Response<tower_offload::after_response::ResponseBody<Body>>) {
    let (tell, told) = std::sync::mpsc::channel();
    let handler = service_fn(move |request: Request<()>| {
        let (tasks, tell) = (tasks.clone(), tell.clone());
        async move {
            let after = request.extensions().get::<AfterResponse>().unwrap().clone();
            let accepted = tasks.track("report").run(&after, |_| done()).await.map_err(|error| error.to_string())?;
            tell.send(accepted.id()).unwrap();
            let mut response = Response::new(Body::from(&b"body"[..]));
            *response.status_mut() = status;
            Ok::<_, String>(response)
        }
    });
    let service = ServiceBuilder::new().layer(AfterResponseLayer::new(background.clone())).service(handler);
    let response = service.oneshot(Request::new(())).await.unwrap();
    (told.recv().unwrap(), response)
}

#[tokio::test]
async fn it_is_queued_until_the_response_is_over_and_then_runs() {
    let (tasks, background) = (in_memory(), background());
    let (id, response) = respond(&tasks, &background, StatusCode::ACCEPTED).await;
    assert_eq!(record(&tasks, id).await.state, TaskState::Queued);
    response.into_body().collect().await.unwrap();
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
}

#[tokio::test]
async fn a_response_that_fails_cancels_it_and_says_so() {
    let (tasks, background) = (in_memory(), background());
    let (id, response) = respond(&tasks, &background, StatusCode::INTERNAL_SERVER_ERROR).await;
    drop(response);
    let record = ended(&tasks, id).await;
    assert_eq!((record.state, record.reason), (TaskState::Cancelled, Some(Reason::ResponseFailed)));
    assert_eq!((background.stats().skipped, background.stats().reserved), (1, 0));
}

#[tokio::test]
async fn a_client_that_leaves_does_not_cancel_it() {
    let (tasks, background) = (in_memory(), background());
    let (id, response) = respond(&tasks, &background, StatusCode::ACCEPTED).await;
    drop(response);
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
}

#[tokio::test]
async fn cancelled_before_the_response_is_over_it_never_runs() {
    let (tasks, background) = (in_memory(), background());
    let (id, response) = respond(&tasks, &background, StatusCode::ACCEPTED).await;
    let cancelled = tasks.cancel(id).await.unwrap().into_record().unwrap();
    assert_eq!((cancelled.state, cancelled.reason), (TaskState::Cancelled, Some(Reason::Requested)));
    assert_eq!(background.stats().reserved, 0);
    response.into_body().collect().await.unwrap();
    background.drain(super::support::LONG).await;
    assert_eq!(record(&tasks, id).await, cancelled);
    assert_eq!(background.stats().completed, 0);
}

#[tokio::test]
async fn one_that_waits_behind_a_drain_ends_as_shut_down() {
    let (tasks, background) = (in_memory(), background());
    let (id, response) = respond(&tasks, &background, StatusCode::ACCEPTED).await;
    background.drain(std::time::Duration::ZERO).await;
    drop(response);
    let record = ended(&tasks, id).await;
    assert_eq!((record.state, record.reason), (TaskState::Cancelled, Some(Reason::Shutdown)));
}
