//! Nested layers, nested routers, and other layers around this one.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    routing::get,
};
use http::{Response, StatusCode};
use http_body::Body as _;
use http_body_util::Full;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_offload::{AfterResponse, OffloadLayer, ThreadPool, after_response::End, pool::Pool};

use crate::support::{Log, Script, after_shutdown, handle, layer, on_no_thread, outcome_of, read};

fn request(path: &str) -> Request {
    Request::builder().uri(path).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn outer_layer_owns_the_response_and_runs_the_tasks() {
    let (outer, inner, log) = (on_no_thread(), on_no_thread(), Log::default());
    let in_handler = log.clone();
    let handler = service_fn(move |request: http::Request<()>| {
        let (after, log) = (handle(&request), in_handler.clone());
        after.spawn_blocking(log.adds("task of the handler")).unwrap();
        after.hook(move |outcome| log.add(format!("{} {}", outcome.end, outcome.body_bytes)));
        async { Ok::<_, Infallible>(Response::new(Script::of(3))) }
    });
    let between = |mut service: tower_offload::after_response::AfterResponseService<_>, log: Log| {
        service_fn(move |request: http::Request<()>| {
            handle(&request).spawn_blocking(log.adds("task of the layer between")).unwrap();
            service.call(request)
        })
    };
    let service = layer(&outer).layer(between(layer(&inner).layer(handler), log.clone()));
    let mut response = service.oneshot(http::Request::new(())).await.unwrap();
    read(response.body_mut());
    drop(response);
    assert_eq!((after_shutdown(&outer).await.completed, after_shutdown(&inner).await.completed), (2, 0));
    assert_eq!(log.entries(), ["complete 3", "task of the layer between", "task of the handler"]);
}

#[tokio::test]
async fn tasks_of_ten_nested_layers_all_run() {
    let (background, log) = (on_no_thread(), Log::default());
    let mut router = Router::new().route("/", get(async |after: AfterResponse| after.hook(|_| ())));
    for number in 0..10 {
        let log = log.clone();
        let register = move |after: AfterResponse, request: Request, next: Next| {
            after.spawn_blocking(log.adds(number)).unwrap();
            next.run(request)
        };
        router = router.layer(from_fn(register)).layer(layer(&background));
    }
    drop(router.oneshot(request("/")).await.unwrap());
    assert_eq!(after_shutdown(&background).await.completed, 10);
    assert_eq!(log.entries(), (0..10).rev().map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn nested_and_merged_routers_and_fallbacks_have_the_handle() {
    let background = on_no_thread();
    let register = async |after: AfterResponse| {
        after.task("").always().spawn_blocking(|| ()).unwrap();
        StatusCode::IM_A_TEAPOT
    };
    let deep = Router::new().route("/leaf", get(register)).layer(layer(&background));
    let nested = Router::new().nest("/b", deep).route("/leaf", get(register));
    let service = ServiceBuilder::new().layer(layer(&background)).service_fn(|request: Request| {
        handle(&request).spawn_blocking(|| ()).unwrap();
        async { Ok::<_, Infallible>(Response::new(Body::empty())) }
    });
    let app = Router::new()
        .nest("/a", nested)
        .merge(Router::new().route("/merged", get(register)))
        .route_service("/service", service)
        .fallback(register)
        .layer(layer(&background));
    for path in ["/a/b/leaf", "/a/leaf", "/merged", "/missing", "/service"] {
        let expected = if path == "/service" { StatusCode::OK } else { StatusCode::IM_A_TEAPOT };
        assert_eq!(app.clone().oneshot(request(path)).await.unwrap().status(), expected, "{path}");
    }
    assert_eq!(after_shutdown(&background).await.completed, 5);
}

/// A service that copies the extensions of a request into a new one registers work for the first
/// request.
#[tokio::test]
async fn copied_extensions_share_the_handle() {
    let (background, log) = (on_no_thread(), Log::default());
    let inside = log.clone();
    let inner = layer(&background).layer(service_fn(move |request: http::Request<()>| {
        handle(&request).spawn_blocking(inside.adds("of the inner request")).unwrap();
        async { Ok::<_, Infallible>(Response::new(Script::of(3))) }
    }));
    let outer = layer(&background).layer(service_fn(async |request: http::Request<()>| {
        let mut second = http::Request::new(());
        *second.extensions_mut() = request.extensions().clone();
        drop(inner.clone().oneshot(second).await);
        tokio::task::yield_now().await;
        log.add("the inner response is over");
        Ok::<_, Infallible>(Response::new(Script::of(5)))
    }));
    drop(outer.oneshot(http::Request::new(())).await);
    assert_eq!(after_shutdown(&background).await.completed, 1);
    assert_eq!(log.entries(), ["the inner response is over", "of the inner request"]);
}

/// The layer cannot see an outer layer that buffers the body, so its outcome ends with the inner
/// body.
#[tokio::test]
async fn outcome_inside_a_buffering_layer_ends_with_the_inner_body() {
    let background = on_no_thread();
    let (tx, outcome) = std::sync::mpsc::channel();
    let handler = get(async move |after: AfterResponse| {
        tx.send(outcome_of(&after)).unwrap();
        "12345"
    });
    let buffers = axum::middleware::map_response(async |response: Response<Body>| {
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        Response::new(Body::from(bytes))
    });
    let app = Router::new().route("/", handler).layer(layer(&background)).layer(buffers);
    let response = app.oneshot(request("/")).await.unwrap();
    let outcome = outcome.recv().unwrap().await.unwrap();
    assert_eq!((outcome.end, outcome.body_bytes), (End::Complete, 5));
    drop(response);
}

/// The instance that was polled ready is called, and a clone is not ready.
#[tokio::test]
async fn readiness_belongs_to_the_polled_instance() {
    #[derive(Debug)]
    struct Probe(bool);
    impl Clone for Probe {
        fn clone(&self) -> Self {
            Self(false)
        }
    }
    impl Service<http::Request<()>> for Probe {
        type Response = Response<Script>;
        type Error = &'static str;
        type Future = std::future::Ready<Result<Response<Script>, &'static str>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
            if self.0 {
                return Poll::Ready(Err("ready twice"));
            }
            self.0 = true;
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<()>) -> Self::Future {
            assert!(std::mem::take(&mut self.0), "called before it was ready");
            std::future::ready(Ok(Response::new(Script::of(3))))
        }
    }
    let mut service = layer(&on_no_thread()).layer(Probe(false));
    service.ready().await.unwrap().call(http::Request::new(())).await.unwrap();
    service.ready().await.unwrap();
    service.clone().oneshot(http::Request::new(())).await.unwrap();
    assert_eq!(service.ready().await.unwrap_err(), "ready twice");
    assert!(service.get_ref().0 && service.get_mut().0 && service.into_inner().0);
}

/// The handler registers on a thread of the pool, and the hook runs on the runtime.
#[tokio::test]
async fn offloaded_handler_registers_hooks_and_tasks() {
    let background = on_no_thread();
    let (tx, mut hooked) = tokio::sync::mpsc::unbounded_channel();
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let service = ServiceBuilder::new().layer(OffloadLayer::new(pool.clone())).layer(layer(&background)).service(
        service_fn(move |request: http::Request<()>| {
            let (after, tx) = (handle(&request), tx.clone());
            async move {
                let there = std::thread::current().id();
                after.hook(move |outcome| tx.send((there, std::thread::current().id(), outcome.body_bytes)).unwrap());
                after.spawn_blocking(|| ()).unwrap();
                Ok::<_, Infallible>(Response::new(Full::new(bytes::Bytes::from_static(b"body"))))
            }
        }),
    );
    let mut response = service.clone().oneshot(http::Request::new(())).await.unwrap();
    assert_eq!(response.body().size_hint().exact(), Some(4));
    read(response.body_mut());
    drop(response);
    let (there, here, bytes) = hooked.recv().await.unwrap();
    assert_eq!((here, bytes), (std::thread::current().id(), 4));
    assert_ne!(there, here);
    assert_eq!(after_shutdown(&background).await.completed, 1);

    // The body of a rejection by the offload layer belongs to no exchange.
    pool.shutdown(crate::support::LONG).await;
    let refused = service.oneshot(http::Request::new(())).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.body().is_end_stream() && refused.body().get_ref().is_end_stream());
}
