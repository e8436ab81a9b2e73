//! Events of feature `tracing`: the causes of store failures, which responses do not disclose.
//!
//! This is a binary of its own because tracing caches the interest in events per process.
#![cfg(all(feature = "tracing", feature = "sqlite"))]
#![allow(clippy::unwrap_used)]

use std::{convert::Infallible, fmt, sync::mpsc};

use bytes::Bytes;
use http::Request;
use tower::ServiceExt;
use tower_offload::Background;
use tower_offload_tasks::{SqlStore, Tasks};
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
        let response = tasks.service().oneshot(Request::get(target).body(()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 503);
        let (level, text) = events.try_recv().unwrap();
        assert_eq!(level, tracing::Level::ERROR);
        assert!(text.starts_with("message=the task store is unavailable: "), "with its cause: {text}");
        assert!(events.try_recv().is_err());
    }
    let error = tasks.track("report").spawn_blocking(&background, work).await.unwrap_err();
    assert_eq!(error.into_response::<Bytes>().status(), 503);
    assert!(events.try_recv().unwrap().1.starts_with("message=the task store is unavailable: "));
    for suffix in ["", "-wal", "-shm", ".tower-offload.lock"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
    }
}
