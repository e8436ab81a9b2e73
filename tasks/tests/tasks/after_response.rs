//! Tasks that start after the response of the request that submitted them.

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_offload::{AfterResponse, AfterResponseLayer, Background};
use tower_offload_tasks::{Reason, TaskId, TaskState, Tasks};

use super::support::{background, done, ended, in_memory, record};

type Body = Full<&'static [u8]>;

/// Calls a handler that submits a task and returns a response with this status.
async fn respond(
    tasks: &Tasks,
    background: &Background,
    status: StatusCode,
) -> (TaskId, Response<tower_offload::after_response::ResponseBody<Body>>) {
    let (send_id, ids) = std::sync::mpsc::channel();
    let handler = service_fn(move |request: Request<()>| {
        let (tasks, send_id) = (tasks.clone(), send_id.clone());
        async move {
            let after = request.extensions().get::<AfterResponse>().unwrap().clone();
            let accepted =
                tasks.track("report").spawn_blocking(&after, |_| done()).await.map_err(|error| error.to_string())?;
            send_id.send(accepted.id()).unwrap();
            let mut response = Response::new(Body::from(&b"body"[..]));
            *response.status_mut() = status;
            Ok::<_, String>(response)
        }
    });
    let service = ServiceBuilder::new().layer(AfterResponseLayer::new(background.clone())).service(handler);
    let response = service.oneshot(Request::new(())).await.unwrap();
    (ids.recv().unwrap(), response)
}

#[tokio::test]
async fn task_is_queued_until_the_response_ends() {
    let (tasks, background) = (in_memory(), background());
    let (id, response) = respond(&tasks, &background, StatusCode::ACCEPTED).await;
    assert_eq!(record(&tasks, id).await.state, TaskState::Queued);
    response.into_body().collect().await.unwrap();
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
}

#[tokio::test]
async fn failed_response_cancels_the_task() {
    let (tasks, background) = (in_memory(), background());
    let (id, response) = respond(&tasks, &background, StatusCode::INTERNAL_SERVER_ERROR).await;
    drop(response);
    let record = ended(&tasks, id).await;
    assert_eq!((record.state, record.reason), (TaskState::Cancelled, Some(Reason::ResponseFailed)));
    assert_eq!((background.stats().skipped, background.stats().reserved), (1, 0));
}

#[tokio::test]
async fn task_runs_although_the_client_leaves() {
    let (tasks, background) = (in_memory(), background());
    let (id, response) = respond(&tasks, &background, StatusCode::ACCEPTED).await;
    drop(response);
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
}

#[tokio::test]
async fn task_cancelled_before_the_response_ends_never_runs() {
    let (tasks, background) = (in_memory(), background());
    let (id, response) = respond(&tasks, &background, StatusCode::ACCEPTED).await;
    let cancelled = tasks.cancel(id).await.unwrap().into_record().unwrap();
    assert_eq!((cancelled.state, cancelled.reason), (TaskState::Cancelled, Some(Reason::Requested)));
    assert_eq!(background.stats().reserved, 0);
    response.into_body().collect().await.unwrap();
    background.shutdown(super::support::LONG).await;
    assert_eq!(record(&tasks, id).await, cancelled);
    assert_eq!(background.stats().completed, 0);
}

#[tokio::test]
async fn task_that_waits_at_shutdown_is_cancelled_as_shutdown() {
    let (tasks, background) = (in_memory(), background());
    let (id, response) = respond(&tasks, &background, StatusCode::ACCEPTED).await;
    background.shutdown(std::time::Duration::ZERO).await;
    drop(response);
    let record = ended(&tasks, id).await;
    assert_eq!((record.state, record.reason), (TaskState::Cancelled, Some(Reason::Shutdown)));
}
