//! Traces across the queue, as an OpenTelemetry exporter gets them. The subscriber is global, because
//! closures run on the threads of a pool.
#![allow(clippy::unwrap_used)]

mod databases;

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Mutex, Once,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry::{
    propagation::TextMapPropagator,
    trace::{SpanId, SpanKind, Status, TraceContextExt, TracerProvider},
};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use serde::{Deserialize, Serialize};
use tower_offload::{Background, ThreadPool};
use tower_offload_tasks::{
    SqlStore, TaskId, Tasks,
    jobs::{Backoff, Job, Jobs, JobsBuilder, Propagator, TraceContext},
};
use tower_offload_tests::eventually;
use tracing::{Instrument, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Registry, layer::SubscriberExt};

use self::databases::{OnFile, OnServer};

const LONG: Duration = Duration::from_secs(60);

/// The spans that have ended, of all tests.
static EXPORTED: Mutex<Vec<SpanData>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct InMemory;

impl SpanExporter for InMemory {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        EXPORTED.lock().unwrap().extend(batch);
        Ok(())
    }
}

/// Returns the exported spans with this value of an attribute.
fn exported(key: &str, value: impl ToString) -> Vec<SpanData> {
    let value = value.to_string();
    let is_wanted =
        |span: &&SpanData| span.attributes.iter().any(|it| it.key.as_str() == key && it.value.as_str() == value);
    EXPORTED.lock().unwrap().iter().filter(is_wanted).cloned().collect()
}

fn attribute(span: &SpanData, key: &str) -> String {
    let found = span.attributes.iter().find(|it| it.key.as_str() == key);
    found.map(|it| it.value.to_string()).unwrap_or_default()
}

fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let provider = SdkTracerProvider::builder().with_simple_exporter(InMemory).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("tests"));
        tracing::subscriber::set_global_default(Registry::default().with(layer)).unwrap();
    });
}

struct OpenTelemetry(TraceContextPropagator);

impl Propagator for OpenTelemetry {
    fn context(&self, span: &Span) -> Option<TraceContext> {
        let mut carrier = HashMap::new();
        self.0.inject_context(&span.context(), &mut carrier);
        TraceContext::from_carrier(&carrier)
    }

    fn set_parent(&self, span: &Span, parent: &TraceContext) {
        span.set_parent(self.0.extract(&parent.to_carrier())).unwrap();
    }

    fn add_link(&self, span: &Span, linked: &TraceContext) {
        span.add_link(self.0.extract(&linked.to_carrier()).span().span_context().clone());
    }
}

/// Fails so many times.
#[derive(Serialize, Deserialize)]
struct Flaky(usize);

impl Job for Flaky {
    const KIND: &'static str = "flaky";
}

/// The same, with a worker that runs a future.
#[derive(Serialize, Deserialize)]
struct FlakyAsync(usize);

impl Job for FlakyAsync {
    const KIND: &'static str = "flaky-async";
}

fn workers(builder: JobsBuilder) -> JobsBuilder {
    let (attempts, attempts_async) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = |attempts: &AtomicUsize, failures| {
        let attempt = attempts.fetch_add(1, Relaxed);
        if attempt < failures { Err(format!("attempt {attempt} has failed")) } else { Ok(()) }
    };
    builder
        .backoff(Backoff::fixed(Duration::ZERO))
        .propagator(OpenTelemetry(TraceContextPropagator::new()))
        .blocking_worker(ThreadPool::blocking(1), LONG, move |job: Flaky, _| {
            info_span!("inside").in_scope(|| work(&attempts, job.0))
        })
        .worker(LONG, move |job: FlakyAsync, _| {
            let result = work(&attempts_async, job.0);
            async move { result }.instrument(info_span!("inside"))
        })
}

async fn start(url: &str, configure: impl FnOnce(JobsBuilder) -> JobsBuilder) -> (Tasks, Jobs) {
    install();
    let tasks = Tasks::new(SqlStore::open(url).await.unwrap());
    let jobs = configure(Jobs::builder(&tasks)).start().await.unwrap();
    (tasks, jobs)
}

async fn stop((tasks, jobs): (Tasks, Jobs)) {
    assert!(jobs.shutdown(LONG).await.is_clean() && tasks.shutdown(LONG).await.is_clean());
}

