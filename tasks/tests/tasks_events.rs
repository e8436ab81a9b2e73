//! Feature `tracing`: why a store of tasks failed, which clients are not told. Which events are wanted is remembered for the whole process, so
//! this is a program of its own.
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

/// Says what level each event has, and what it says.
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
async fn what_the_store_failed_of_is_one_event_for_each_answer_that_does_not_tell() {
    let (tell, told) = mpsc::channel();
    let _subscriber = tracing::subscriber::set_default(Registry::default().with(Events(tell)));
    let file = std::env::temp_dir().join(format!("tower-offload-events-{}.db", std::process::id()));
    let store = SqlStore::open(&format!("sqlite:{}", file.display())).await.unwrap();
    let (tasks, background) = (Tasks::new(store.clone()), Background::default());
    let accepted = tasks.track("report").run(&background, |_| Ok::<_, Infallible>(())).await.unwrap();
    let mut subscription = tasks.subscribe(accepted.id()).await.unwrap().unwrap();
    while subscription.changed().await.unwrap().is_some() {}
    while tasks.stats().open > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty), "nothing is wrong");

    store.close().await.unwrap();
    for target in [format!("/{}", accepted.id()), format!("/{}/events", accepted.id())] {
        let response = tasks.service().oneshot(Request::get(target).body(()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 503);
        let (level, text) = told.try_recv().unwrap();
        assert_eq!(level, tracing::Level::ERROR);
        assert!(text.starts_with("message=the store of tasks does not answer: "), "with its cause: {text}");
        assert!(told.try_recv().is_err());
    }
    let refused = tasks.track("report").run(&background, |_| Ok::<_, Infallible>(())).await.unwrap_err();
    assert_eq!(refused.into_response::<Bytes>().status(), 503);
    assert!(told.try_recv().unwrap().1.starts_with("message=the store of tasks does not answer: "));
    for suffix in ["", "-wal", "-shm", ".tower-offload.lock"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
    }
}
