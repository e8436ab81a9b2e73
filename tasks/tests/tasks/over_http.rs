//! Each row of the acceptance list about status, from the outside: a real server, real connections.

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
    /// What holds the tasks that are to be held, in the order in which they have begun.
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
        "unserialisable" => {
            track.spawn_blocking(&background, |_| Ok::<_, Infallible>(HashMap::from([((1, 2), 3)]))).await
        }
        _ => track.spawn_blocking(&background, |_| Ok::<_, Infallible>(3)).await,
    }
}

/// As an application shows what it knows to be its own.
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

    /// Where it is told.
    async fn place(&self, kind: &str) -> String {
        let reply = self.start(kind).await;
        assert_eq!(reply.status, 202, "{}", reply.text);
        reply.header("location").to_owned()
    }

    /// The status once it is over.
    async fn over(&self, place: &str) -> Reply {
        self.client.send("GET", place, &[("prefer", "wait=30")]).await
    }

    async fn until_held(&self, place: &str) {
        while self.client.get(place).await.json()["message"] != "halfway" {}
    }

    /// Until the store has the end of all tasks but so many.
    async fn until_written(&self, open: usize) {
        while self.app.tasks.stats().open > open {
            tokio::task::yield_now().await;
        }
    }

    fn release(&self) {
        self.app.held.lock().unwrap().clear();
    }
}

/// F1, F9
#[tokio::test]
async fn a_known_task_is_a_200_with_state_and_times_and_says_when_to_ask_again_until_it_is_over() {
    let site = site(MemoryStore::new()).await;
    let place = site.place("held").await;
    site.until_held(&place).await;
    let running = site.client.get(&place).await;
    assert_eq!((running.status.as_u16(), running.header("retry-after")), (200, "1"));
    assert_eq!((&running.json()["state"], running.header("cache-control")), (&"running".into(), "no-store"));
    assert!(running.json()["created_at"].is_string() && running.json()["started_at"].is_string());
    assert!(running.json()["finished_at"].is_null());

    site.release();
    let over = site.over(&place).await;
    assert_eq!((over.status.as_u16(), over.header("retry-after")), (200, ""));
    assert_eq!((&over.json()["state"], &over.json()["result"]), (&"succeeded".into(), &3.into()));
    assert!(over.json()["finished_at"].is_string());
}

/// F2
#[tokio::test]
async fn an_id_that_nobody_has_is_a_404_and_never_pending() {
    let site = site(MemoryStore::new()).await;
    let id = "0".repeat(36);
    for target in [format!("/tasks/{id}"), format!("/tasks/{id}/events"), format!("/status?task_id={id}")] {
        let reply = site.client.get(&target).await;
        assert!(reply.is_problem(404), "{target}");
        assert_eq!(reply.header("retry-after"), "");
    }
    assert!(site.client.send("DELETE", &format!("/tasks/{id}"), &[]).await.is_problem(404));
}

/// F3
#[tokio::test]
async fn an_id_of_another_kind_is_a_404() {
    let site = site(MemoryStore::new()).await;
    let place = site.place("done").await;
    let id = place.strip_prefix("/tasks/").unwrap();
    assert_eq!(site.client.get(&format!("/named/report/{id}")).await.status, 200);
    assert_eq!(site.client.get(&format!("/named/order/{id}")).await.status, 404);
}

/// F4, F6
#[tokio::test]
async fn a_failure_is_a_200_with_its_class_and_message_whatever_kind_it_is() {
    let site = site(MemoryStore::new()).await;
    let no_json = "the result cannot be stored: the value cannot be represented in JSON: key must be a string";
    for (kind, class, message) in [
        ("fails", "out_of_paper", "tray 2 is empty"),
        ("panics", "panic", "at row 3"),
        ("unserialisable", "result", no_json),
    ] {
        let reply = site.over(&site.place(kind).await).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["state"]), (200, &"failed".into()));
        assert_eq!(reply.json()["error"], serde_json::json!({"class": class, "message": message}), "and no trace");
    }
}