/// Waits until this number of attempts of a job have ended. Returns their spans.
async fn attempts(id: TaskId, count: usize) -> Vec<SpanData> {
    eventually("the attempts end", async || exported("id", id).len() >= count).await;
    let mut spans = exported("id", id);
    spans.sort_by_key(|span| attribute(span, "attempt"));
    spans
}

/// Returns the span in which a job is enqueued, and a way to find it.
fn request(name: &str) -> Span {
    info_span!(parent: None, "request", name)
}

async fn exported_request(name: &str) -> SpanData {
    eventually("the request ends", async || !exported("name", name).is_empty()).await;
    exported("name", name).remove(0)
}

/// The first attempt is part of the request's trace. A later one begins a trace that is linked to
/// the request.
fn assert_related(request: &SpanData, attempts: &[SpanData], kind: &str) {
    let [first, second] = attempts else { panic!("{attempts:?}") };
    assert_eq!(first.span_context.trace_id(), request.span_context.trace_id());
    assert_eq!(first.parent_span_id, request.span_context.span_id());
    assert!(first.links.is_empty() && first.parent_span_is_remote, "{first:?}");
    assert_ne!(second.span_context.trace_id(), request.span_context.trace_id());
    assert_eq!(second.parent_span_id, SpanId::INVALID);
    let linked: Vec<_> = second.links.iter().map(|link| link.span_context.span_id()).collect();
    assert_eq!(linked, [request.span_context.span_id()]);
    for (attempt, end, number) in [(first, "failed", "1"), (second, "succeeded", "2")] {
        assert_eq!((&*attempt.name, &attempt.span_kind), (&*format!("job {kind}"), &SpanKind::Consumer));
        assert_eq!([attribute(attempt, "end"), attribute(attempt, "attempt")], [end, number]);
        assert_eq!([attribute(attempt, "kind"), attribute(attempt, "queue")], [kind, "default"]);
        let id = attempt.span_context.span_id();
        let exported = EXPORTED.lock().unwrap();
        assert!(exported.iter().any(|span| span.name == "inside" && span.parent_span_id == id), "{exported:?}");
    }
    assert_eq!((attribute(first, "class"), attribute(second, "class")), ("error".to_owned(), String::new()));
    assert_eq!(first.status, Status::error("attempt 0 has failed"));
    assert_eq!(second.status, Status::Unset);
}

async fn first_attempt_is_a_child_and_the_second_one_is_linked(url: &str, name: &str) {
    let queue = start(url, workers).await;
    let (blocking, future) = (format!("{name} blocking"), format!("{name} future"));
    // Both at once, because a retry waits for River's next poll.
    let id = queue.1.enqueue(Flaky(1)).into_future().instrument(request(&blocking)).await.unwrap().id();
    let id_async = queue.1.enqueue(FlakyAsync(1)).into_future().instrument(request(&future)).await.unwrap().id();
    assert_related(&exported_request(&blocking).await, &attempts(id, 2).await, "flaky");
    assert_related(&exported_request(&future).await, &attempts(id_async, 2).await, "flaky-async");

    let context = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Some("a=1")).unwrap();
    let id = queue.1.enqueue(Flaky(0)).trace_context(context).await.unwrap().id();
    let given = attempts(id, 1).await.remove(0);
    assert_eq!(given.span_context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(given.parent_span_id.to_string(), "b7ad6b7169203331");
    assert_eq!(given.span_context.trace_state().header(), "a=1");
    stop(queue).await;
}

/// Fields of the metadata, as another client may write them.
const MALFORMED: [&str; 5] = [
    r#"{"traceparent": 1}"#,
    r#"{"traceparent": {"a": []}, "tracestate": null}"#,
    r#"{"traceparent": "00-0-0-01"}"#,
    r#"{"traceparent": "", "tracestate": "a=1"}"#,
    "too long",
];

