//! Events of feature `tracing`: the causes of store failures, which responses do not disclose.
//!
//! This is a binary of its own because tracing caches the interest in events per process.
#![cfg(all(feature = "tracing", feature = "sqlite"))]
#![allow(clippy::unwrap_used)]

use std::{convert::Infallible, fmt, sync::mpsc};

use bytes::Bytes;
use http::{Request, StatusCode};
use tower::ServiceExt;
use tower_offload::Background;
use tower_offload_tasks::{MemoryStore, SqlStore, Tasks};
use tracing_subscriber::{
    Layer, Registry,
    layer::{Context, SubscriberExt},
};

/// Sends the level and the text of each event of this workspace.
struct Events(mpsc::Sender<(tracing::Level, String)>);

impl<S: tracing::Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut text = String::new();
        event.record(&mut |field: &tracing::field::Field, value: &dyn fmt::Debug| {
            text += &format!("{}={value:?};", field.name());
        });
        if event.metadata().target().starts_with("tower_offload") {
            self.0.send((*event.metadata().level(), text)).unwrap();
        }
    }
}

#[tokio::test]
async fn each_response_to_a_store_failure_logs_the_cause_once() {
    let (sender, events) = mpsc::channel();
    let _subscriber = tracing::subscriber::set_default(Registry::default().with(Events(sender)));
    let file = std::env::temp_dir().join(format!("tower-offload-events-{}.db", std::process::id()));
    let store = SqlStore::open(&format!("sqlite:{}", file.display())).await.unwrap();
    let (tasks, background) = (Tasks::new(store.clone()), Background::default());
    let work = |_| Ok::<_, Infallible>(());
    let accepted = tasks.track("report").spawn_blocking(&background, work).await.unwrap();
    let mut subscription = tasks.subscribe(accepted.id()).await.unwrap().unwrap();
    while subscription.changed().await.unwrap().is_some() {}
    while tasks.stats().open > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(events.try_recv(), Err(mpsc::TryRecvError::Empty), "there was no failure");

    store.close().await.unwrap();
    for target in [format!("/{}", accepted.id()), format!("/{}/events", accepted.id())] {
        let response = tasks.service().oneshot(Request::get(target).body(String::new()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 503);
        let (level, text) = events.try_recv().unwrap();
        assert_eq!(level, tracing::Level::ERROR);
        assert!(text.starts_with("message=the task store is unavailable: "), "with its cause: {text}");
        assert!(events.try_recv().is_err());
    }
    let error = tasks.track("report").spawn_blocking(&background, work).await.unwrap_err();
    // The writer reports the failed write, and the caller that its task was rejected.
    let all: Vec<_> = events.try_iter().collect();
    let rejected = all.iter().filter(|(level, _)| *level == tracing::Level::DEBUG).map(|(_, text)| text);
    let rejected: Vec<_> = rejected.filter(|text| text.contains("message=task rejected")).collect();
    assert!(rejected.len() == 1 && rejected[0].contains("name=\"report\""), "{all:?}");
    assert_eq!(error.into_response::<Bytes>().status(), 503);
    assert!(events.try_recv().unwrap().1.starts_with("message=the task store is unavailable: "));

    // A flood of requests is not a flood of events.
    let (requests, failed) = (1000, tasks.stats().failed_reads);
    for _ in 0..requests {
        let request = Request::get(format!("/{}", accepted.id())).body(String::new()).unwrap();
        assert_eq!(tasks.service().oneshot(request).await.unwrap().status(), 503);
    }
    assert_eq!(tasks.stats().failed_reads - failed, requests);
    let logged: Vec<_> = events.try_iter().filter(|(level, _)| *level == tracing::Level::ERROR).collect();
    assert!(logged.len() < 500, "{} events", logged.len());
    for suffix in ["", "-wal", "-shm", ".tower-offload.lock"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
    }
}

#[tokio::test]
async fn refused_requests_are_events_and_are_counted() {
    let (sender, events) = mpsc::channel();
    let _subscriber = tracing::subscriber::set_default(Registry::default().with(Events(sender)));
    let (tasks, background) = (Tasks::new(MemoryStore::new()), Background::default());
    let accepted = tasks.track("report").spawn_blocking(&background, |_| Ok::<_, Infallible>(())).await.unwrap();
    let service = tasks.service().max_streams(0);
    let send = async |method: &str, target: &str, status: StatusCode| {
        let request =
            Request::builder().method(method).uri(target).header("accept", "text/html").body(String::new()).unwrap();
        assert_eq!(service.clone().oneshot(request).await.unwrap().status(), status, "{method} {target}");
        let event = events.try_recv().unwrap();
        assert_eq!(event.0, tracing::Level::DEBUG);
        assert!(!event.1.contains(&accepted.id().to_string()), "an id is a capability: {}", event.1);
        event.1
    };
    let page = send("GET", "/", StatusCode::FORBIDDEN).await;
    assert!(page.contains("message=status request denied: not allowed") && page.contains("action=\"page\""), "{page}");
    let cancel = send("DELETE", &format!("/{}", accepted.id()), StatusCode::FORBIDDEN).await;
    assert!(cancel.contains("action=\"cancel\""), "{cancel}");
    let events_of = format!("/{}/events", accepted.id());
    let stream = send("GET", &events_of, StatusCode::SERVICE_UNAVAILABLE).await;
    assert!(stream.contains("message=status request exceeded a limit;limit=\"streams\""), "{stream}");
    assert_eq!((tasks.stats().denied, tasks.stats().shed, tasks.stats().rejected), (2, 1, 0));

    let error = tasks.track("").spawn_blocking(&background, |_| Ok::<_, Infallible>(())).await.unwrap_err();
    assert!(error.is_invalid() && events.try_recv().unwrap().1.contains("the name is empty"));
    assert!(background.shutdown(std::time::Duration::from_secs(60)).await.is_clean());
    let _ = events.try_iter().count();
    let error = tasks.track("late").spawn_blocking(&background, |_| Ok::<_, Infallible>(())).await.unwrap_err();
    assert!(error.is_closed() && events.try_recv().unwrap().1.contains("name=\"late\""));
    assert_eq!(tasks.stats().rejected, 2);
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn service_nested_elsewhere_than_its_base_path_is_an_event() {
    let (sender, events) = mpsc::channel();
    let _subscriber = tracing::subscriber::set_default(Registry::default().with(Events(sender)));
    let tasks = Tasks::new(MemoryStore::new());
    let get = async |app: axum::Router, path: &str| {
        let request = Request::get(path).body(axum::body::Body::empty()).unwrap();
        assert_eq!(app.oneshot(request).await.unwrap().status(), 404, "there is no such task");
        events.try_iter().collect::<Vec<_>>()
    };
    let nested = axum::Router::new().nest_service("/tasks", tasks.service());
    assert_eq!(get(nested.clone(), "/tasks/x").await, []);
    assert_eq!(get(axum::Router::new().fallback_service(tasks.service()), "/tasks/x").await, []);
    let elsewhere = axum::Router::new().nest("/api/v1", nested);
    let found = get(elsewhere.clone(), "/api/v1/tasks/x").await;
    let [(tracing::Level::WARN, text)] = &found[..] else { panic!("{found:?}") };
    assert!(text.contains("nested_at=\"/api/v1/tasks\";base_path=\"/tasks\"") && text.contains("base_path`"), "{text}");
    assert_eq!(get(elsewhere, "/api/v1/tasks/x").await, [], "once");
}
