//! gRPC with tonic's client and server, over HTTP/2.

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower::ServiceBuilder;
use tower_offload::{OffloadLayer, pool::Pool};

use crate::support::{FullPool, Latch, bind, is_pool_thread, one_thread, pool, thread_name, within};

/// Returns status 1 (serving) on a thread of the pool and 2 (not serving) elsewhere.
struct Service(Latch);

fn status() -> HealthCheckResponse {
    HealthCheckResponse { status: if is_pool_thread(&thread_name()) { 1 } else { 2 } }
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match &*request.get_ref().service {
            "held" => self.0.block(),
            "panics" => panic!("expected panic"),
            "missing" => return Err(Status::not_found("no such service")),
            _ => {}
        }
        Ok(Response::new(status()))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let here = status();
        Ok(Response::new(stream::iter((0..3).map(move |_| Ok(here))).boxed()))
    }
}

type Client = HealthClient<Channel>;

async fn client(address: std::net::SocketAddr) -> Client {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    Client::new(endpoint.connect().await.unwrap())
}

/// Starts a server with `Server::layer` and returns a client of it.
macro_rules! connect {
    ($layer:expr, $latch:expr) => {{
        let (listener, address) = bind().await;
        let server = Server::builder().layer($layer).add_service(HealthServer::new(Service($latch.clone())));
        tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
        client(address).await
    }};
}

async fn check(client: &mut Client, service: &str) -> Result<i32, Status> {
    let request = HealthCheckRequest { service: service.to_owned() };
    client.check(request).await.map(|response| response.into_inner().status)
}

#[tokio::test]
async fn server_layer_offloads_unary_calls() {
    within(async {
        let mut client = connect!(OffloadLayer::new(pool(1)), Latch::new());
        assert_eq!(check(&mut client, "").await.unwrap(), 1);
        assert_eq!(check(&mut client, "missing").await.unwrap_err().code(), Code::NotFound);
    })
    .await;
}

#[tokio::test]
async fn server_layer_offloads_streaming_calls() {
    within(async {
        let mut client = connect!(OffloadLayer::new(pool(1)), Latch::new());
        let stream = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
        let statuses: Vec<_> = stream.map(|response| response.unwrap().status).collect().await;
        assert_eq!(statuses, [1, 1, 1]);
    })
    .await;
}

#[tokio::test]
async fn service_builder_offloads_on_tonic() {
    within(async {
        let stack = ServiceBuilder::new().layer(OffloadLayer::new(pool(1)).max_in_flight(8)).into_inner();
        let mut client = connect!(stack, Latch::new());
        assert_eq!(check(&mut client, "").await.unwrap(), 1);
    })
    .await;
}

#[tokio::test]
async fn health_service_of_tonic_runs_behind_the_layer() {
    within(async {
        let (listener, address) = bind().await;
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter.set_service_status("up", tonic_health::ServingStatus::Serving).await;
        let server = Server::builder().layer(OffloadLayer::new(one_thread(8))).add_service(service);
        tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
        let mut client = client(address).await;
        assert_eq!(check(&mut client, "up").await.unwrap(), 1);
    })
    .await;
}

#[tokio::test]
async fn full_queue_answers_resource_exhausted() {
    within(async {
        let full = FullPool::new().await;
        let mut client = connect!(OffloadLayer::new(full.pool.clone()), Latch::new());
        let rejected = check(&mut client, "").await.unwrap_err();
        assert_eq!((rejected.code(), rejected.message()), (Code::ResourceExhausted, "overloaded"));
        let rejected = client.watch(HealthCheckRequest::default()).await.unwrap_err();
        assert_eq!(rejected.code(), Code::ResourceExhausted);
        full.release().await;
        assert_eq!(check(&mut client, "").await.unwrap(), 1);
    })
    .await;
}

#[tokio::test]
async fn layer_at_max_in_flight_answers_resource_exhausted() {
    within(async {
        let latch = Latch::new();
        let client = connect!(OffloadLayer::new(pool(2)).max_in_flight(1), latch);
        let mut first = client.clone();
        let held = tokio::spawn(async move { check(&mut first, "held").await });
        latch.reached().await;
        let mut second = client;
        assert_eq!(check(&mut second, "").await.unwrap_err().code(), Code::ResourceExhausted);
        latch.open();
        assert_eq!(held.await.unwrap().unwrap(), 1);
        assert_eq!(check(&mut second, "").await.unwrap(), 1);
    })
    .await;
}

#[tokio::test]
async fn pool_after_shutdown_answers_unavailable() {
    within(async {
        let pool = pool(1);
        let mut client = connect!(OffloadLayer::new(pool.clone()), Latch::new());
        assert_eq!(check(&mut client, "").await.unwrap(), 1);
        assert!(pool.shutdown(Duration::from_secs(5)).await.is_empty());
        let rejected = check(&mut client, "").await.unwrap_err();
        assert_eq!((rejected.code(), rejected.message()), (Code::Unavailable, "shutting down"));
    })
    .await;
}

#[tokio::test]
async fn caught_panic_answers_internal() {
    within(async {
        let mut client = connect!(OffloadLayer::new(pool(1)).catch_panics(), Latch::new());
        let rejected = check(&mut client, "panics").await.unwrap_err();
        assert_eq!((rejected.code(), rejected.message()), (Code::Internal, "panicked"));
        assert_eq!(check(&mut client, "").await.unwrap(), 1);
    })
    .await;
}

#[tokio::test]
async fn cancelled_grpc_call_is_abandoned() {
    within(async {
        let (latch, pool) = (Latch::new(), pool(1));
        let client = connect!(OffloadLayer::new(pool.clone()), latch);
        let mut first = client.clone();
        let call = tokio::spawn(async move { check(&mut first, "held").await });
        latch.reached().await;
        call.abort();
        while pool.stats().abandoned == 0 {
            tokio::task::yield_now().await;
        }
        latch.open();
        drop(client);
    })
    .await;
}