/// F5
#[tokio::test]
async fn a_result_that_is_not_there_is_an_error_that_says_why() {
    let site = site(MemoryStore::new()).await;
    let place = site.place("held").await;
    let pending = site.client.get(&place).await;
    assert!(!pending.text.contains("result"), "not even as null");
    let pending: Status = serde_json::from_str(&pending.text).unwrap();
    assert!(pending.result::<u32>().unwrap_err().is_pending());
    let failed: Status = serde_json::from_str(&site.over(&site.place("fails").await).await.text).unwrap();
    assert_eq!(failed.result::<u32>().unwrap_err().state(), TaskState::Failed);
    site.until_held(&place).await;
    site.release();
    let over: Status = serde_json::from_str(&site.over(&place).await.text).unwrap();
    assert_eq!(over.result::<u32>().unwrap(), 3);
}

/// F7
#[tokio::test]
async fn what_is_kept_no_more_is_a_410_and_then_a_404_and_what_runs_is_kept() {
    let site = site(MemoryStore::with_capacity(2)).await;
    let held = site.place("held").await;
    let first = site.place("done").await;
    site.until_written(1).await; // else there is no room for another one
    let second = site.place("done").await;
    assert!(site.client.get(&first).await.is_problem(410));
    assert!(site.client.get(&format!("{first}/events")).await.is_problem(410));
    site.over(&second).await;
    site.until_written(1).await;
    let mut evicted = 1;
    while site.client.get(&first).await.status == 410 {
        site.place("done").await;
        site.until_written(1).await;
        evicted += 1;
        assert!(evicted < 100, "tombstones are bounded");
    }
    assert!(site.client.get(&first).await.is_problem(404));
    assert_eq!(site.client.get(&held).await.status, 200, "never what is not over");

    site.place("held").await;
    let full = site.start("done").await;
    assert!(full.is_problem(503) && full.header("retry-after") == "1" && full.json()["reason"] == "full");
    site.release();
}

/// F8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_was_answered_with_a_202_is_there_at_once() {
    let site = site(MemoryStore::new()).await;
    let asks = (0..8).map(|number| {
        let site = &site;
        async move {
            for _ in 0..25 {
                let place = site.place(["done", "after"][number % 2]).await;
                assert_eq!(site.client.get(&place).await.status, 200);
            }
        }
    });
    join_all(asks).await;
}

/// F10
#[tokio::test]
async fn events_come_in_order_and_the_milestones_once_each() {
    let site = site(MemoryStore::new()).await;
    let place = site.place("held").await;
    let mut events = site.client.open("GET", &format!("{place}/events"), &[]).await.unwrap().into_body();
    let mut story = String::new();
    while let Some(part) = part(&mut events).await {
        story += &part;
        if story.contains("halfway") {
            site.release();
        }
    }
    let mut names: Vec<_> = story.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    names.dedup();
    assert_eq!(names, ["queued", "started", "progress", "finished"]);
    let last = story.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().unwrap();
    let again = site.client.send("GET", &format!("{place}/events"), &[("last-event-id", last)]).await;
    assert_eq!(again.status, 204);
}

/// F12
#[tokio::test]
async fn a_read_only_service_shows_and_changes_nothing() {
    let site = site(MemoryStore::new()).await;
    let place = site.place("held").await;
    site.until_held(&place).await;
    let there = place.replace("/tasks/", "/read-only/");
    assert!(site.client.send("DELETE", &there, &[]).await.is_problem(403));
    assert!(site.client.get(&there).await.json()["cancel_requested_at"].is_null());
    assert_eq!(site.client.send("DELETE", &place, &[]).await.status.as_u16() / 100, 2, "the other one does");
    site.release();
}

/// F13
#[tokio::test]
async fn once_all_is_closed_what_would_change_something_is_a_503_and_the_rest_is_told() {
    let site = site(MemoryStore::new()).await;
    let place = site.place("done").await;
    ended(&site.app.tasks, place.strip_prefix("/tasks/").unwrap().parse().unwrap()).await;
    site.app.background.shutdown(LONG).await;
    assert!(site.app.tasks.shutdown(LONG).await.is_clean());
    let refused = site.start("done").await;
    assert!(refused.is_problem(503) && refused.json()["reason"] == "closed");
    assert!(site.client.send("DELETE", &place, &[]).await.is_problem(503));
    assert_eq!(site.client.get(&place).await.status, 200);
}
