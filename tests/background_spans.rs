//! Feature `tracing`: the span of a task, and its events. Which spans are wanted is remembered for the whole process, by whichever thread
//! comes first, so this is a program of its own.
#![allow(clippy::unwrap_used)]

use std::{sync::mpsc, time::Duration};

use tower_offload::Background;
use tracing_subscriber::{
    Layer, Registry,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

/// The names of the spans around this code, innermost first.
fn spans() -> Vec<&'static str> {
    tracing::dispatcher::get_default(|dispatch| {
        let registry = dispatch.downcast_ref::<Registry>().unwrap();
        let current = dispatch.current_span();
        let span = registry.span(current.id().unwrap()).unwrap();
        span.scope().map(|span| span.name()).collect()
    })
}

#[tokio::test]
async fn each_task_has_a_span_of_its_own_within_that_of_its_registration() {
    let _subscriber =
        tracing::subscriber::set_default(Registry::default().with(tracing_subscriber::layer::Identity::new()));
    let background = Background::default();
    let (tell, told) = mpsc::channel();
    let (sync, other) = (tell.clone(), tell);
    tracing::info_span!("request").in_scope(|| {
        background.task("sync").run(move || sync.send(spans()).unwrap()).unwrap();
        background
            .task("async")
            .spawn(async move {
                tokio::task::yield_now().await;
                other.send(spans()).unwrap();
            })
            .unwrap();
    });
    background.drain(Duration::from_secs(60)).await;
    assert_eq!(told.iter().collect::<Vec<_>>(), [["background_task", "request"]; 2]);
}

/// Says of what level each event is.
struct Levels(mpsc::Sender<tracing::Level>);

impl<S: tracing::Subscriber> Layer<S> for Levels {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        self.0.send(*event.metadata().level()).unwrap();
    }
}

#[tokio::test]
async fn a_drain_says_nothing_and_a_failure_without_a_sink_is_one_event_e16_d7() {
    let (tell, told) = mpsc::channel();
    let _subscriber = tracing::subscriber::set_default(Registry::default().with(Levels(tell)));
    let background = Background::default();
    background.run(|| ()).unwrap();
    background.spawn(async {}).unwrap();
    assert!(background.drain(Duration::from_secs(60)).await.is_clean());
    assert_eq!(told.try_iter().count(), 0);

    let background = Background::default();
    background.run(|| Err("no")).unwrap();
    background.drain(Duration::from_secs(60)).await;
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [tracing::Level::ERROR]);
}
