//! Exports the numbers of tasks, jobs and pools to Prometheus. `tasks/observability` has a Grafana
//! board and alert rules for them.
//!
//! ```sh
//! cargo run -p tower-offload-tasks --all-features --example prometheus
//! curl -X POST localhost:3000/reports/7; curl localhost:3000/metrics
//! ```

use std::{env, future::ready, net::Ipv4Addr, thread, time::Duration};

use anyhow::Context;
use axum::{Router, extract::Path, routing};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tower_offload::ThreadPool;
use tower_offload_tasks::{
    SqlStore, Tasks,
    jobs::{Job, Jobs},
};

/// Upper bounds of the histograms, in seconds. Without them a histogram is exported as quantiles,
/// which cannot be added up over processes.
const BUCKETS: [f64; 11] = [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 600.0, 3600.0];

/// Divides 100 by a number.
#[derive(Serialize, Deserialize)]
struct Report(u64);

impl Job for Report {
    const KIND: &'static str = "report";
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let option = |name: &str| env::args().skip_while(|argument| argument != name).nth(1);
    let port = option("--port").as_deref().unwrap_or("3000").parse().context("--port is not a port")?;
    let database = option("--database").unwrap_or_else(|| "sqlite:prometheus.db".to_owned());
    // Before anything else, so that all counters begin at 0.
    let metrics = PrometheusBuilder::new().set_buckets(&BUCKETS)?.install_recorder()?;
    let upkeep = metrics.clone(); // without it, the values of histograms are kept until the next scrape
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_secs(5));
            upkeep.run_upkeep();
        }
    });
    let tasks = Tasks::new(SqlStore::open(&database).await?);
    let work = |report: Report, _| 100_u64.checked_div(report.0).ok_or("division by zero");
    let builder = Jobs::builder(&tasks).blocking_worker(ThreadPool::cpu(), Duration::from_secs(60), work);
    let jobs = builder.start().await?;
    let app = Router::new()
        .route("/metrics", routing::get(move || ready(metrics.render())))
        .route("/reports/{number}", routing::post(async move |Path(number)| jobs.enqueue(Report(number)).await));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.context("cannot listen")?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}
