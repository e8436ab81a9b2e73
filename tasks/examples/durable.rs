//! Jobs that survive the death of their process: `cargo run --example durable -- --database sqlite:jobs.db --out done.txt`, then
//! `curl -i -X POST 'localhost:3000/jobs?ms=5000&key=first'`, `kill -9` it, start it again, and look into `done.txt`.
//! With `--database postgres://..` several of these share the work. <http://localhost:3000/tasks/> shows all of it.

use std::{
    error::Error, fs::OpenOptions, io, io::Write, net::Ipv4Addr, path::PathBuf, process, thread, time::Duration,
};

use axum::{Router, extract, http::HeaderMap, response::Response, routing};
use clap::Parser;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, signal, sync::oneshot, time};
use tower_offload::ThreadPool;
use tower_offload_tasks::jobs::{Backoff, Durable, Job, Unique};
use tower_offload_tasks::{AcceptError, Accepted, Progress, SqlStore, Tasks, service::Access};

/// Jobs that survive the death of their process
///
/// curl -i -X POST 'http://127.0.0.1:3000/jobs?ms=5000&key=first', then `kill -9` and start it again; or -X POST http://127.0.0.1:3000/poison. The
/// page is http://127.0.0.1:3000/tasks/. Also: /tasks/{id}, /tasks/{id}/events, DELETE /tasks/{id}, /status?task_id={id}. With
/// -H 'Prefer: wait=10' a POST waits for the end
#[derive(Parser)]
struct Options {
    #[arg(long, default_value_t = 3000)]
    port: u16,
    /// sqlite:PATH or postgres://USER@HOST/DATABASE
    #[arg(long, default_value = "sqlite:durable.db")]
    database: String,
    /// Where jobs write their key when they are done
    #[arg(long, default_value = "durable.out")]
    out: PathBuf,
    /// On Postgres: after how many milliseconds without a word a process is given up
    #[arg(long, default_value_t = 15_000)]
    lease: u64,
    /// How many milliseconds a job waits after an attempt that failed
    #[arg(long, default_value_t = 1000)]
    backoff: u64,
    /// How many times a job may begin
    #[arg(long, default_value_t = 25)]
    attempts: u16,
    /// How many seconds there are from SIGTERM or Ctrl-C to the end
    #[arg(long, default_value_t = 10)]
    grace: u64,
}

/// Takes that long, and then writes its key.
#[derive(Serialize, Deserialize)]
struct Append {
    key: String,
    ms: u64,
}

impl Job for Append {
    const KIND: &'static str = "append";
}

/// Kills whatever process works on it.
#[derive(Serialize, Deserialize)]
struct Poison {}

impl Job for Poison {
    const KIND: &'static str = "poison";
    const MAX_ATTEMPTS: u16 = 3;
}

#[derive(Deserialize)]
struct Query {
    #[serde(default)]
    ms: u64,
    key: String,
}

#[derive(Clone)]
struct Site {
    durable: Durable,
    attempts: u16,
}

/// A client that is not sure whether it was heard asks again: the same key is the same job.
async fn append(
    extract::State(site): extract::State<Site>,
    extract::Query(Query { ms, key }): extract::Query<Query>,
    headers: HeaderMap,
) -> Result<Response, AcceptError> {
    let enqueue = site.durable.enqueue(Append { key, ms }).max_attempts(site.attempts);
    let accepted = enqueue.unique(Unique::by_content()).await?;
    Ok(site.durable.tasks().respond(accepted, &headers).await) // with `Prefer: wait=n` at its end, if that comes in time
}

async fn poison(extract::State(site): extract::State<Site>) -> Result<Accepted, AcceptError> {
    site.durable.enqueue(Poison {}).await
}

/// At least once: if the process dies between the two last lines it is written once more. Who reads must know the key.
fn work(out: &PathBuf, job: &Append, progress: &Progress) -> Result<(), io::Error> {
    for step in 0..10 {
        if progress.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        thread::sleep(Duration::from_millis(job.ms) / 10); // stands for a tenth of the work
        progress.set(f64::from(step + 1) / 10.0, job.key.as_str());
    }
    let mut file = OpenOptions::new().create(true).append(true).open(out)?;
    file.write_all(format!("{}\n", job.key).as_bytes())?;
    file.sync_data()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(io::stderr).init(); // a store that fails says so
    let Options { port, database, out, lease, backoff, attempts, grace } = Options::parse();
    let grace = Duration::from_secs(grace);
    let store = SqlStore::open_with_lease(&database, Duration::from_millis(lease.max(1))).await?;
    let tasks = Tasks::new(store);
    let durable = Durable::builder(&tasks)
        .backoff(Backoff::fixed(Duration::from_millis(backoff)))
        .sync_worker(ThreadPool::blocking(32), Duration::from_secs(600), move |job, progress| {
            work(&out, &job, &progress)
        })
        .sync_worker(ThreadPool::blocking(1), Duration::from_secs(60), |_: Poison, _| -> Result<(), String> {
            process::abort()
        })
        .start()
        .await?;
    let app = Router::new()
        .route("/jobs", routing::post(append))
        .route("/poison", routing::post(poison))
        .route_service("/status", tasks.status_alias())
        // On a developer's machine everybody may do everything.
        .nest_service("/tasks", tasks.service().authorize(|_, _| Access::All))
        .with_state(Site { durable: durable.clone(), attempts });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let interrupted = interrupted()?;
    println!("listening on http://{}, the page is at /tasks/", listener.local_addr()?);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async { drop(stopped.await) });
    let server = tokio::spawn(server.into_future());
    interrupted.await;
    drop(stop);
    tasks.end_streams(); // whoever watches a job would hold up the server as long as that lasts
    let report = durable.drain(grace).await; // what has not ended by then begins once more
    drop(time::timeout(Duration::from_secs(1), server).await);
    println!("stopped: {report}; {} records not written", tasks.shutdown(grace).await.unwritten.len());
    Ok(())
}

#[cfg(unix)]
fn interrupted() -> io::Result<impl Future> {
    use signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    })
}

#[cfg(not(unix))]
fn interrupted() -> io::Result<impl Future> {
    Ok(signal::ctrl_c())
}
