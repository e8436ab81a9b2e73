//! A gRPC service that blocks, behind the layer:
//! `cargo run -p tower-offload-tests --example tonic`.

use std::{fs, io, thread, time::Duration};

use tokio::net::TcpListener;
use tokio_stream::Pending;
use tonic::transport::{Endpoint, Server, server::TcpIncoming};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower_offload::{OffloadLayer, ThreadPool, pool::Pool, remaining};

/// Reports healthy if the disk can be read.
struct Disk;

#[tonic::async_trait]
impl Health for Disk {
    type WatchStream = Pending<Result<HealthCheckResponse, Status>>;

    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        read_disk().map_err(|error| Status::unavailable(error.to_string()))?; // blocks the thread
        println!("checked on {}", thread::current().name().unwrap_or("an unnamed thread"));
        assert!(remaining().is_some_and(|left| left <= Duration::from_secs(30)));
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("only `check`"))
    }
}

fn read_disk() -> io::Result<usize> {
    fs::read_dir(std::env::temp_dir()).map(Iterator::count)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::blocking(8);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    // The layer also reads the timeouts of clients, so that calls know how much time is left.
    let layer = OffloadLayer::new(pool.clone()).grpc_timeout();
    let server = Server::builder().layer(layer).add_service(HealthServer::new(Disk));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));

    let mut client = HealthClient::new(Endpoint::try_from(format!("http://{address}"))?.connect().await?);
    let mut request = Request::new(HealthCheckRequest::default());
    request.set_timeout(Duration::from_secs(30));
    let health = client.check(request).await?.into_inner();
    println!("status: {:?}", health.status());

    // After the shutdown calls are rejected with a gRPC status.
    pool.shutdown(Duration::from_secs(5)).await;
    let rejected = client.check(HealthCheckRequest::default()).await;
    println!("after shutdown: {:?}", rejected.err().map(|status| status.code()));
    Ok(())
}
