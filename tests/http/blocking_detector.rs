//! The blocking detector behind real sockets, on a paused clock that handlers advance.

use std::{sync::Arc, sync::Mutex, time::Duration};

use ::tonic::{
    Request, Response, Status,
    transport::{Endpoint, Server, server::TcpIncoming},
};
use axum::{Router, routing::get};
use futures_util::FutureExt;
use tokio_stream::Pending;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower_offload::{OffloadLayer, blocking_detector::BlockingDetectorLayer, pool::TokioBlocking};

use crate::support::{Latch, bind, get as ask, serve};

#[derive(Clone, Default)]
struct Reports(Arc<Mutex<Vec<String>>>);

impl Reports {
    /// Returns a default layer that records its reports here.
    fn layer(&self) -> BlockingDetectorLayer {
        let reports = self.clone();
        BlockingDetectorLayer::new().on_blocking(move |blocked| {
            let report = format!("{} {} {:?}", blocked.method().unwrap(), blocked.route(), blocked.duration());
            reports.0.lock().unwrap().push(report);
        })
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// Blocks the thread for one second of the paused clock.
fn block() {
    let _ = tokio::time::advance(SECOND).now_or_never();
}

#[tokio::test(start_paused = true)]
async fn blocking_handler_is_reported_unless_offloaded() {
    let (reports, latch) = (Reports::default(), Latch::new());
    let inside = latch.clone();
    let offloaded = async move || {
        inside.block();
        "offloaded"
    };
    let inline = async || {
        block();
        "inline"
    };
    // With `TokioBlocking` tokio does not advance the clock while work runs.
    let app = Router::new()
        .route("/offloaded/{id}", get(offloaded))
        .layer(OffloadLayer::new(TokioBlocking::new(1)))
        .route("/inline/{id}", get(inline))
        .route("/ping", get(async || "pong"))
        .layer(reports.layer());
    let address = serve(app).await;

    ask(address, "/ping").await.assert_ok("pong");
    ask(address, "/inline/7").await.assert_ok("inline");
    assert_eq!(reports.take(), ["GET /inline/{id} 1s"]);

    let response = tokio::spawn(ask(address, "/offloaded/7"));
    latch.reached().await;
    block(); // a second passes while the handler blocks its thread
    latch.open();
    response.await.unwrap().assert_ok("offloaded");
    assert_eq!(reports.take(), [""; 0]);
}

struct Slow;

#[::tonic::async_trait]
impl Health for Slow {
    type WatchStream = Pending<Result<HealthCheckResponse, Status>>;

    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        block();
        Ok(Response::new(HealthCheckResponse::default()))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("only `check`"))
    }
}

#[tokio::test(start_paused = true)]
async fn grpc_call_is_named_by_service_and_method() {
    let reports = Reports::default();
    let (listener, address) = bind().await;
    let server = Server::builder().layer(reports.layer()).add_service(HealthServer::new(Slow));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let channel = Endpoint::try_from(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = HealthClient::new(channel);
    client.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(client.watch(HealthCheckRequest::default()).await.unwrap_err().code(), ::tonic::Code::Unimplemented);
    assert_eq!(reports.take(), ["POST /grpc.health.v1.Health/Check 1s"]);
}
