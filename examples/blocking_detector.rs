//! Finds the handler that blocks, then offloads it: `cargo run --example blocking_detector`.

use std::{error::Error, thread, time::Duration};

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

/// Stands for a sync driver: the thread does nothing else meanwhile.
async fn store() {
    thread::sleep(Duration::from_millis(100));
}

fn routes() -> Router {
    Router::new().route("/ping", get(async || "pong")).route("/users/{id}", put(store))
}

/// With the features `tracing` and `metrics` there is an event and there are metrics, and no need
/// for this.
fn report(blocked: &Blocked<'_>) {
    let (method, route) = (blocked.method().map_or("", Method::as_str), blocked.route());
    println!("{method} {route} held the thread of the event loop for {:?}", blocked.duration());
}

async fn ask(app: &Router) -> Result<(), Box<dyn Error>> {
    for (method, path) in [(Method::GET, "/ping"), (Method::PUT, "/users/7")] {
        let request = Request::builder().method(&method).uri(path).body(Body::empty())?;
        println!("{method} {path}: {}", app.clone().oneshot(request).await?.status());
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let detector = BlockingDetectorLayer::new() // what takes more than 10 ms, unless `.threshold(..)` says otherwise
        .on_blocking(report);

    println!("watched:");
    ask(&routes().layer(detector.clone())).await?;

    println!("offloaded:");
    let offload = OffloadLayer::new(ThreadPool::blocking(8)).filter(|head| head.method() == Method::PUT);
    ask(&routes().layer(offload).layer(detector)).await // the detector outside: it watches the event loop
}
