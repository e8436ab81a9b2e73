//! Feature `tracing`: the spans of hooks and tasks (5.10), and the log line of a forgotten layer (5.12). Which spans are wanted is
//! remembered for the whole process, by whichever thread comes first, so this is a program of its own.
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

/// The names of the spans around this code, innermost first.
fn spans() -> Vec<&'static str> {
    tracing::dispatcher::get_default(|dispatch| {
        let registry = dispatch.downcast_ref::<Registry>().unwrap();
        let current = dispatch.current_span();
        let Some(id) = current.id() else { return Vec::new() };
        registry.span(id).unwrap().scope().map(|span| span.name()).collect()
    })
}

#[tokio::test]
async fn hooks_and_tasks_are_in_the_trace_of_their_request_5_10() {
    let _subscriber =
        tracing::subscriber::set_default(Registry::default().with(tracing_subscriber::layer::Identity::new()));
    let background = Background::default();
    let (tell, told) = mpsc::channel();
    let service = AfterResponseLayer::new(background.clone()).layer(service_fn(move |request: Request<()>| {
        let after = request.extensions().get::<AfterResponse>().unwrap();
        let [hook, sync, spawned] = std::array::from_fn(|_| tell.clone());
        after.run(move || sync.send(spans()).unwrap()).unwrap();
        after.spawn(async move { spawned.send(spans()).unwrap() }).unwrap();
        after.hook(move |_| hook.send(spans()).unwrap());
        async { Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new())) }
    }));
    // The body is dropped outside of the span, as by a connection.
    let call = service.oneshot(Request::new(())).instrument(tracing::info_span!("request"));
    drop(call.await.unwrap());
    assert_eq!(spans(), [""; 0]);
    background.drain(Duration::from_secs(60)).await;
    let expected = [&["request"][..], &["background_task", "request"], &["background_task", "request"]];
    assert_eq!(told.iter().collect::<Vec<_>>(), expected);
}

/// Keeps what is written.
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
async fn a_forgotten_layer_is_logged_by_name_5_12() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).without_time().finish();
    let _subscriber = tracing::subscriber::set_default(subscriber);
    let app = axum::Router::new().route("/sign-up", axum::routing::get(async |_: AfterResponse| "reached"));
    let request = Request::builder().uri("/sign-up").body(axum::body::Body::empty()).unwrap();
    let response = app.oneshot(request).await.unwrap();
    assert_eq!(response.status(), http::StatusCode::INTERNAL_SERVER_ERROR);
    let line = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(line.contains("ERROR") && line.contains("AfterResponseLayer") && line.contains("/sign-up"), "{line}");
}
