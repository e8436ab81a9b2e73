//! A server that is offered three times what its cores can run: `cargo run --release --example
//! busy_server`.
//!
//! Runtime and pool share the cores, and the runtime comes first. The excess is rejected at once,
//! without a setting that depends on the work, and the threads are busy all the time.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    routing::{get, post},
};
use hyper::{Request, StatusCode};
use tokio::{runtime, task::JoinSet, time};
use tower::ServiceExt;
use tower_offload::{OffloadLayer, ThreadPool, pool::CpuBudget};

const JOB: Duration = Duration::from_millis(5);
const ROUNDS: u32 = 400;

fn main() -> anyhow::Result<()> {
    let budget = CpuBudget::detect();
    let cpu = budget.pool().build()?;
    let runtime = runtime::Builder::new_multi_thread().worker_threads(budget.runtime_workers()).enable_all().build()?;
    runtime.block_on(overload(cpu))
}

async fn compute() {
    let end = time::Instant::now() + JOB;
    while time::Instant::now() < end {
        std::hint::spin_loop();
    }
}

async fn overload(cpu: ThreadPool) -> anyhow::Result<()> {
    let jobs = Router::new().route("/job", post(compute)).layer(OffloadLayer::new(cpu.clone()));
    let app = jobs.route("/ping", get(async || "pong"));
    let send = |request: Request<Body>| app.clone().oneshot(request);
    let (mut jobs, mut slowest_ping, mut interval) = (JoinSet::new(), Duration::ZERO, time::interval(JOB));
    for _ in 0..ROUNDS {
        let due = interval.tick().await;
        for _ in 0..3 * cpu.threads() {
            jobs.spawn(send(Request::post("/job").body(Body::empty())?));
        }
        send(Request::get("/ping").body(Body::empty())?).await?;
        slowest_ping = slowest_ping.max(due.elapsed());
    }
    let stats = cpu.stats();
    let statuses: Vec<_> = jobs.join_all().await.into_iter().flatten().map(|response| response.status()).collect();
    let count = |status: StatusCode| statuses.iter().filter(|it| **it == status).count();
    let (answered, rejected) = (count(StatusCode::OK), count(StatusCode::SERVICE_UNAVAILABLE));
    println!("{} jobs: {answered} answered, {rejected} rejected; slowest ping {slowest_ping:.1?}", statuses.len());
    let busy = stats.busy_time.as_secs_f64() / (stats.busy_time + stats.idle_time).as_secs_f64();
    println!("{} threads, busy for {:.0} % of the time", cpu.threads(), 100.0 * busy);
    Ok(())
}
