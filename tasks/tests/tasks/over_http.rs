//! The status service of an application, over real connections.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, mpsc},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::future::join_all;
use tower_offload::{AfterResponse, AfterResponseLayer, Background};
use tower_offload_tasks::{
    AcceptError, Accepted, Failure, MemoryStore, Progress, Status, TaskId, TaskState, Tasks, service::Access,
    store::Found,
};

use super::{
    http::{Client, Reply, part, serve},
    support::{LONG, background, done, ended},
};

struct Site {
    client: Client,
    app: App,
}

#[derive(Clone)]
struct App {
    tasks: Tasks,
    background: Background,
    /// Senders that hold tasks until they are dropped, in the order in which the tasks started.
    held: Arc<Mutex<Vec<mpsc::Sender<()>>>>,
}

async fn start(
    State(App { tasks, background, held }): State<App>,
    Path(kind): Path<String>,
    after: AfterResponse,
) -> Result<Accepted, AcceptError> {
    let track = tasks.track("report");
    match kind.as_str() {
        "after" => track.spawn_blocking(&after, |_| done()).await,
        "fails" => {
            track.spawn_blocking(&background, |_| Err::<(), _>(Failure::new("out_of_paper", "tray 2 is empty"))).await
        }
        "held" => {
            let work = move |progress: Progress| {
                let (release, released) = mpsc::channel::<()>();
                held.lock().unwrap().push(release);
                progress.set(0.5, "halfway");
                let _ = released.recv();
                Ok::<_, Infallible>(3)
            };
            track.spawn_blocking(&background, work).await
        }
        "panics" => track.spawn_blocking(&background, |_| -> Result<(), Infallible> { panic!("at row 3") }).await,
        "unserializable" => {
            track.spawn_blocking(&background, |_| Ok::<_, Infallible>(HashMap::from([((1, 2), 3)]))).await
        }
        _ => track.spawn_blocking(&background, |_| Ok::<_, Infallible>(3)).await,
    }
}

/// An endpoint for the tasks of one name.
async fn named(State(app): State<App>, Path((name, id)): Path<(String, TaskId)>) -> Response {
    match app.tasks.get_named(&name, id).await.unwrap() {
        Found::Record(record) => Json(Status::from(&*record)).into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn site(store: MemoryStore) -> Site {
    let held = Arc::default();
    let app = App { tasks: Tasks::new(store), background: background(), held };
    let service = app.tasks.service().authorize(|_, _| Access::All);
    let router = Router::new()
        .route("/start/{kind}", post(start))
        .route("/named/{name}/{id}", get(named))
        .with_state(app.clone())
        .route_service("/status", service.alias())
        .nest_service("/read-only", service.clone().read_only())
        .nest_service("/tasks", service)
        .layer(AfterResponseLayer::new(app.background.clone()));
    Site { client: serve(router).await, app }
}

impl Site {
    async fn start(&self, kind: &str) -> Reply {
        self.client.send("POST", &format!("/start/{kind}"), &[]).await
    }

    /// Starts a task and returns the URL of its status.
    async fn location(&self, kind: &str) -> String {
        let reply = self.start(kind).await;
        assert_eq!(reply.status, 202, "{}", reply.text);
        reply.header("location").to_owned()
    }

    /// Waits until a task has finished and returns its status.
    async fn finished(&self, location: &str) -> Reply {
        self.client.send("GET", location, &[("prefer", "wait=30")]).await
    }

    async fn until_held(&self, location: &str) {
        while self.client.get(location).await.json()["message"] != "halfway" {}
    }

    /// Waits until the store has the final records of all tasks except `open`.
    async fn until_written(&self, open: usize) {
        while self.app.tasks.stats().open > open {
            tokio::task::yield_now().await;
        }
    }

    fn release(&self) {
        self.app.held.lock().unwrap().clear();
    }
}

#[tokio::test]
async fn status_has_state_and_times_and_retry_after_until_finished() {
    let site = site(MemoryStore::new()).await;
    let location = site.location("held").await;
    site.until_held(&location).await;
    let running = site.client.get(&location).await;
    assert_eq!((running.status.as_u16(), running.header("retry-after")), (200, "1"));
    assert_eq!((&running.json()["state"], running.header("cache-control")), (&"running".into(), "no-store"));
    assert!(running.json()["created_at"].is_string() && running.json()["started_at"].is_string());
    assert!(running.json()["finished_at"].is_null());

    site.release();
    let finished = site.finished(&location).await;
    assert_eq!((finished.status.as_u16(), finished.header("retry-after")), (200, ""));
    assert_eq!((&finished.json()["state"], &finished.json()["result"]), (&"succeeded".into(), &3.into()));
    assert!(finished.json()["finished_at"].is_string());
}

#[tokio::test]
async fn unknown_id_is_404() {
    let site = site(MemoryStore::new()).await;
    let id = "0".repeat(36);
    for target in [format!("/tasks/{id}"), format!("/tasks/{id}/events"), format!("/status?task_id={id}")] {
        let reply = site.client.get(&target).await;
        assert!(reply.is_problem(404), "{target}");
        assert_eq!(reply.header("retry-after"), "");
    }
    assert!(site.client.send("DELETE", &format!("/tasks/{id}"), &[]).await.is_problem(404));
}

#[tokio::test]
async fn get_named_does_not_find_tasks_of_other_names() {
    let site = site(MemoryStore::new()).await;
    let location = site.location("done").await;
    let id = location.strip_prefix("/tasks/").unwrap();
    assert_eq!(site.client.get(&format!("/named/report/{id}")).await.status, 200);
    assert_eq!(site.client.get(&format!("/named/order/{id}")).await.status, 404);
}

#[tokio::test]
async fn failures_are_200_with_class_and_message() {
    let site = site(MemoryStore::new()).await;
    let no_json = "the result cannot be stored: the value cannot be represented in JSON: key must be a string";
    for (kind, class, message) in [
        ("fails", "out_of_paper", "tray 2 is empty"),
        ("panics", "panic", "at row 3"),
        ("unserializable", "result", no_json),
    ] {
        let reply = site.finished(&site.location(kind).await).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["state"]), (200, &"failed".into()));
        assert_eq!(reply.json()["error"], serde_json::json!({"class": class, "message": message}), "no backtrace");
    }
}

