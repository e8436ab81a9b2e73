//! The status service in an axum router.

use std::{convert::Infallible, sync::mpsc, time::Duration};

use axum::{Router, body::Body, http::Request, response::Response};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;
use tower_offload::Background;
use tower_offload_tasks::{MemoryStore, Progress, Tasks, service::Access};

async fn send(app: &Router, method: &str, target: &str) -> Response {
    let request = Request::builder().method(method).uri(target).body(Body::empty()).unwrap();
    app.clone().oneshot(request).await.unwrap()
}

async fn text(response: Response) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn json(response: Response) -> Value {
    text(response).await.parse().unwrap()
}

fn app(tasks: &Tasks) -> Router {
    let service = tasks.service().authorize(|_, _| Access::All);
    Router::new().route_service("/status", service.alias()).nest_service("/tasks", service)
}

#[tokio::test]
async fn location_of_an_accepted_task_leads_to_status_and_events() {
    let (tasks, background) = (Tasks::new(MemoryStore::new()), Background::default());
    let (open, gate) = mpsc::channel::<()>();
    let work = move |progress: Progress| {
        progress.set(0.5, "halfway");
        let _ = gate.recv();
        Ok::<_, Infallible>(3)
    };
    let accepted = tasks.track("report").spawn_blocking(&background, work).await.unwrap();
    let (app, location) = (app(&tasks), accepted.location().to_str().unwrap().to_owned());
    assert_eq!(send(&app, "GET", &location).await.status(), 200);

    let mut events = send(&app, "GET", &format!("{location}/events")).await.into_body();
    let mut text = String::new();
    while let Some(frame) = events.frame().await {
        text += std::str::from_utf8(frame.unwrap().data_ref().unwrap()).unwrap();
        if text.contains("halfway") {
            let _ = open.send(());
        }
    }
    let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!((names.first(), names.last()), (Some(&"queued"), Some(&"finished")));
    assert_eq!(names.iter().filter(|name| **name == "started").count(), 1);

    let response = send(&app, "GET", &location).await;
    assert!(response.headers().get("retry-after").is_none());
    assert_eq!(json(response).await["result"], 3);
    let alias = json(send(&app, "GET", &format!("/status?task_id={}", accepted.id())).await).await;
    assert_eq!(alias["status"], "completed");
    let list = json(send(&app, "GET", "/tasks?name=report").await).await;
    assert_eq!(list["tasks"][0]["id"], accepted.id().to_string());
}

#[tokio::test]
async fn delete_cancels_the_task_and_is_503_after_shutdown() {
    let (tasks, background) = (Tasks::new(MemoryStore::new()), Background::default());
    let accepted = tasks
        .track("forever")
        .spawn(&background, async |_: Progress| std::future::pending::<Result<(), Infallible>>().await)
        .await
        .unwrap();
    let (app, location) = (app(&tasks), accepted.location().to_str().unwrap().to_owned());
    let mut subscription = tasks.subscribe(accepted.id()).await.unwrap().unwrap();
    let status = send(&app, "DELETE", &location).await.status().as_u16();
    assert!(status == 202 || status == 200, "{status}");
    while subscription.changed().await.unwrap().is_some() {}
    let response = send(&app, "DELETE", &location).await;
    assert_eq!(response.status(), 200);
    assert_eq!(json(response).await["reason"], "requested");

    background.shutdown(Duration::from_secs(60)).await;
    tasks.shutdown(Duration::from_secs(60)).await;
    let response = send(&app, "DELETE", &location).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (503, &"application/problem+json".parse().unwrap())
    );
    assert_eq!(send(&app, "GET", &location).await.status(), 200);
}

#[tokio::test]
async fn list_and_cancel_are_denied_by_default() {
    let tasks = Tasks::new(MemoryStore::new());
    let app = Router::new().nest_service("/tasks", tasks.service());
    for (method, target) in [("GET", "/tasks"), ("DELETE", "/tasks/00y8j7g1z0b3t4kf6n2vqwhx9m5c7d1e8pr0")] {
        assert_eq!(send(&app, method, target).await.status(), 403, "{method} {target}");
    }
}
