//! Deadlines of requests, on hyper, on axum's servers and on tonic.

use std::{convert::Infallible, pin::Pin, time::Duration};

use axum::{Router, body::Body, routing::get};
use futures_util::Stream;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint, Server},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower::Layer;
use tower_offload::{
    OffloadLayer, ThreadPool,
    offload::service_fn_blocking,
    pool::{CancelReason, Pool, Run, cancel_reason},
    remaining,
};

use crate::support::{FullResponse, Http1, Http2, Latch, absolute, bind, one_thread, request, serve, within};

const SHORT: Duration = Duration::from_millis(50);
/// Long enough for a handler to begin on a busy machine.
const AFTER_THE_BEGIN: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(3600);

/// Blocks the only thread of `pool`.
async fn hold(pool: &ThreadPool) -> (Latch, Run<()>) {
    let latch = Latch::new();
    let held = pool.run({
        let latch = latch.clone();
        move || latch.block()
    });
    latch.reached().await;
    (latch, held)
}

fn assert_timed_out(response: &FullResponse) {
    assert_eq!(response.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!((response.header("retry-after"), response.text()), ("", ""));
}

#[tokio::test]
async fn axum_request_is_answered_with_504_at_its_deadline() {
    within(async {
        let pool = one_thread(8);
        let app = Router::new()
            .route("/timed", get(async || -> &'static str { unreachable!("it has expired") }))
            .route("/", get(async || "hello"))
            .layer(OffloadLayer::new(pool.clone()).timeout(|head| (head.uri().path() == "/timed").then_some(SHORT)));
        let address = serve(app).await;
        let (latch, held) = hold(&pool).await;
        let mut client = Http1::connect(address).await;
        assert_timed_out(&client.get("/timed").await);
        latch.open();
        held.await.unwrap();
        client.get("/").await.assert_ok("hello");
        assert_eq!(pool.stats().rejected, 1);
    })
    .await;
}

#[tokio::test]
async fn running_handler_of_serve_is_cancelled_at_its_deadline() {
    within(async {
        let (pool, latch) = (one_thread(8), Latch::new());
        let (send, mut reasons) = tokio::sync::mpsc::unbounded_channel();
        let blocking = latch.clone();
        let app = Router::new()
            .route(
                "/",
                get(async move || {
                    blocking.block();
                    send.send(cancel_reason()).unwrap();
                    "late"
                }),
            )
            .layer(OffloadLayer::new(pool.clone()).timeout(|_| Some(AFTER_THE_BEGIN)));
        let (listener, address) = bind().await;
        tokio::spawn(tower_offload::axum::serve(listener, app).into_future());
        let mut client = Http1::connect(address).await;
        assert_timed_out(&client.get("/").await);
        assert_eq!(pool.stats().active, 1, "the handler keeps its thread");
        latch.open();
        assert_eq!(reasons.recv().await.unwrap(), Some(CancelReason::DeadlineExceeded));
    })
    .await;
}

/// Serves HTTP/2 with hyper alone.
async fn serve_hyper(
    layer: OffloadLayer<tower_offload::offload::HttpReject, impl HyperInspect>,
) -> std::net::SocketAddr {
    let service = layer.layer(service_fn_blocking(|_: Request<hyper::body::Incoming>| {
        Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(format!("{}", remaining().is_some())))))
    }));
    let (listener, address) = bind().await;
    tokio::spawn(async move {
        loop {
            let socket = TokioIo::new(listener.accept().await.unwrap().0);
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(socket, service));
        }
    });
    address
}

trait HyperInspect:
    tower_offload::offload::Inspect<Request<hyper::body::Incoming>, Captured: Send + 'static> + 'static
{
}
impl<A> HyperInspect for A where
    A: tower_offload::offload::Inspect<Request<hyper::body::Incoming>, Captured: Send + 'static> + 'static
{
}

