//! What who asks for a task would rather have: an answer at once, or the result. Over HTTP.

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

/// A server whose tasks tell that they have begun, with what ends them.
#[derive(Clone)]
struct App {
    tasks: Tasks,
    service: StatusService,
    background: Background,
    begun: UnboundedSender<mpsc::Sender<()>>,
}

impl App {
    /// Until whoever is told lets go of the sender.
    fn held(&self) -> impl FnOnce(Progress) -> Result<&'static str, Infallible> + Send + use<> {
        let begun = self.begun.clone();
        move |_| {
            let (end, ended) = mpsc::channel::<()>();
            let _ = begun.send(end);
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
    begun: UnboundedReceiver<mpsc::Sender<()>>,
}

async fn site(configure: impl FnOnce(StatusService) -> StatusService) -> Site {
    let (tasks, background, (begun, receiver)) = (in_memory(), background(), unbounded_channel());
    let service = configure(tasks.service());
    let app = App { tasks: tasks.clone(), service: service.clone(), background: background.clone(), begun };
    let app = Router::new()
        .route("/now/{kind}", post(now))
        .route("/after", post(after))
        .with_state(app)
        .nest_service("/tasks", service)
        .layer(AfterResponseLayer::new(background));
    Site { client: serve(app).await, tasks, begun: receiver }
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
async fn who_waits_long_enough_gets_the_final_status_and_still_the_place_where_it_is_told() {
    let mut site = site(|service| service).await;
    let client = site.client.clone();
    let waiting = tokio::spawn(async move { post_to(&client, "/now/report", "wait=30, respond-async").await });
    drop(site.begun.recv().await.unwrap()); // it ends
    let reply = waiting.await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.header("preference-applied")), (200, "wait=30"));
    assert_eq!((reply.header("retry-after"), reply.header("cache-control")), ("", "no-store"));
    assert_eq!((&reply.json()["state"], &reply.json()["result"]), (&"succeeded".into(), &"paper".into()));
    let there = site.client.get(reply.header("location")).await;
    assert_eq!(there.json(), reply.json());

    let failed = site.post("/now/fails", "wait=30").await;
    assert_eq!((failed.status.as_u16(), &failed.json()["state"]), (200, &"failed".into()), "that is an end too");
}

#[tokio::test]
async fn who_wants_an_answer_at_once_gets_it_and_hears_that_this_was_followed() {
    let site = site(|service| service).await;
    accepted(&site.post("/now/report", "").await, "");
    accepted(&site.post("/now/report", "respond-async").await, "respond-async");
    accepted(&site.post("/now/report", "return=minimal, wait=x").await, "");
}

#[tokio::test]
async fn who_waits_too_short_gets_the_status_of_then_and_no_wait_is_longer_than_the_service_allows() {
    let site = site(|service| service.max_wait(Duration::from_secs(1))).await;
    accepted(&site.post("/now/report", "wait=0").await, "wait=0");
    let reply = site.post("/now/report", "wait=3600, respond-async").await;
    accepted(&reply, "respond-async, wait=1");
    assert_eq!(reply.json()["state"], "running");
}

/// It begins only after the response: waiting for it would be waiting for nothing.
#[tokio::test]
async fn work_that_follows_the_response_is_not_waited_for() {
    let mut site = site(|service| service).await;
    for (prefer, applied) in [("wait=30", ""), ("respond-async, wait=30", "respond-async")] {
        let reply = site.post("/after", prefer).await;
        accepted(&reply, applied);
        assert_eq!(reply.json()["state"], "queued");
        drop(site.begun.recv().await.unwrap());
        let id = reply.json()["id"].as_str().unwrap().parse().unwrap();
        ended(&site.tasks, id).await;
        let again = site.tasks.accepted(id).await.unwrap().unwrap();
        let waits = HeaderMap::from_iter([("prefer".parse().unwrap(), "wait=30".parse().unwrap())]);
        let again = site.tasks.respond::<Body>(again, &waits).await;
        assert_eq!(again.status(), 200, "once it has begun it is as any other");
    }
}

#[tokio::test]
async fn without_a_place_to_wait_nobody_waits() {
    let site = site(|service| service.max_streams(0)).await;
    accepted(&site.post("/now/report", "wait=30").await, "");
    accepted(&site.post("/now/report", "wait=30, respond-async").await, "respond-async");
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_place_back_and_its_task_goes_on() {
    let mut site = site(|service| service.max_streams(1)).await;
    let client = Client::of(site.client.address()); // whose connections end with it
    let waiting = tokio::spawn(async move { post_to(&client, "/now/report", "wait=30").await });
    let first = site.begun.recv().await.unwrap();
    accepted(&site.post("/now/report", "wait=0").await, "");
    waiting.abort();
    assert!(waiting.await.is_err_and(|error| error.is_cancelled()));
    while site.post("/now/report", "wait=0").await.header("preference-applied") != "wait=0" {} // the server has to notice
    let held = site.tasks.list(&Default::default(), Default::default()).await.unwrap().records.pop().unwrap();
    drop(first);
    assert_eq!(ended(&site.tasks, held.id).await.state.as_str(), "succeeded");
}

#[tokio::test]
async fn who_waits_is_answered_when_streams_are_ended() {
    let mut site = site(|service| service).await;
    let client = site.client.clone();
    let waiting = tokio::spawn(async move { post_to(&client, "/now/report", "wait=30").await });
    let _held = site.begun.recv().await.unwrap();
    site.tasks.end_streams();
    accepted(&waiting.await.unwrap(), "wait=30");
    accepted(&site.post("/now/report", "wait=30").await, "wait=30");
}
