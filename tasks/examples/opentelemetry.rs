//! One trace from a request to the first attempt of its job, and one of the second attempt, which is
//! linked to the request: `cargo run -p tower-offload-tasks --all-features --example opentelemetry`,
//! `curl -X POST localhost:3000/reports`.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::{collections::HashMap, env, net::Ipv4Addr, time::Duration};

use axum::{Router, routing::post};
use opentelemetry::{propagation::TextMapPropagator, trace::TraceContextExt, trace::TracerProvider};
use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tower_offload::ThreadPool;
use tower_offload_tasks::{SqlStore, Tasks, jobs};
use tracing::{Instrument, Span, info_span};
use tracing_opentelemetry::{OpenTelemetrySpanExt, layer};
use tracing_subscriber::{Layer, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt};

struct OpenTelemetry(TraceContextPropagator);

impl jobs::Propagator for OpenTelemetry {
    fn context(&self, span: &Span) -> Option<jobs::TraceContext> {
        let mut carrier = HashMap::new();
        self.0.inject_context(&span.context(), &mut carrier);
        jobs::TraceContext::from_carrier(&carrier)
    }
    fn set_parent(&self, span: &Span, parent: &jobs::TraceContext) {
        let _ = span.set_parent(self.0.extract(&parent.to_carrier()));
    }
    fn add_link(&self, span: &Span, linked: &jobs::TraceContext) {
        span.add_link(self.0.extract(&linked.to_carrier()).span().span_context().clone());
    }
}

/// Fails in its first attempt.
#[derive(serde::Serialize, serde::Deserialize)]
struct Report;

impl jobs::Job for Report {
    const KIND: &'static str = "report";
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let option = |name: &str| env::args().skip_while(|argument| argument != name).nth(1);
    let port = option("--port").as_deref().unwrap_or("3000").parse()?;
    let database = option("--database").unwrap_or_else(|| "sqlite:opentelemetry.db".to_owned());
    let exporter = opentelemetry_stdout::SpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter).build();
    let spans = filter_fn(|span| !span.target().starts_with("river")); // River has spans of its own
    let spans = layer().with_tracer(provider.tracer("example")).with_filter(spans);
    tracing_subscriber::registry().with(spans).init();
    let tasks = Tasks::new(SqlStore::open(&database).await?);
    let has_failed = AtomicBool::new(false);
    let work = move |_: Report, _| has_failed.swap(true, Relaxed).then_some(()).ok_or("the printer is on fire");
    let builder = jobs::Jobs::builder(&tasks).propagator(OpenTelemetry(TraceContextPropagator::new()));
    let queue = builder.blocking_worker(ThreadPool::cpu(), Duration::from_secs(60), work).start().await?;
    let report = async move || queue.enqueue(Report).into_future().instrument(info_span!("POST /reports")).await;
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, Router::new().route("/reports", post(report))).await?)
}
