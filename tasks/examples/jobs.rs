//! Jobs that survive a crash of their process.
//!
//! ```sh
//! cargo run -p tower-offload-tasks --all-features --example jobs
//! curl -i -X POST 'http://localhost:3000/jobs?ms=5000&key=first'
//! ```
//!
//! Kill the process with `kill -9`, start it again, and look into `jobs.out`. With `--database
//! postgres://..` several processes share the jobs. The page is at <http://localhost:3000/tasks/>.

use std::{
    fmt,
    fs::OpenOptions,
    io::{self, Write},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process, thread,
    time::Duration,
};

use anyhow::Context;
use axum::{Router, extract, http::HeaderMap, response::Response, routing};
use clap::Parser;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tower_offload::{
    ThreadPool,
    axum::{serve, shutdown_signal},
};
use tower_offload_tasks::{
    AcceptError, Accepted, SqlStore, Tasks,
    jobs::{self, Backoff, Job, Jobs, Unique},
    service::Access,
};

/// Jobs that survive a crash of their process
///
/// Enqueue a job with curl -i -X POST 'http://127.0.0.1:3000/jobs?ms=5000&key=first', kill the
/// process with `kill -9`, and start it again. With &sequence=S its line is `S first`, and jobs of
/// that sequence run one at a time. With &fail=2 its first two attempts fail. POST /poison enqueues
/// a job that crashes the process. The page is at http://127.0.0.1:3000/tasks/. Other paths:
/// /tasks/{id}, /tasks/{id}/events, DELETE /tasks/{id}, /status?task_id={id}. With -H 'Prefer:
/// wait=10' a POST waits for the result
#[derive(Parser)]
struct Options {
    /// Port to listen on; 0 takes any that is free
    #[arg(long, default_value_t = 3000)]
    port: u16,
    /// sqlite:PATH or postgres://USER@HOST/DATABASE
    #[arg(long, default_value = "sqlite:jobs.db")]
    database: String,
    /// File to which each job appends a line: its sequence, if it has one, and its key
    #[arg(long, default_value = "jobs.out")]
    out: PathBuf,
    /// Lease of a process in milliseconds (Postgres)
    #[arg(long, default_value_t = 15_000, value_parser = clap::value_parser!(u64).range(1..))]
    lease: u64,
    /// Delay before a failed job is retried, in milliseconds
    #[arg(long, default_value_t = 1000)]
    backoff: u64,
    /// Maximum number of attempts of a job
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u16).range(1..=32_767))]
    attempts: u16,
    /// Grace period after SIGTERM or Ctrl-C in seconds
    #[arg(long, default_value_t = 10)]
    grace: u64,
}

/// Appends a line to the file after `ms` milliseconds. It is also the query of the request.
#[derive(Serialize, Deserialize)]
struct Append {
    key: Word,
    #[serde(default)]
    ms: Millis,
    /// Jobs of one sequence run one at a time, in the order in which they were enqueued. It is the
    /// first word of the line.
    #[serde(default)]
    sequence: Option<Word>,
    /// The number of attempts that fail, the first ones.
    #[serde(default)]
    fail: u32,
}

impl Job for Append {
    const KIND: &'static str = "append";
}

/// A part of a line.
#[derive(Serialize, Deserialize)]
#[serde(try_from = "String")]
struct Word(String);

