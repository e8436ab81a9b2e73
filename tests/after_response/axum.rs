//! The extractor, and what it and a refusal answer.

use axum::{Router, body::Body, extract::Request, routing::get};
use http::{Response, StatusCode};
use tower::ServiceExt;
use tower_offload::{
    AfterResponse,
    after_response::{Outcome, Rejected},
};

use crate::support::{drained, layer, on_no_thread, on_threads};

async fn answer(app: Router) -> (Response<()>, String) {
    let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
    let (head, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    (Response::from_parts(head, ()), String::from_utf8(body.into()).unwrap())
}

#[tokio::test]
async fn without_the_layer_the_answer_names_it() {
    let app = Router::new().route("/", get(async |_: AfterResponse| "reached"));
    let (response, body) = answer(app).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(body.contains("AfterResponseLayer"), "{body}");
}

#[tokio::test]
async fn a_handler_may_do_without_the_layer() {
    let handler = async |after: Option<AfterResponse>| if after.is_some() { "with" } else { "without" };
    let app = Router::new().route("/", get(handler));
    assert_eq!(answer(app.clone()).await.1, "without");
    assert_eq!(answer(app.layer(layer(&on_no_thread()))).await.1, "with");
}

#[tokio::test]
async fn a_refusal_is_the_handlers_error() {
    let background = on_threads(1).queue_capacity(1).build();
    let place = background.reserve("taken").unwrap();
    let register = async |after: AfterResponse| {
        after.run(|| ())?;
        Ok::<_, Rejected>(StatusCode::CREATED)
    };
    let strict = async |after: AfterResponse| {
        after.task("mail").on_flushed().run(|| ())?;
        Ok::<_, Rejected>(StatusCode::CREATED)
    };
    let app = |handler| Router::new().route("/", handler).layer(layer(&background));
    let (response, body) = answer(app(get(register))).await;
    assert_eq!((response.status(), body.as_str()), (StatusCode::SERVICE_UNAVAILABLE, ""));
    assert_eq!(response.headers()["retry-after"], "1");
    let (response, body) = answer(app(get(strict))).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(body.contains("not tracked"), "{body}");
    drop(place);
    assert_eq!(answer(app(get(register))).await.0.status(), StatusCode::CREATED);
    assert_eq!(drained(&background).await.completed, 1);
    assert_eq!(answer(app(get(register))).await.0.status(), StatusCode::SERVICE_UNAVAILABLE, "closed");
}

/// D9: whatever becomes of a task, the answer is what the handler said.
#[tokio::test]
async fn the_answer_stays_though_the_task_fails_d9_b1_b2() {
    let (background, failures) = crate::support::logging(on_threads(1));
    let (tell, told) = std::sync::mpsc::channel();
    let handler = async move |after: AfterResponse| {
        after.hook(move |outcome: &Outcome| tell.send(outcome.clone()).unwrap());
        after.task("mail").always().run(|| Err("no such address")).unwrap();
        (StatusCode::INTERNAL_SERVER_ERROR, [("x-request", "7")], "the handler's own")
    };
    let app = Router::new().route("/", get(handler)).layer(layer(&background));
    let (response, body) = answer(app).await;
    assert_eq!((response.status(), body.as_str()), (StatusCode::INTERNAL_SERVER_ERROR, "the handler's own"));
    assert_eq!(drained(&background).await.failed, 1);
    assert_eq!(failures.entries(), ["background task 1 `mail` failed: no such address"]);
    let outcome = told.recv().unwrap();
    assert_eq!((outcome.status, outcome.body_bytes), (Some(StatusCode::INTERNAL_SERVER_ERROR), 17));
    assert_eq!(outcome.headers["x-request"], "7");
    assert!(!outcome.is_success() && outcome.is_complete());
}