fn grpc(timeouts: &[&str]) -> Request<Body> {
    let mut request = absolute(Method::POST, "/service/Method", "");
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    for timeout in timeouts {
        request.headers_mut().append("grpc-timeout", timeout.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn grpc_request_is_answered_with_its_status_at_its_deadline() {
    within(async {
        let pool = one_thread(8);
        let mut client = Http2::connect(serve_hyper(OffloadLayer::new(pool.clone()).grpc_timeout()).await).await;
        let (latch, held) = hold(&pool).await;
        for timeouts in [&["0n"][..], &["1n"], &["50m"], &["99999999H", "50m"]] {
            let response = client.send(grpc(timeouts)).await;
            assert_eq!(response.status, StatusCode::OK);
            assert_eq!((response.header("grpc-status"), response.header("grpc-message")), ("4", "deadline exceeded"));
        }
        latch.open();
        held.await.unwrap();
        // The third one is after the end of the clock of a call, in 584 years.
        for (timeout, has_deadline) in [("8H", "true"), ("123456789S", "false"), ("99999999H", "false")] {
            assert_eq!(client.send(grpc(&[timeout])).await.text(), has_deadline, "{timeout}");
        }
        assert_eq!(pool.stats().started, 4, "no expired call has started");
    })
    .await;
}

#[tokio::test]
async fn grpc_timeout_is_ignored_without_the_option() {
    within(async {
        let mut client = Http2::connect(serve_hyper(OffloadLayer::new(one_thread(8))).await).await;
        assert_eq!(client.send(grpc(&["0n"])).await.text(), "false");
        let other = request(Method::GET, "http://test/", Body::empty());
        assert_eq!(client.send(other).await.text(), "false");
    })
    .await;
}

// ---- tonic ----

/// Sends what it reads of its deadline to the test, and blocks if the service is called `held`.
#[derive(Clone)]
struct Service(Latch, tokio::sync::mpsc::UnboundedSender<(Option<Duration>, Option<CancelReason>)>);

#[tonic::async_trait]
impl Health for Service {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let left = remaining();
        if request.get_ref().service == "held" {
            self.0.block();
        }
        self.1.send((left, cancel_reason())).unwrap();
        Ok(Response::new(HealthCheckResponse { status: 1 }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, _: tonic::Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("only `check`"))
    }
}

macro_rules! connect {
    ($layer:expr, $service:expr) => {{
        let (listener, address) = bind().await;
        let server = Server::builder().layer($layer).add_service(HealthServer::new($service));
        tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
        HealthClient::new(Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap())
    }};
}

async fn check(client: &mut HealthClient<Channel>, name: &str, timeout: Option<Duration>) -> Result<(), Status> {
    let mut request = tonic::Request::new(HealthCheckRequest { service: name.to_owned() });
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    client.check(request).await.map(drop)
}

#[tokio::test]
async fn tonic_handler_knows_the_timeout_of_its_client() {
    within(async {
        let (send, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let layer = OffloadLayer::new(one_thread(8)).grpc_timeout();
        let mut client = connect!(layer, Service(Latch::new(), send));
        check(&mut client, "", Some(LONG)).await.unwrap();
        let (left, reason) = seen.recv().await.unwrap();
        assert!(left.is_some_and(|left| left <= LONG && left > LONG / 2), "{left:?}");
        assert_eq!(reason, None);
        check(&mut client, "", None).await.unwrap();
        assert_eq!(seen.recv().await.unwrap(), (None, None));
    })
    .await;
}

#[tokio::test]
async fn tonic_call_that_expires_in_the_queue_never_starts() {
    within(async {
        let (pool, (send, mut seen)) = (one_thread(8), tokio::sync::mpsc::unbounded_channel());
        let mut client = connect!(OffloadLayer::new(pool.clone()).grpc_timeout(), Service(Latch::new(), send));
        let (latch, held) = hold(&pool).await;
        // Tonic's client stops waiting too, with a status of its own.
        check(&mut client, "", Some(SHORT)).await.unwrap_err();
        while pool.stats().rejected + pool.stats().abandoned == 0 {
            tokio::task::yield_now().await; // the server may be later than the client
        }
        latch.open();
        held.await.unwrap();
        check(&mut client, "", Some(LONG)).await.unwrap();
        assert!(seen.recv().await.unwrap().0.unwrap() > SHORT, "the second call");
        assert_eq!(pool.stats().started, 2);
    })
    .await;
}

#[tokio::test]
async fn tonic_client_gets_deadline_exceeded_from_the_timeout_of_the_server() {
    within(async {
        let (pool, latch, (send, mut seen)) = (one_thread(8), Latch::new(), tokio::sync::mpsc::unbounded_channel());
        let layer = OffloadLayer::new(pool).grpc_timeout().timeout(|_| Some(AFTER_THE_BEGIN));
        let mut client = connect!(layer, Service(latch.clone(), send));
        for timeout in [None, Some(LONG)] {
            let status = check(&mut client, "held", timeout).await.unwrap_err();
            assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "deadline exceeded"));
            latch.let_one_pass();
            let (left, reason) = seen.recv().await.unwrap();
            assert!(left.unwrap() <= AFTER_THE_BEGIN, "{left:?}");
            assert_eq!(reason, Some(CancelReason::DeadlineExceeded));
        }
    })
    .await;
}