impl TryFrom<String> for Word {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_word = !text.contains(|it: char| it.is_whitespace() || it.is_control());
        if is_word && (1..=200).contains(&text.len()) {
            Ok(Self(text))
        } else {
            Err("1 to 200 bytes without spaces and control characters are allowed")
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Maximum time of an attempt.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A time for which a closure, which cannot be stopped, holds its thread.
#[derive(Default, Serialize, Deserialize)]
#[serde(try_from = "u64")]
struct Millis(u64);

impl TryFrom<u64> for Millis {
    type Error = String;

    fn try_from(millis: u64) -> Result<Self, Self::Error> {
        if Duration::from_millis(millis) < TIMEOUT {
            Ok(Self(millis))
        } else {
            Err(format!("less than {} are allowed, since an attempt times out then", TIMEOUT.as_millis()))
        }
    }
}

/// Crashes the process that runs it.
#[derive(Serialize, Deserialize)]
struct Poison {}

impl Job for Poison {
    const KIND: &'static str = "poison";
    const MAX_ATTEMPTS: u16 = 3;
}

#[derive(Clone)]
struct App {
    jobs: Jobs,
    attempts: u16,
}

/// Enqueues a job. A client that got no response can safely repeat the request, because the same
/// query is the same job.
async fn append(
    extract::State(app): extract::State<App>,
    extract::Query(job): extract::Query<Append>,
    headers: HeaderMap,
) -> Result<Response, AcceptError> {
    let sequence = job.sequence.as_ref().map(Word::to_string);
    let mut enqueue = app.jobs.enqueue(job).max_attempts(app.attempts);
    if let Some(sequence) = sequence {
        enqueue = enqueue.sequence(sequence);
    }
    let accepted = enqueue.unique(Unique::by_content()).await?;
    Ok(app.jobs.tasks().respond(accepted, &headers).await)
}

async fn poison(extract::State(app): extract::State<App>) -> Result<Accepted, AcceptError> {
    app.jobs.enqueue(Poison {}).await
}

/// Works in ten steps. If the process crashes after the write, the job runs again and the line is
/// written twice, so readers of the file must ignore duplicates.
fn work(out: &Path, job: &Append, context: &jobs::Context) -> Result<(), io::Error> {
    for step in 0..10 {
        thread::sleep(Duration::from_millis(job.ms.0) / 10); // the actual work
        if context.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        context.set(f64::from(step + 1) / 10.0, job.key.0.as_str());
    }
    if context.attempt() <= job.fail {
        return Err(io::Error::other(format!("the first {} attempts fail", job.fail)));
    }
    let line = match &job.sequence {
        Some(sequence) => format!("{sequence} {}\n", job.key),
        None => format!("{}\n", job.key),
    };
    let mut file = OpenOptions::new().create(true).append(true).open(out)?;
    file.write_all(line.as_bytes())?; // in one piece, because other processes write too
    file.sync_data()
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Options { port, database, out, lease, backoff, attempts, grace } = Options::parse();
    // Shows errors of the database.
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(io::stderr).init();
    let grace = Duration::from_secs(grace);
    let store = SqlStore::open_with_lease(&database, Duration::from_millis(lease)).await;
    let tasks = Tasks::new(store.context("cannot open the database; choose another one with --database")?);
    let jobs = Jobs::builder(&tasks)
        .backoff(Backoff::fixed(Duration::from_millis(backoff)))
        .blocking_worker(ThreadPool::blocking(32), TIMEOUT, move |job, context| work(&out, &job, &context))
        .blocking_worker(ThreadPool::blocking(1), Duration::from_secs(60), |_: Poison, _| -> Result<(), String> {
            process::abort()
        })
        .start()
        .await
        .context("cannot start the job queue")?;
    let app = Router::new()
        .route("/jobs", routing::post(append))
        .route("/poison", routing::post(poison))
        .route_service("/status", tasks.status_alias())
        // Permits everything, because the server listens on the loopback interface only. Any page
        // in a browser on this host can nevertheless send `POST /jobs` and `POST /poison`. A server
        // with users must authenticate them, and refuse requests of other origins.
        .nest_service("/tasks", tasks.service().authorize(|_, _| Access::All))
        .with_state(App { jobs: jobs.clone(), attempts });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
    let listener = listener.with_context(|| format!("cannot listen on port {port}; choose another one with --port"))?;
    // Event streams would hold up the server, and a job that starts now would only be interrupted.
    let signal = jobs.stop_claiming_on(tasks.end_streams_on(shutdown_signal()?));
    println!("listening on http://{}, the page is at /tasks/", listener.local_addr()?);
    let server = serve(listener, app).shutdown(signal, grace, None).await;
    let jobs = jobs.shutdown(server.remaining()).await;
    println!("stopped: {server}; {jobs}; {}", tasks.shutdown(server.remaining()).await);
    Ok(())
}
