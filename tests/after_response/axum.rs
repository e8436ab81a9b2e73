//! The axum extractor, and the responses of its rejection and of a registration error.

use axum::{Router, body::Body, extract::Request, routing::get};
use http::{Response, StatusCode};
use tower::ServiceExt;
use tower_offload::{
    AfterResponse,
    after_response::{Outcome, RegisterError},
};

use crate::support::{after_shutdown, layer, on_no_thread, on_threads};

async fn send(app: Router) -> (Response<()>, String) {
    let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
    let (head, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    (Response::from_parts(head, ()), String::from_utf8(body.into()).unwrap())
}

#[tokio::test]
async fn missing_layer_is_a_500_without_the_remedy() {
    let app = Router::new().route("/", get(async |_: AfterResponse| "reached"));
    let (response, body) = send(app).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    // The remedy is for the developer, not for the client.
    assert!(body.contains("needs a layer") && !body.contains("AfterResponse"), "{body}");
}

#[tokio::test]
async fn optional_extractor_works_without_the_layer() {
    let handler = async |after: Option<AfterResponse>| if after.is_some() { "with" } else { "without" };
    let app = Router::new().route("/", get(handler));
    assert_eq!(send(app.clone()).await.1, "without");
    assert_eq!(send(app.layer(layer(&on_no_thread()))).await.1, "with");
}

#[tokio::test]
async fn registration_error_is_a_503_or_500() {
    let background = on_threads(1).max_tasks(1).build();
    let reservation = background.reserve("taken").unwrap();
    let register = async |after: AfterResponse| {
        after.spawn_blocking(|| ())?;
        Ok::<_, RegisterError>(StatusCode::CREATED)
    };
    let strict = async |after: AfterResponse| {
        after.task("mail").on_flushed().spawn_blocking(|| ())?;
        Ok::<_, RegisterError>(StatusCode::CREATED)
    };
    let app = |handler| Router::new().route("/", handler).layer(layer(&background));
    let (response, body) = send(app(get(register))).await;
    assert_eq!((response.status(), body.as_str()), (StatusCode::SERVICE_UNAVAILABLE, ""));
    assert_eq!(response.headers()["retry-after"], "1");
    let (response, body) = send(app(get(strict))).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(body.contains("which its connection does not report") && !body.contains("::"), "{body}");
    drop(reservation);
    assert_eq!(send(app(get(register))).await.0.status(), StatusCode::CREATED);
    assert_eq!(after_shutdown(&background).await.completed, 1);
    assert_eq!(send(app(get(register))).await.0.status(), StatusCode::SERVICE_UNAVAILABLE, "closed");
}

#[tokio::test]
async fn failed_task_does_not_change_the_response() {
    let (background, failures) = crate::support::logging(on_threads(1));
    let (tx, rx) = std::sync::mpsc::channel();
    let handler = async move |after: AfterResponse| {
        after.hook(move |outcome: &Outcome| tx.send(outcome.clone()).unwrap());
        after.task("mail").always().spawn_blocking(|| Err("no such address")).unwrap();
        (StatusCode::INTERNAL_SERVER_ERROR, [("x-request", "7")], "from the handler")
    };
    let app = Router::new().route("/", get(handler)).layer(layer(&background));
    let (response, body) = send(app).await;
    assert_eq!((response.status(), body.as_str()), (StatusCode::INTERNAL_SERVER_ERROR, "from the handler"));
    assert_eq!(after_shutdown(&background).await.failed, 1);
    assert_eq!(failures.entries(), ["background task 1 `mail` failed: no such address"]);
    let outcome = rx.recv().unwrap();
    assert_eq!((outcome.status, outcome.body_bytes), (Some(StatusCode::INTERNAL_SERVER_ERROR), 16));
    assert_eq!(outcome.headers["x-request"], "7");
    assert!(!outcome.is_success() && outcome.is_complete());
}
