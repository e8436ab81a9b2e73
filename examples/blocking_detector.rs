//! Finds a handler that blocks, then offloads it: `cargo run --example blocking_detector`.

use std::{thread, time::Duration};

use axum::{
    Router,
    body::Body,
    routing::{get, put},
};
use hyper::{Method, Request};
use tower::ServiceExt;
use tower_offload::{
    OffloadLayer, ThreadPool,
    blocking_detector::{Blocked, BlockingDetectorLayer},
};

/// Blocks the thread, like a synchronous driver.
async fn store() {
    thread::sleep(Duration::from_millis(100));
}

fn routes() -> Router {
    Router::new().route("/ping", get(async || "pong")).route("/users/{id}", put(store))
}

/// Prints a report. Features `tracing` and `metrics` emit an event and metrics without a callback.
fn report(blocked: &Blocked<'_>) {
    let (method, route) = (blocked.method().map_or("", Method::as_str), blocked.route());
    println!("{method} {route} blocked the event loop for {:?}", blocked.duration());
}

async fn send_requests(app: &Router) -> anyhow::Result<()> {
    for (method, path) in [(Method::GET, "/ping"), (Method::PUT, "/users/7")] {
        let request = Request::builder().method(&method).uri(path).body(Body::empty())?;
        println!("{method} {path}: {}", app.clone().oneshot(request).await?.status());
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let detector = BlockingDetectorLayer::new().on_blocking(report); // see also `.threshold(..)`

    println!("inline:");
    send_requests(&routes().layer(detector.clone())).await?;

    println!("offloaded:");
    let offload = OffloadLayer::new(ThreadPool::blocking(8)).filter(|head| head.method() == Method::PUT);
    // The detector is outside of the layer, where it measures the event loop.
    send_requests(&routes().layer(offload).layer(detector)).await
}
