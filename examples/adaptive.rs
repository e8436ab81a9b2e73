//! Short handlers that run where they are called: `cargo run --release --example adaptive`.
//!
//! A cache answers nearly every request in microseconds, so a hop to the pool would take longer
//! than the handler. After a miss, which computes, the handler is offloaded for a minute.

use std::{
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, routing::get};
use tokio::time::Instant;
use tower::{Service, ServiceExt};
use tower_offload::{OffloadLayer, ThreadPool};

static IS_CACHED: AtomicBool = AtomicBool::new(false);

/// Returns the answer from the cache, or computes it, which takes 5 ms.
async fn answer() -> &'static str {
    if !IS_CACHED.swap(true, SeqCst) {
        std::thread::sleep(Duration::from_millis(5)); // stands for computation
    }
    "42"
}

fn app(layer: OffloadLayer) -> Router {
    Router::new().route("/answer", get(answer)).layer(layer)
}

/// Makes 1000 requests, one after the other, and prints how long they took and where they ran.
async fn measure(name: &str, app: &mut Router, pool: &ThreadPool) -> anyhow::Result<()> {
    let (before, started) = (pool.stats().in_place, Instant::now());
    for _ in 0..1000 {
        let request = Request::get("/answer").body(Body::empty())?;
        ServiceExt::<Request>::ready(app).await?.call(request).await?;
    }
    let (mean, in_place) = (started.elapsed() / 1000, pool.stats().in_place - before);
    println!("{name}: {:.1} us per request, {in_place} of 1000 ran where they were made", mean.as_secs_f64() * 1e6);
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::cpu();
    let mut offloaded = app(OffloadLayer::new(pool.clone()));
    let mut adaptive = app(OffloadLayer::new(pool.clone()).adaptive());

    measure("offloaded", &mut offloaded, &pool).await?;
    measure("adaptive, after 64 short requests", &mut adaptive, &pool).await?;
    IS_CACHED.store(false, SeqCst); // the next request computes, once on the caller's thread
    measure("adaptive, after one of 5 ms", &mut adaptive, &pool).await
}
