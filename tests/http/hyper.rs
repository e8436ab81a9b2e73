//! The layer in hyper without a framework.

use std::convert::Infallible;

use axum::body::Body;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::{http1, http2},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tower::{BoxError, Layer, ServiceBuilder, service_fn};
use tower_offload::{
    Offload, OffloadLayer,
    offload::{ProblemJson, ServiceFnBlocking, service_fn_blocking},
};

use crate::support::{
    self, FullPool, Http1, Http2, Latch, absolute, bind, get, is_pool_thread, pool, request, thread_name, within,
};

/// A handler whose type can be named, with hyper's request body and another response body.
type Handler = fn(Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible>;

fn service(layer: &OffloadLayer) -> Offload<ServiceFnBlocking<Handler>> {
    let handler: Handler = |_| Ok(Response::new(thread_name().into()));
    layer.layer(service_fn_blocking(handler))
}

enum Protocol {
    Auto,
    Http1,
    Http2,
}

/// Serves connections until the runtime of the test shuts down.
async fn serve<S>(service: S, protocol: Protocol) -> std::net::SocketAddr
where
    S: tower::Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error: Into<BoxError>>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    let (listener, address) = bind().await;
    tokio::spawn(async move {
        loop {
            let socket = TokioIo::new(listener.accept().await.unwrap().0);
            let service = TowerToHyperService::new(service.clone());
            match protocol {
                Protocol::Auto => {
                    tokio::spawn(async {
                        auto::Builder::new(TokioExecutor::new()).serve_connection_with_upgrades(socket, service).await
                    });
                }
                Protocol::Http1 => {
                    tokio::spawn(http1::Builder::new().serve_connection(socket, service).with_upgrades());
                }
                Protocol::Http2 => {
                    tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(socket, service));
                }
            }
        }
    });
    address
}

fn get_http2() -> Request<Body> {
    absolute(Method::GET, "/", Body::empty())
}

#[tokio::test]
async fn tower_service_works_as_hyper_service_on_http1() {
    within(async {
        let address = serve(service(&OffloadLayer::new(pool(1))), Protocol::Http1).await;
        assert!(is_pool_thread(get(address, "/").await.text()));
    })
    .await;
}

#[tokio::test]
async fn tower_service_works_as_hyper_service_on_http2() {
    within(async {
        let address = serve(service(&OffloadLayer::new(pool(1))), Protocol::Http2).await;
        assert!(is_pool_thread(Http2::connect(address).await.send(get_http2()).await.text()));
    })
    .await;
}

#[tokio::test]
async fn tower_service_works_as_hyper_service_on_auto() {
    within(async {
        let address = serve(service(&OffloadLayer::new(pool(1))), Protocol::Auto).await;
        assert!(is_pool_thread(get(address, "/").await.text()));
        assert!(is_pool_thread(Http2::connect(address).await.send(get_http2()).await.text()));
    })
    .await;
}

#[tokio::test]
async fn async_service_reads_its_body_on_the_pool() {
    within(async {
        let shout = ServiceBuilder::new().layer(OffloadLayer::new(pool(1))).service(service_fn(
            async |request: Request<Incoming>| {
                let body = request.into_body().collect().await?.to_bytes();
                assert!(is_pool_thread(&thread_name()));
                Ok::<_, hyper::Error>(Response::new(Full::from(body.to_ascii_uppercase())))
            },
        ));
        let address = serve(shout, Protocol::Auto).await;
        support::send(address, request(Method::POST, "/", "hello")).await.assert_ok("HELLO");
        let mut client = Http2::connect(address).await;
        client.send(absolute(Method::POST, "/", "hello")).await.assert_ok("HELLO");
    })
    .await;
}

#[tokio::test]
async fn full_queue_answers_503_on_hyper() {
    within(async {
        let full = FullPool::new().await;
        let layer = OffloadLayer::new(full.pool.clone());
        let address = serve(service(&layer), Protocol::Auto).await;
        let (mut http1, mut http2) = (Http1::connect(address).await, Http2::connect(address).await);
        http1.get("/").await.assert_unavailable();
        http2.send(get_http2()).await.assert_unavailable();
        full.release().await;
        assert!(is_pool_thread(http1.get("/").await.text()));
        assert!(is_pool_thread(http2.send(get_http2()).await.text()));
    })
    .await;
}

#[tokio::test]
async fn layer_at_max_in_flight_answers_503_on_hyper() {
    within(async {
        let latch = Latch::new();
        let held = latch.clone();
        let layer = OffloadLayer::new(pool(2)).max_in_flight(1);
        let service = layer.layer(service_fn_blocking(move |_: Request<Incoming>| {
            held.block();
            Ok::<_, Infallible>(Response::new(Full::from("ok")))
        }));
        let address = serve(service, Protocol::Auto).await;
        let held = tokio::spawn(get(address, "/"));
        latch.reached().await;
        get(address, "/").await.assert_unavailable();
        Http2::connect(address).await.send(get_http2()).await.assert_unavailable();
        latch.open();
        held.await.unwrap().assert_ok("ok");
    })
    .await;
}

#[tokio::test]
async fn problem_json_fits_full_body() {
    within(async {
        let full = FullPool::new().await;
        let layer = OffloadLayer::new(full.pool.clone()).reject(ProblemJson);
        let service = layer
            .layer(service_fn_blocking(|_: Request<Incoming>| Ok::<_, Infallible>(Response::new(Full::default()))));
        let response = get(serve(service, Protocol::Auto).await, "/").await;
        assert_eq!(response.header("content-type"), "application/problem+json");
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&response.body).unwrap()["status"], 503);
        full.release().await;
    })
    .await;
}

/// hyper handles the error: it closes the connection without a response.
#[tokio::test]
async fn error_of_the_service_reaches_hyper() {
    within(async {
        let fails = |_: Request<Incoming>| Err::<Response<Full<Bytes>>, _>(std::io::Error::other("broken"));
        let address = serve(OffloadLayer::new(pool(1)).layer(service_fn_blocking(fails)), Protocol::Http1).await;
        let mut connection = Http1::connect(address).await;
        assert!(connection.try_send(request(Method::GET, "/", Body::empty())).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn caught_panic_is_a_500_and_the_connection_survives() {
    within(async {
        let layer = OffloadLayer::new(pool(1)).catch_panics();
        let service = layer.layer(service_fn_blocking(|request: Request<Incoming>| {
            assert_eq!(request.uri().path(), "/", "expected panic");
            Ok::<_, Infallible>(Response::new(Full::from("ok")))
        }));
        let mut client = Http2::connect(serve(service, Protocol::Http2).await).await;
        let response = client.send(absolute(Method::GET, "/panic", Body::empty())).await;
        assert_eq!(response.status, http::StatusCode::INTERNAL_SERVER_ERROR);
        client.send(get_http2()).await.assert_ok("ok");
    })
    .await;
}
