//! Acceptance of tasks: the response, and the record that is stored by then.

use bytes::Bytes;
use http::{StatusCode, header};
use tower_offload::{Background, ThreadPool};
use tower_offload_tasks::{MemoryStore, Status, TaskState, TaskStore, Tasks, store::Found};

use super::support::{background, done, ended, hold, in_memory};

#[tokio::test]
async fn accepted_task_responds_with_202_and_its_location() {
    let (tasks, background) = (Tasks::builder(MemoryStore::new()).base_path("/api/tasks/").build(), background());
    let accepted = tasks.track("report").owner("Ann").spawn_blocking(&background, |_| done()).await.unwrap();
    let id = accepted.id();
    assert_eq!(accepted.location().to_str().unwrap(), format!("/api/tasks/{id}"));

    let response = accepted.into_response::<Bytes>();
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    let header = |name| response.headers()[name].to_str().unwrap();
    assert_eq!(header(header::LOCATION), format!("/api/tasks/{id}"));
    assert_eq!(header(header::RETRY_AFTER), "1");
    assert_eq!(header(header::CACHE_CONTROL), "no-store");
    assert_eq!(header(header::CONTENT_TYPE), "application/json");
    let status: Status = serde_json::from_slice(response.body()).unwrap();
    assert_eq!((status.id, status.state, &*status.name), (id, TaskState::Queued, "report"));
    assert!(!std::str::from_utf8(response.body()).unwrap().contains("Ann"), "the owner is not disclosed");

    let record = ended(&tasks, id).await;
    assert_eq!(Status::from(&record).retry_after(), None);
    let finished = tasks.accepted(id).await.unwrap().unwrap();
    assert!(
        !finished.into_response::<Bytes>().headers().contains_key(header::RETRY_AFTER),
        "a finished task has no Retry-After"
    );
}

#[tokio::test]
async fn record_is_stored_before_the_task_is_accepted() {
    let store = MemoryStore::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let held = hold(&tasks, &background).await;
    assert!(matches!(store.get(held.id).await.unwrap(), Found::Record(_)));
}

#[tokio::test]
async fn unknown_id_and_id_of_another_name_are_not_found() {
    let (tasks, background) = (in_memory(), background());
    let unknown = "00000000000000000000000000000000000z".parse().unwrap();
    assert_eq!(tasks.get(unknown).await.unwrap(), Found::Unknown);
    assert_eq!(tasks.cancel(unknown).await.unwrap(), Found::Unknown);
    assert!(tasks.subscribe(unknown).await.unwrap().is_none());
    assert!(tasks.accepted(unknown).await.unwrap().is_none());

    let held = hold(&tasks, &background).await;
    assert_eq!(tasks.get_named("report", held.id).await.unwrap(), Found::Unknown);
    assert!(matches!(tasks.get_named("held", held.id).await.unwrap(), Found::Record(_)));
}

#[tokio::test]
async fn full_or_closed_background_is_503_and_stores_nothing() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let background = Background::builder().pool(pool).max_tasks(1).build();
    let tasks = in_memory();
    let held = hold(&tasks, &background).await;
    let full = tasks.track("one too many").spawn_blocking(&background, |_| done()).await.unwrap_err();
    assert!(full.is_full() && !full.is_closed());
    let response = full.into_response::<Bytes>();
    assert_eq!(
        (response.status(), &response.headers()[header::RETRY_AFTER]),
        (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
    );
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    let problem: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!((&problem["status"], &problem["reason"]), (&503.into(), &"full".into()));

    background.close();
    held.release();
    let closed = tasks.track("too late").spawn_blocking(&background, |_| done()).await.unwrap_err();
    assert!(closed.is_closed() && !closed.is_full());
    let all = tasks.list(&Default::default(), Default::default()).await.unwrap();
    assert_eq!(all.records.len(), 1);
}

#[tokio::test]
async fn invalid_name_or_owner_is_rejected_with_500() {
    let (tasks, background) = (in_memory(), background());
    for name in ["", "a\0b", "a\nb", &"x".repeat(201)] {
        let error = tasks.track(name.to_owned()).spawn_blocking(&background, |_| done()).await.unwrap_err();
        assert!(error.is_invalid(), "{name:?}");
        let response = error.into_response::<Bytes>();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = String::from_utf8_lossy(response.body()).into_owned();
        assert!(body.contains("invalid option: name") && body.contains("\"reason\":\"invalid\""), "{body}");
        assert!(!body.contains("xx"), "the value is for the developer: {body}");
    }
    for owner in ["", "a\0b", &"x".repeat(501)] {
        assert!(
            tasks.track("x").owner(owner).spawn_blocking(&background, |_| done()).await.unwrap_err().is_invalid(),
            "{owner:?}"
        );
    }
    assert_eq!(background.stats().reserved, 0);
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn axum_handler_returns_accepted_and_its_error() {
    use axum::{Router, extract::State, routing::post};
    use tower::ServiceExt;
    use tower_offload_tasks::{AcceptError, Accepted};

    async fn report(State((tasks, background)): State<(Tasks, Background)>) -> Result<Accepted, AcceptError> {
        tasks.track("report").spawn(&background, |_| async { done() }).await
    }

    let (tasks, background) = (in_memory(), background());
    let app = Router::new().route("/reports", post(report)).with_state((tasks.clone(), background.clone()));
    let request = || http::Request::post("/reports").body(axum::body::Body::empty()).unwrap();
    let response = app.clone().oneshot(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    let location = response.headers()[header::LOCATION].to_str().unwrap();
    let id = location.strip_prefix("/tasks/").unwrap().parse().unwrap();
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);

    background.close();
    assert_eq!(app.oneshot(request()).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
}
