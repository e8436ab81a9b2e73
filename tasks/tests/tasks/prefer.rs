//! `Prefer` of requests that start a task: a response at once, or the result.

use std::{convert::Infallible, sync::mpsc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::HeaderMap,
    response::Response,
    routing::post,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tower_offload::{AfterResponse, AfterResponseLayer, Background};
use tower_offload_tasks::{AcceptError, Progress, Tasks, service::StatusService};

use super::{
    http::{Client, Reply, serve},
    support::{background, ended, in_memory},
};

/// A server whose tasks run until the test ends them. Each task sends a sender to the test when it
/// starts, and ends when the test drops that sender.
#[derive(Clone)]
struct App {
    tasks: Tasks,
    service: StatusService,
    background: Background,
    started: UnboundedSender<mpsc::Sender<()>>,
}

impl App {
    /// Returns work that ends when the test drops the sender.
    fn held(&self) -> impl FnOnce(Progress) -> Result<&'static str, Infallible> + Send + use<> {
        let started = self.started.clone();
        move |_| {
            let (end, ended) = mpsc::channel::<()>();
            let _ = started.send(end);
            let _ = ended.recv();
            Ok("paper")
        }
    }
}

async fn now(State(app): State<App>, Path(kind): Path<String>, headers: HeaderMap) -> Result<Response, AcceptError> {
    let track = app.tasks.track(kind.clone());
    let accepted = match kind.as_str() {
        "fails" => track.spawn_blocking(&app.background, |_| Err::<(), _>("no paper")).await?,
        _ => track.spawn_blocking(&app.background, app.held()).await?,
    };
    Ok(app.service.respond::<Body>(accepted, &headers).await)
}

async fn after(State(app): State<App>, headers: HeaderMap, after: AfterResponse) -> Result<Response, AcceptError> {
    let accepted = app.tasks.track("after").spawn_blocking(&after, app.held()).await?;
    Ok(app.tasks.respond::<Body>(accepted, &headers).await)
}

struct Site {
    client: Client,
    tasks: Tasks,
    started: UnboundedReceiver<mpsc::Sender<()>>,
}

async fn site(configure: impl FnOnce(StatusService) -> StatusService) -> Site {
    let (tasks, background, (started, receiver)) = (in_memory(), background(), unbounded_channel());
    let service = configure(tasks.service());
    let app = App { tasks: tasks.clone(), service: service.clone(), background: background.clone(), started };
    let app = Router::new()
        .route("/now/{kind}", post(now))
        .route("/after", post(after))
        .with_state(app)
        .nest_service("/tasks", service)
        .layer(AfterResponseLayer::new(background));
    Site { client: serve(app).await, tasks, started: receiver }
}

impl Site {
    async fn post(&self, target: &str, prefer: &str) -> Reply {
        post_to(&self.client, target, prefer).await
    }
}

async fn post_to(client: &Client, target: &str, prefer: &str) -> Reply {
    let headers = [("prefer", prefer)];
    client.send("POST", target, if prefer.is_empty() { &[] } else { &headers }).await
}

fn accepted(reply: &Reply, applied: &str) {
    assert_eq!((reply.status.as_u16(), reply.header("preference-applied")), (202, applied));
    assert_eq!((reply.header("retry-after"), reply.header("vary")), ("1", "prefer"));
    assert_eq!(reply.header("location"), format!("/tasks/{}", reply.json()["id"].as_str().unwrap()));
}

#[tokio::test]
async fn waiting_request_gets_the_final_status_and_the_location() {
    let mut site = site(|service| service).await;
    let client = site.client.clone();
    let waiting = tokio::spawn(async move { post_to(&client, "/now/report", "wait=30, respond-async").await });
    drop(site.started.recv().await.unwrap()); // ends the task
    let reply = waiting.await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.header("preference-applied")), (200, "wait=30"));
    assert_eq!((reply.header("retry-after"), reply.header("cache-control")), ("", "no-store"));
    assert_eq!((&reply.json()["state"], &reply.json()["result"]), (&"succeeded".into(), &"paper".into()));
    let status = site.client.get(reply.header("location")).await;
    assert_eq!(status.json(), reply.json());

    let failed = site.post("/now/fails", "wait=30").await;
    assert_eq!((failed.status.as_u16(), &failed.json()["state"]), (200, &"failed".into()), "a failure ends the wait");
}

#[tokio::test]
async fn respond_async_gets_a_response_at_once() {
    let site = site(|service| service).await;
    accepted(&site.post("/now/report", "").await, "");
    accepted(&site.post("/now/report", "respond-async").await, "respond-async");
    accepted(&site.post("/now/report", "return=minimal, wait=x").await, "");
}

#[tokio::test]
async fn wait_times_out_after_its_limit_with_the_current_status() {
    let site = site(|service| service.max_wait(Duration::from_secs(1))).await;
    accepted(&site.post("/now/report", "wait=0").await, "wait=0");
    let reply = site.post("/now/report", "wait=3600, respond-async").await;
    accepted(&reply, "respond-async, wait=1");
    assert_eq!(reply.json()["state"], "running");
}

/// The task starts after the response, so the request cannot wait for it.
#[tokio::test]
async fn request_does_not_wait_for_an_after_response_task() {
    let mut site = site(|service| service).await;
    for (prefer, applied) in [("wait=30", ""), ("respond-async, wait=30", "respond-async")] {
        let reply = site.post("/after", prefer).await;
        accepted(&reply, applied);
        assert_eq!(reply.json()["state"], "queued");
        drop(site.started.recv().await.unwrap());
        let id = reply.json()["id"].as_str().unwrap().parse().unwrap();
        ended(&site.tasks, id).await;
        let again = site.tasks.accepted(id).await.unwrap().unwrap();
        let waits = HeaderMap::from_iter([("prefer".parse().unwrap(), "wait=30".parse().unwrap())]);
        let again = site.tasks.respond::<Body>(again, &waits).await;
        assert_eq!(again.status(), 200, "a finished task needs no wait");
    }
}

#[tokio::test]
async fn request_without_a_permit_does_not_wait() {
    let site = site(|service| service.max_streams(0)).await;
    accepted(&site.post("/now/report", "wait=30").await, "");
    accepted(&site.post("/now/report", "wait=30, respond-async").await, "respond-async");
}

#[tokio::test]
async fn disconnected_client_releases_its_permit_but_not_its_task() {
    let mut site = site(|service| service.max_streams(1)).await;
    let client = Client::of(site.client.address()); // its connections close when it is dropped
    let waiting = tokio::spawn(async move { post_to(&client, "/now/report", "wait=30").await });
    let first = site.started.recv().await.unwrap();
    accepted(&site.post("/now/report", "wait=0").await, "");
    waiting.abort();
    assert!(waiting.await.is_err_and(|error| error.is_cancelled()));
    while site.post("/now/report", "wait=0").await.header("preference-applied") != "wait=0" {} // until the server notices
    let held = site.tasks.list(&Default::default(), Default::default()).await.unwrap().records.pop().unwrap();
    drop(first);
    assert_eq!(ended(&site.tasks, held.id).await.state.as_str(), "succeeded");
}

#[tokio::test]
async fn end_streams_answers_waiting_requests() {
    let mut site = site(|service| service).await;
    let client = site.client.clone();
    let waiting = tokio::spawn(async move { post_to(&client, "/now/report", "wait=30").await });
    let _held = site.started.recv().await.unwrap();
    site.tasks.end_streams();
    accepted(&waiting.await.unwrap(), "wait=30");
    accepted(&site.post("/now/report", "wait=30").await, "wait=30");
}
