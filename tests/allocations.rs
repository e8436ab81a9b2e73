//! Counts heap allocations with a global allocator, and therefore contains a single test.
#![allow(clippy::unwrap_used)]

use std::{alloc::System, convert::Infallible};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_offload::blocking_detector::BlockingDetectorLayer;
use tower_offload::{OffloadLayer, ThreadPool, offload::RejectWithError, pool::Pool};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CALLS: usize = 1_000;

/// Returns the number of allocations per call, on all threads, after a warm-up.
async fn per_call<F: Future>(mut call: impl FnMut() -> F) -> f64 {
    for _ in 0..CALLS {
        call().await;
    }
    let region = Region::new(ALLOCATOR);
    for _ in 0..CALLS {
        call().await;
    }
    let change = region.change();
    (change.allocations + change.reallocations) as f64 / CALLS as f64
}

/// Measures a `service_fn` whose future is smaller than 2 KiB.
#[tokio::test]
async fn a_call_through_the_layer_adds_one_allocation() {
    // A future of about 1 KiB that awaits once.
    let work = || {
        service_fn(async |n: usize| {
            let data = std::hint::black_box([n; 128]);
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(data[n % 128])
        })
    };
    let pool = ThreadPool::builder().threads(1).build().unwrap();

    let bare = per_call(|| work().oneshot(1)).await;
    println!("allocations a call: {bare} without the layer");
    let mut added = Vec::new();
    let layer = || OffloadLayer::new(pool.clone()).reject(RejectWithError);
    for (name, layer) in [
        ("default", layer()),
        ("wait", layer().wait(std::time::Duration::from_secs(1))),
        ("detached", layer().detached()),
        ("backpressure", layer().backpressure()),
    ] {
        let mut service = layer.layer(work());
        let mut calls = 0;
        for _ in 0..CALLS {
            service.ready().await.unwrap().call(1).await.unwrap();
        }
        let region = Region::new(ALLOCATOR);
        while calls < CALLS {
            service.ready().await.unwrap().call(1).await.unwrap();
            calls += 1;
        }
        let change = region.change();
        let allocations = (change.allocations + change.reallocations) as f64 / CALLS as f64 - bare;
        println!("allocations a call: {allocations} added by the layer ({name})");
        added.push((name, allocations));
    }
    let run = per_call(|| pool.run(|| 1)).await;
    println!("allocations a call: {run} for `Pool::run`");
    // Each call allocates a whole number. A few more over all calls are allowed, for example when
    // a queue grows.
    for (name, added) in added {
        assert!(added < 1.01, "{name}: {added}");
    }
    assert!(run < 1.01, "{run}");
    detected().await;
}

/// Checks that the detector allocates nothing while nothing blocks.
async fn detected() {
    use axum::extract::MatchedPath;
    use http::Request;

    // A request with the extensions that axum adds, and one without.
    let uri = "/users/7".parse::<http::Uri>().unwrap();
    let app: axum::Router = axum::Router::new()
        .route("/users/{id}", axum::routing::get(async |matched: MatchedPath| axum::Extension(matched)));
    let request = Request::builder().uri(uri.clone()).body(axum::body::Body::empty()).unwrap();
    let matched = app.oneshot(request).await.unwrap().extensions_mut().remove::<MatchedPath>().unwrap();

    let service = service_fn(async |request: Request<()>| {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(request)
    });
    let layer = BlockingDetectorLayer::new().threshold(std::time::Duration::MAX).on_blocking(|_| unreachable!());
    let (mut by_path, mut by_head) = (layer.clone().layer(service), layer.clone().route(|_| "static").layer(service));
    let mut named = layer.named("named").layer(service);
    let (mut plain, mut routed) = (Request::new(()), Request::new(()));
    *plain.uri_mut() = uri;
    routed.extensions_mut().insert(matched);
    // The first step of a thread starts its watchdog.
    plain = by_path.ready().await.unwrap().call(plain).await.unwrap();
    let region = Region::new(ALLOCATOR);
    for _ in 0..CALLS {
        plain = by_path.ready().await.unwrap().call(plain).await.unwrap();
        routed = by_path.ready().await.unwrap().call(routed).await.unwrap();
        routed = by_head.ready().await.unwrap().call(routed).await.unwrap();
        routed = named.ready().await.unwrap().call(routed).await.unwrap();
    }
    let change = region.change();
    println!("allocations by the blocking detector in {CALLS} calls of each kind: {}", change.allocations);
    assert!(change.allocations + change.reallocations < 10, "{change:?}"); // Allocations of the runtime.
}
