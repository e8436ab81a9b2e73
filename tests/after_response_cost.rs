//! Cost of a handle that a request does not use, and memory that a handle keeps. Counts heap
//! allocations with a global allocator, so it is a program of its own with one test.
//!
//! Locks need no count: the layer's only lock protects the list of registrations. It is taken by a
//! registration and by the driver, and without a registration there is no driver.
#![allow(clippy::unwrap_used)]

use std::{alloc::System, convert::Infallible};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tower::{Layer, Service, service_fn};
use tower_offload::{AfterResponse, AfterResponseLayer, Background, pool::Inline};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CALLS: usize = 1_000;

/// Returns the allocations of a request, from its arrival to the drop of its body. Everything is
/// ready at the first poll.
fn per_call<S>(mut service: S, is_extended: bool) -> f64
where
    S: Service<Request<()>, Response: IsResponse, Error = Infallible>,
{
    let mut region = None;
    for call in 0..=CALLS {
        if call == 1 {
            region = Some(Region::new(ALLOCATOR)); // after a warm-up call
        }
        let mut request = Request::new(());
        if is_extended {
            request.extensions_mut().insert("an extension of the server");
        }
        let Ok(response) = service.call(request).now_or_never().unwrap();
        response.read();
    }
    let change = region.unwrap().change();
    // Rounded, because the test harness may allocate a few times.
    ((change.allocations + change.reallocations) as f64 / CALLS as f64).round()
}

trait IsResponse {
    fn read(self);
}

impl<B: http_body::Body + Unpin> IsResponse for Response<B> {
    fn read(mut self) {
        while self.body_mut().frame().now_or_never().unwrap().is_some() {}
    }
}

fn service() -> impl Service<Request<()>, Response = Response<Full<Bytes>>, Error = Infallible> {
    service_fn(|request: Request<()>| {
        std::hint::black_box(request.extensions().get::<AfterResponse>());
        std::future::ready(Ok(Response::new(Full::new(Bytes::from_static(b"body")))))
    })
}

/// One `Arc` and one boxed extension. A request without extensions also gets the map, which is a
/// box and a table. Requests of a server have extensions of the connection or the router.
#[tokio::test]
async fn handle_costs_two_allocations_and_keeps_nothing() {
    let layer = AfterResponseLayer::new(Background::default());
    let runtime = tokio::runtime::Handle::current();
    let added = |is_extended| per_call(layer.layer(service()), is_extended) - per_call(service(), is_extended);
    let (to_some, to_none) = (added(true), added(false));
    println!("allocations a call: {to_some} beside other extensions, {to_none} alone");
    // The test has not yielded, so a spawned task would still be alive.
    assert_eq!(runtime.metrics().num_alive_tasks(), 0);
    assert_eq!(layer.background().stats(), Default::default());
    assert_eq!((to_some, to_none), (2.0, 4.0));

    // Proves that the assertion above can fail: a hook spawns one task.
    let mut hooked = layer.layer(service_fn(|request: Request<()>| {
        request.extensions().get::<AfterResponse>().unwrap().hook(|_| ());
        std::future::ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::new()))))
    }));
    drop(hooked.call(Request::new(())).now_or_never());
    assert_eq!(runtime.metrics().num_alive_tasks(), 1);

    let (with, without) = (per_hook(true).await, per_hook(false).await);
    println!("allocations of a hook: {with} with a field in the response, {without} without");
    // A box, and the two allocations of a map: the headers are cloned once.
    assert_eq!(with - without, 3.0);

    keeps_nothing().await;
}

/// Returns the allocations that a hook adds to a request.
async fn per_hook(has_field: bool) -> f64 {
    per_call_with_hook(has_field, true).await - per_call_with_hook(has_field, false).await
}

async fn per_call_with_hook(has_field: bool, has_hook: bool) -> f64 {
    let background = Background::builder().pool(Inline::new()).build();
    let mut service = AfterResponseLayer::new(background).layer(service_fn(move |request: Request<()>| {
        if has_hook {
            let hook = |outcome: &_| _ = std::hint::black_box(outcome);
            request.extensions().get::<AfterResponse>().unwrap().hook(hook);
        }
        let mut response = Response::new(Full::new(Bytes::from_static(b"body")));
        if has_field {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        std::future::ready(Ok::<_, Infallible>(response))
    }));
    let mut region = None;
    for call in 0..=CALLS {
        if call == 1 {
            region = Some(Region::new(ALLOCATOR)); // after a warm-up call
        }
        let Ok(response) = service.call(Request::new(())).now_or_never().unwrap();
        response.read();
        tokio::task::yield_now().await; // the hook runs
    }
    let change = region.unwrap().change();
    ((change.allocations + change.reallocations) as f64 / CALLS as f64).round()
}

/// Checks that a handle which outlives its response and registers many tasks, like that of a web
/// socket, keeps no memory.
async fn keeps_nothing() {
    let background = Background::builder().pool(Inline::new()).build();
    let layer = AfterResponseLayer::new(background.clone());
    let mut kept = None;
    let mut service = layer.layer(service_fn(|request: Request<()>| {
        kept = request.extensions().get::<AfterResponse>().cloned();
        std::future::ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())))
    }));
    drop(service.call(Request::new(())).now_or_never());
    let after = kept.unwrap();
    let round = async || {
        for is_wanted in [true, false] {
            after.task("a".repeat(1024)).when(move |_| is_wanted).spawn_blocking(|| ()).unwrap();
            after.task("b".repeat(1024)).when(move |_| is_wanted).spawn(async {}).unwrap();
        }
        while background.stats().running + background.stats().reserved + background.stats().awaiting_response > 0 {
            tokio::task::yield_now().await;
        }
    };
    round().await;
    let region = Region::new(ALLOCATOR);
    for _ in 0..CALLS / 10 {
        round().await;
    }
    let change = region.change();
    let kept = change.bytes_allocated as isize - change.bytes_deallocated as isize;
    println!("bytes kept after {} tasks: {kept}", CALLS / 10 * 4);
    assert!(kept < 4096, "{change:?}");
}