#[tokio::test]
async fn missing_result_is_an_error_with_the_state() {
    let site = site(MemoryStore::new()).await;
    let location = site.location("held").await;
    let pending = site.client.get(&location).await;
    assert!(!pending.text.contains("result"), "the field is absent");
    let pending: Status = serde_json::from_str(&pending.text).unwrap();
    assert!(pending.result::<u32>().unwrap_err().is_pending());
    let failed: Status = serde_json::from_str(&site.finished(&site.location("fails").await).await.text).unwrap();
    assert_eq!(failed.result::<u32>().unwrap_err().state(), TaskState::Failed);
    site.until_held(&location).await;
    site.release();
    let finished: Status = serde_json::from_str(&site.finished(&location).await.text).unwrap();
    assert_eq!(finished.result::<u32>().unwrap(), 3);
}

#[tokio::test]
async fn evicted_record_is_410_then_404_and_running_tasks_are_kept() {
    let site = site(MemoryStore::with_capacity(2)).await;
    let held = site.location("held").await;
    let first = site.location("done").await;
    site.until_written(1).await; // otherwise the store is full
    let second = site.location("done").await;
    assert!(site.client.get(&first).await.is_problem(410));
    assert!(site.client.get(&format!("{first}/events")).await.is_problem(410));
    site.finished(&second).await;
    site.until_written(1).await;
    let mut evicted = 1;
    while site.client.get(&first).await.status == 410 {
        site.location("done").await;
        site.until_written(1).await;
        evicted += 1;
        assert!(evicted < 100, "tombstones are not limited");
    }
    assert!(site.client.get(&first).await.is_problem(404));
    assert_eq!(site.client.get(&held).await.status, 200, "unfinished records are not evicted");

    site.location("held").await;
    let full = site.start("done").await;
    assert!(full.is_problem(503) && full.header("retry-after") == "1" && full.json()["reason"] == "full");
    site.release();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_task_is_found_at_once() {
    let site = site(MemoryStore::new()).await;
    let clients = (0..8).map(|number| {
        let site = &site;
        async move {
            for _ in 0..25 {
                let location = site.location(["done", "after"][number % 2]).await;
                assert_eq!(site.client.get(&location).await.status, 200);
            }
        }
    });
    join_all(clients).await;
}

#[tokio::test]
async fn events_arrive_in_order_and_once() {
    let site = site(MemoryStore::new()).await;
    let location = site.location("held").await;
    let mut events = site.client.open("GET", &format!("{location}/events"), &[]).await.unwrap().into_body();
    let mut text = String::new();
    while let Some(part) = part(&mut events).await {
        text += &part;
        if text.contains("halfway") {
            site.release();
        }
    }
    let mut names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    names.dedup();
    assert_eq!(names, ["queued", "started", "progress", "finished"]);
    let last = text.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().unwrap();
    let again = site.client.send("GET", &format!("{location}/events"), &[("last-event-id", last)]).await;
    assert_eq!(again.status, 204);
}

#[tokio::test]
async fn read_only_service_does_not_cancel() {
    let site = site(MemoryStore::new()).await;
    let location = site.location("held").await;
    site.until_held(&location).await;
    let read_only = location.replace("/tasks/", "/read-only/");
    assert!(site.client.send("DELETE", &read_only, &[]).await.is_problem(403));
    assert!(site.client.get(&read_only).await.json()["cancel_requested_at"].is_null());
    assert_eq!(site.client.send("DELETE", &location, &[]).await.status.as_u16() / 100, 2, "the other service cancels");
    site.release();
}

#[tokio::test]
async fn after_shutdown_changes_are_503_and_reads_succeed() {
    let site = site(MemoryStore::new()).await;
    let location = site.location("done").await;
    ended(&site.app.tasks, location.strip_prefix("/tasks/").unwrap().parse().unwrap()).await;
    site.app.background.shutdown(LONG).await;
    assert!(site.app.tasks.shutdown(LONG).await.is_clean());
    let rejected = site.start("done").await;
    assert!(rejected.is_problem(503) && rejected.json()["reason"] == "closed");
    assert!(site.client.send("DELETE", &location, &[]).await.is_problem(503));
    assert_eq!(site.client.get(&location).await.status, 200);
}
