//! What is answered, and what is written by then.

use bytes::Bytes;
use http::{StatusCode, header};
use tower_offload::{Background, ThreadPool};
use tower_offload_tasks::{MemoryStore, Status, TaskState, TaskStore, Tasks, store::Found};

use super::support::{background, done, ended, hold, in_memory};

/// F1, F9
#[tokio::test]
async fn the_answer_is_a_202_that_says_where_to_ask_and_when() {
    let (tasks, background) = (in_memory().mounted_at("/api/tasks/"), background());
    let accepted = tasks.track("report").owner("Ann").run(&background, |_| done()).await.unwrap();
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
    assert!(!std::str::from_utf8(response.body()).unwrap().contains("Ann"), "the owner is nobody's business");

    let record = ended(&tasks, id).await;
    assert_eq!(Status::from(&record).retry_after(), None);
    let again = tasks.accepted(id).await.unwrap().unwrap();
    assert!(!again.into_response::<Bytes>().headers().contains_key(header::RETRY_AFTER), "when it is over");
}

/// F8: written before the answer exists, whatever is known of it in this process.
#[tokio::test]
async fn the_record_is_in_the_store_when_the_answer_exists() {
    let store = MemoryStore::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let held = hold(&tasks, &background).await;
    assert!(matches!(store.get(held.id).await.unwrap(), Found::Record(_)));
}

/// F2, F3
#[tokio::test]
async fn an_id_that_nobody_has_and_one_of_another_kind_are_unknown() {
    let (tasks, background) = (in_memory(), background());
    let other = "00000000000000000000000000000000000z".parse().unwrap();
    assert_eq!(tasks.get(other).await.unwrap(), Found::Unknown);
    assert_eq!(tasks.cancel(other).await.unwrap(), Found::Unknown);
    assert!(tasks.subscribe(other).await.unwrap().is_none());
    assert!(tasks.accepted(other).await.unwrap().is_none());

    let held = hold(&tasks, &background).await;
    assert_eq!(tasks.get_named("report", held.id).await.unwrap(), Found::Unknown);
    assert!(matches!(tasks.get_named("held", held.id).await.unwrap(), Found::Record(_)));
}

#[tokio::test]
async fn a_full_or_closed_background_is_a_503_and_no_record() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let background = Background::builder().pool(pool).queue_capacity(1).build();
    let tasks = in_memory();
    let held = hold(&tasks, &background).await;
    let full = tasks.track("one too many").run(&background, |_| done()).await.unwrap_err();
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
    let closed = tasks.track("too late").run(&background, |_| done()).await.unwrap_err();
    assert!(closed.is_closed() && !closed.is_full());
    let all = tasks.list(&Default::default(), Default::default()).await.unwrap();
    assert_eq!(all.records.len(), 1);
}

/// F6: what cannot be kept is refused before anything is promised.
#[tokio::test]
async fn a_name_or_owner_that_cannot_be_kept_is_refused_as_the_programs_fault() {
    let (tasks, background) = (in_memory(), background());
    for name in ["", "a\0b", "a\nb", &"x".repeat(201)] {
        let refused = tasks.track(name.to_owned()).run(&background, |_| done()).await.unwrap_err();
        assert!(refused.is_invalid(), "{name:?}");
        assert_eq!(refused.into_response::<Bytes>().status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
    for owner in ["", "a\0b", &"x".repeat(501)] {
        assert!(
            tasks.track("x").owner(owner).run(&background, |_| done()).await.unwrap_err().is_invalid(),
            "{owner:?}"
        );
    }
    assert_eq!(background.stats().reserved, 0);
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn a_handler_of_axum_returns_it_as_it_is() {
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
