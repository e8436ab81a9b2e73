//! Tasks whose status clients can poll or follow.
//!
//! ```sh
//! cargo run -p tower-offload-tasks --all-features --example tasks
//! curl -i -X POST 'http://localhost:3000/reports?ms=5000&fail=0'
//! ```
//!
//! The page is at <http://localhost:3000/tasks/>. With `--store sqlite:tasks.db` the records
//! survive a restart.

use std::{io, net::Ipv4Addr, thread, time::Duration};

use anyhow::Context;
use axum::{Router, extract, routing};
use clap::Parser;
use tokio::net::TcpListener;
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background,
    axum::{serve, shutdown_signal},
};
use tower_offload_tasks::{AcceptError, Accepted, MemoryStore, SqlStore, Tasks, service::Access};

/// Timeout of the shutdown: requests, work, records.
const GRACE: Duration = Duration::from_secs(10);

/// Tasks whose status clients can poll or follow
///
/// Start a task with curl -i -X POST 'http://127.0.0.1:3000/reports?ms=5000&fail=0'. Its status is
/// at the `Location` of the response, the page at http://127.0.0.1:3000/tasks/. Other paths:
/// /tasks/{id}/events, DELETE /tasks/{id}, /status?task_id={id}, /tasks/openapi.json
#[derive(Parser)]
struct Options {
    /// Port to listen on; 0 takes any that is free
    #[arg(long, default_value_t = 3000)]
    port: u16,
    /// memory, sqlite:PATH or postgres://USER@HOST/DATABASE
    #[arg(long, default_value = "memory")]
    store: String,
}

#[derive(serde::Deserialize)]
struct Query {
    #[serde(default)]
    ms: u64,
    #[serde(default)]
    fail: u8,
}

async fn report(
    extract::State(tasks): extract::State<Tasks>,
    extract::Query(Query { ms, fail }): extract::Query<Query>,
    after: AfterResponse,
) -> Result<Accepted, AcceptError> {
    let work = move |progress: tower_offload_tasks::Progress| {
        for step in 1..=100 {
            if progress.is_cancelled() {
                return Err("cancelled".to_owned());
            }
            thread::sleep(Duration::from_millis(ms) / 100); // the actual work
            progress.set(f64::from(step) / 100.0, format!("{step} of 100 pages"));
        }
        if fail == 0 { Ok(serde_json::json!({"pages": 100})) } else { Err("the printer is on fire".to_owned()) }
    };
    // The response is a 202 as soon as the record is stored. The work starts after the response.
    tasks.track("report").spawn_blocking(&after, work).await
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Options { port, store } = Options::parse();
    // Shows errors of the store.
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(io::stderr).init();
    let tasks = match store.as_str() {
        "memory" => Tasks::new(MemoryStore::new()),
        url => Tasks::new(SqlStore::open(url).await.context("cannot open the store; choose another one with --store")?),
    };
    tasks.start().await.context("cannot use the store")?;
    let background = Background::default();
    // Permits everything, because the server listens on the loopback interface only.
    let service = tasks.service().authorize(|_, _| Access::All);
    let app = Router::new()
        .route("/reports", routing::post(report))
        .route_service("/status", tasks.status_alias())
        .nest_service("/tasks", service)
        .layer(AfterResponseLayer::new(background.clone()))
        .with_state(tasks.clone());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
    let listener = listener.with_context(|| format!("cannot listen on port {port}; choose another one with --port"))?;
    let signal = tasks.end_streams_on(shutdown_signal()?); // otherwise the server waits for open event streams
    println!("listening on http://{}, the page is at /tasks/", listener.local_addr()?);
    let report = serve(listener, app).shutdown(signal, GRACE, &background).await;
    println!("stopped: {report}; {}", tasks.shutdown(report.remaining()).await);
    Ok(())
}
