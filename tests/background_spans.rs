//! Feature `tracing`: the span of a task. Which spans are wanted is remembered for the whole process, by whichever thread
//! comes first, so this is a program of its own.
#![cfg(feature = "tracing")]
#![allow(clippy::unwrap_used)]

use std::{sync::mpsc, time::Duration};

use tower_offload::Background;
use tracing_subscriber::{Registry, layer::SubscriberExt, registry::LookupSpan};

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
