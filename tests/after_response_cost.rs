//! What a request pays for a handle that it does not use (A14, 5.11), and what a handle keeps. Counts heap allocations with an
//! allocator of its own, so it is a program of its own, and holds one test.
//!
//! Of locks there is nothing to count: the layer's one lock is that of the list of what was registered, which is taken by
//! whoever registers something and by the driver, and there is no driver without a registration (below: no task).
#![allow(clippy::unwrap_used)]

use std::{alloc::System, convert::Infallible};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tower::{Layer, Service, service_fn};
use tower_offload::{AfterResponse, AfterResponseLayer, Background, pool::Inline};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CALLS: usize = 1_000;

/// How many allocations a request makes, from its arrival to the drop of its body. Everything is ready at the first poll.
fn per_call<S>(mut service: S, is_extended: bool) -> f64
where
    S: Service<Request<()>, Response: IsResponse, Error = Infallible>,
{
    let mut region = None;
    for call in 0..=CALLS {
        if call == 1 {
            region = Some(Region::new(ALLOCATOR)); // everything is warm
        }
        let mut request = Request::new(());
        if is_extended {
            request.extensions_mut().insert("of the server, such as an address");
        }
        let Ok(response) = service.call(request).now_or_never().unwrap();
        response.read();
    }
    let change = region.unwrap().change();
    // A whole number a call; over all of them there may be a stray one of the test harness.
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

/// One `Arc` and the box of one extension. The extensions of a request that had none also get their map: its box and its
/// table. A server's requests have some, of the connection or of a router's.
#[tokio::test]
async fn a_handle_costs_one_arc_and_one_extension_and_keeps_nothing_a14() {
    let layer = AfterResponseLayer::default();
    let runtime = tokio::runtime::Handle::current();
    let added = |is_extended| per_call(layer.layer(service()), is_extended) - per_call(service(), is_extended);
    let (to_some, to_none) = (added(true), added(false));
    println!("allocations a call: {to_some} beside other extensions, {to_none} alone");
    // Nothing has yielded since: a task that had been spawned would be there.
    assert_eq!(runtime.metrics().num_alive_tasks(), 0);
    assert_eq!(layer.background().stats(), Default::default());
    assert_eq!((to_some, to_none), (2.0, 4.0));

    // As a check of the check: one hook is one task.
    let mut hooked = layer.layer(service_fn(|request: Request<()>| {
        request.extensions().get::<AfterResponse>().unwrap().hook(|_| ());
        std::future::ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::new()))))
    }));
    drop(hooked.call(Request::new(())).now_or_never());
    assert_eq!(runtime.metrics().num_alive_tasks(), 1);

    keeps_nothing().await;
}

/// As that of a web socket, which outlives its response and registers a task for each message.
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
            after.task("a".repeat(1024)).when(move |_| is_wanted).run(|| ()).unwrap();
            after.task("b".repeat(1024)).when(move |_| is_wanted).spawn(async {}).unwrap();
        }
        while background.stats().running + background.stats().reserved > 0 {
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
    println!("bytes kept of {} tasks: {kept}", CALLS / 10 * 4);
    assert!(kept < 4096, "{change:?}");
}
