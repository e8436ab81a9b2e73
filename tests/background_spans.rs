//! Spans and events of background tasks. The first subscriber that sees a callsite decides for the
//! whole process whether the callsite is enabled, so these tests have their own binary.
#![allow(clippy::unwrap_used)]

use std::{sync::mpsc, time::Duration};

use tower_offload::Background;
use tracing_subscriber::{
    Layer, Registry,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

/// Returns the names of the current spans, innermost first.
fn spans() -> Vec<&'static str> {
    tracing::dispatcher::get_default(|dispatch| {
        let registry = dispatch.downcast_ref::<Registry>().unwrap();
        let current = dispatch.current_span();
        let span = registry.span(current.id().unwrap()).unwrap();
        span.scope().map(|span| span.name()).collect()
    })
}

#[tokio::test]
async fn each_task_has_a_span_within_the_span_of_its_submission() {
    let _subscriber =
        tracing::subscriber::set_default(Registry::default().with(tracing_subscriber::layer::Identity::new()));
    let background = Background::default();
    let (sender, receiver) = mpsc::channel();
    let (blocking, other) = (sender.clone(), sender);
    tracing::info_span!("request").in_scope(|| {
        background.task("blocking").spawn_blocking(move || blocking.send(spans()).unwrap()).unwrap();
        background
            .task("async")
            .spawn(async move {
                tokio::task::yield_now().await;
                other.send(spans()).unwrap();
            })
            .unwrap();
    });
    background.shutdown(Duration::from_secs(60)).await;
    assert_eq!(receiver.iter().collect::<Vec<_>>(), [["background_task", "request"]; 2]);
}

/// Sends the level of each event.
struct Levels(mpsc::Sender<tracing::Level>);

impl<S: tracing::Subscriber> Layer<S> for Levels {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        self.0.send(*event.metadata().level()).unwrap();
    }
}

#[tokio::test]
async fn a_failure_without_a_handler_is_one_event() {
    let (sender, levels) = mpsc::channel();
    let _subscriber = tracing::subscriber::set_default(Registry::default().with(Levels(sender)));
    let background = Background::default();
    background.spawn_blocking(|| ()).unwrap();
    background.spawn(async {}).unwrap();
    assert!(background.shutdown(Duration::from_secs(60)).await.is_clean());
    assert_eq!(levels.try_iter().count(), 0);

    let background = Background::default();
    background.spawn_blocking(|| Err("no")).unwrap();
    background.shutdown(Duration::from_secs(60)).await;
    assert_eq!(levels.try_iter().collect::<Vec<_>>(), [tracing::Level::ERROR]);
}
