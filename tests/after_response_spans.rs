//! Feature `tracing`: the spans of hooks and tasks, and the log line of a missing layer. A program
//! of its own, because tracing caches per process which spans are enabled.
#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::Empty;
use tower::{Layer, ServiceExt, service_fn};
use tower_offload::{AfterResponse, AfterResponseLayer, Background};
use tracing::Instrument;
use tracing_subscriber::{Registry, layer::SubscriberExt, registry::LookupSpan};

/// Returns the names of the current spans, innermost first.
fn spans() -> Vec<&'static str> {
    tracing::dispatcher::get_default(|dispatch| {
        let registry = dispatch.downcast_ref::<Registry>().unwrap();
        let current = dispatch.current_span();
        let Some(id) = current.id() else { return Vec::new() };
        registry.span(id).unwrap().scope().map(|span| span.name()).collect()
    })
}

#[tokio::test]
async fn hooks_and_tasks_run_in_the_span_of_their_request() {
    let _subscriber =
        tracing::subscriber::set_default(Registry::default().with(tracing_subscriber::layer::Identity::new()));
    let background = Background::default();
    let (tx, rx) = mpsc::channel();
    let service = AfterResponseLayer::new(background.clone()).layer(service_fn(move |request: Request<()>| {
        let after = request.extensions().get::<AfterResponse>().unwrap();
        let [hook, sync, spawned] = std::array::from_fn(|_| tx.clone());
        after.spawn_blocking(move || sync.send(spans()).unwrap()).unwrap();
        after.spawn(async move { spawned.send(spans()).unwrap() }).unwrap();
        after.hook(move |_| hook.send(spans()).unwrap());
        async { Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new())) }
    }));
    // The body is dropped outside of the span, like by a connection.
    let call = service.oneshot(Request::new(())).instrument(tracing::info_span!("request"));
    drop(call.await.unwrap());
    assert_eq!(spans(), [""; 0]);
    background.shutdown(Duration::from_secs(60)).await;
    let expected = [&["request"][..], &["background_task", "request"], &["background_task", "request"]];
    assert_eq!(rx.iter().collect::<Vec<_>>(), expected);
}

/// A writer that keeps everything written to it.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn missing_layer_is_logged_with_the_remedy() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).without_time().finish();
    let _subscriber = tracing::subscriber::set_default(subscriber);
    let app = axum::Router::new().route("/sign-up", axum::routing::get(async |_: AfterResponse| "reached"));
    let request = Request::builder().uri("/sign-up").body(axum::body::Body::empty()).unwrap();
    let response = app.oneshot(request).await.unwrap();
    assert_eq!(response.status(), http::StatusCode::INTERNAL_SERVER_ERROR);
    let line = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    for part in ["ERROR", "add `.layer(AfterResponseLayer::new(background))`", "/sign-up"] {
        assert!(line.contains(part), "{line}");
    }
}

/// Returns the log of a request that registers a task and gets this response, or is dropped.
async fn log_of(status: Option<u16>) -> String {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).without_time();
    let _subscriber = tracing::subscriber::set_default(subscriber.with_max_level(tracing::Level::DEBUG).finish());
    let background = Background::default();
    let mut service = AfterResponseLayer::new(background.clone()).layer(service_fn(async |request: Request<()>| {
        let after = request.extensions().get::<AfterResponse>().unwrap();
        after.task("mail").spawn_blocking(|| ()).unwrap();
        match status {
            Some(status) => {
                Ok::<_, Infallible>(Response::builder().status(status).body(Empty::<bytes::Bytes>::new()).unwrap())
            }
            None => std::future::pending().await,
        }
    }));
    let mut call = tokio_test::task::spawn(tower::Service::call(&mut service, Request::new(())));
    drop(call.poll());
    drop(call);
    background.shutdown(Duration::from_secs(60)).await;
    String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
}

#[tokio::test]
async fn skipped_task_is_logged_with_its_reason() {
    assert!(!log_of(Some(200)).await.contains("skipped"));
    let line = log_of(Some(404)).await;
    assert!(line.contains("DEBUG") && line.contains("task skipped") && line.contains("mail"), "{line}");
    let line = log_of(None).await;
    assert!(line.contains("INFO") && line.contains("task skipped") && line.contains("mail"), "{line}");
}