async fn malformed_trace_context_of_another_client_does_no_harm(url: &str, set_metadata: impl AsyncFn(i64, String)) {
    let (tasks, jobs) = start(url, |builder| builder.queue("default", 1)).await;
    let mut ids = Vec::new();
    for (index, metadata) in MALFORMED.iter().enumerate() {
        ids.push(jobs.enqueue(Flaky(0)).await.unwrap().id());
        let long = || format!(r#"{{"traceparent": "00-{}"}}"#, "0".repeat(1 << 20));
        let metadata = if *metadata == "too long" { long() } else { (*metadata).to_owned() };
        set_metadata(index as i64 + 1, metadata).await;
    }
    stop((tasks, jobs)).await;
    let queue = start(url, workers).await;
    for id in ids {
        let attempt = attempts(id, 1).await.remove(0);
        assert_eq!((attempt.parent_span_id, attempt.links.len()), (SpanId::INVALID, 0));
        assert_eq!(attribute(&attempt, "end"), "succeeded");
    }
    stop(queue).await;
}

mod on_sqlite {
    use super::{OnFile, sqlx_set};

    #[tokio::test(flavor = "multi_thread")]
    async fn first_attempt_is_a_child_and_the_second_one_is_linked() {
        let file = OnFile::fresh();
        super::first_attempt_is_a_child_and_the_second_one_is_linked(&file.url(), "sqlite").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn malformed_trace_context_of_another_client_does_no_harm() {
        let file = OnFile::fresh();
        let set = async |id, metadata| {
            let set = sqlx_set("UPDATE river_job SET metadata = jsonb_patch(metadata, $2) WHERE id = $1", id, metadata);
            assert_eq!(set.execute(&mut file.connect().await).await.unwrap().rows_affected(), 1);
        };
        super::malformed_trace_context_of_another_client_does_no_harm(&file.url(), set).await;
    }
}

mod on_postgres {
    use super::{OnServer, sqlx_set};

    #[tokio::test(flavor = "multi_thread")]
    async fn first_attempt_is_a_child_and_the_second_one_is_linked() {
        let Some(server) = OnServer::fresh().await else { return };
        super::first_attempt_is_a_child_and_the_second_one_is_linked(&server.url(), "postgres").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn malformed_trace_context_of_another_client_does_no_harm() {
        let Some(server) = OnServer::fresh().await else { return };
        let set = async |id, metadata| {
            let set =
                sqlx_set("UPDATE river_job SET metadata = metadata || $2::text::jsonb WHERE id = $1", id, metadata);
            assert_eq!(set.execute(&mut server.connect().await).await.unwrap().rows_affected(), 1);
        };
        super::malformed_trace_context_of_another_client_does_no_harm(&server.url(), set).await;
    }
}

/// Returns a statement with a row of River's table and fields of its metadata.
fn sqlx_set<DB>(statement: &'static str, id: i64, metadata: String) -> sqlx::query::Query<'static, DB, DB::Arguments>
where
    DB: sqlx::Database,
    i64: sqlx::Encode<'static, DB> + sqlx::Type<DB>,
    String: sqlx::Encode<'static, DB> + sqlx::Type<DB>,
{
    sqlx::query(statement).bind(id).bind(metadata)
}

struct Panics;

impl Propagator for Panics {
    fn context(&self, _: &Span) -> Option<TraceContext> {
        panic!("no context")
    }

    fn set_parent(&self, _: &Span, _: &TraceContext) {
        panic!("no parent")
    }

    fn add_link(&self, _: &Span, _: &TraceContext) {
        panic!("no link")
    }
}

#[tokio::test]
async fn propagator_that_panics_has_no_effect() {
    let file = OnFile::fresh();
    let queue = start(&file.url(), |builder| workers(builder).propagator(Panics)).await;
    let context = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None);
    let without = queue.1.enqueue(Flaky(0)).await.unwrap().id();
    let with = queue.1.enqueue(FlakyAsync(0)).trace_context(context.unwrap()).await.unwrap().id();
    for id in [without, with] {
        let attempt = attempts(id, 1).await.remove(0);
        assert_eq!((attempt.parent_span_id, attempt.links.len()), (SpanId::INVALID, 0));
    }
    stop(queue).await;
}

#[tokio::test]
async fn task_is_part_of_the_trace_of_its_request() {
    install();
    let (tasks, background) = (Tasks::new(tower_offload_tasks::MemoryStore::new()), Background::default());
    let work = |_| async { Ok::<_, Infallible>(()) };
    let _accepted = tasks.track("tracked").spawn(&background, work).instrument(request("of a task")).await.unwrap();
    let request = exported_request("of a task").await;
    eventually("the task ends", async || !exported("name", "tracked").is_empty()).await;
    let task = exported("name", "tracked").remove(0);
    assert_eq!(task.name, "background_task");
    assert_eq!(task.span_context.trace_id(), request.span_context.trace_id());
    assert_eq!(task.parent_span_id, request.span_context.span_id());
}
