//! gRPC with tonic's client and server over an in-memory connection.

use std::pin::Pin;

use futures_util::{Stream, StreamExt, stream};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tonic::{
    Code, Request, Response, Status,
    transport::{Endpoint, Server},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower_offload::{
    AfterResponse, Background,
    after_response::{Delivery, End, Outcome},
};

use crate::support::{after_shutdown, layer, on_no_thread};

/// Registers a task and a hook in each call. Responds differently to calls for the services
/// `missing`, `broken` and `endless`.
struct Service(UnboundedSender<Outcome>);

impl Service {
    fn register<T>(&self, request: &Request<T>) {
        let after = request.extensions().get::<AfterResponse>().unwrap();
        after.spawn_blocking(|| ()).unwrap();
        let tx = self.0.clone();
        after.hook(move |outcome| tx.send(outcome.clone()).unwrap());
    }
}

type Statuses = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Health for Service {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.register(&request);
        match &*request.get_ref().service {
            "missing" => Err(Status::not_found("no such service")),
            _ => Ok(Response::new(HealthCheckResponse { status: 1 })),
        }
    }

    type WatchStream = Statuses;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Statuses>, Status> {
        self.register(&request);
        let three = stream::iter((0..3).map(|status| Ok(HealthCheckResponse { status })));
        Ok(Response::new(match &*request.get_ref().service {
            "missing" => return Err(Status::not_found("no such service")),
            "broken" => three.chain(stream::once(async { Err(Status::data_loss("in the middle")) })).boxed(),
            "endless" => three.chain(stream::pending()).boxed(),
            _ => three.boxed(),
        }))
    }
}

async fn connect(background: &Background) -> (HealthClient<tonic::transport::Channel>, UnboundedReceiver<Outcome>) {
    let (tx, rx) = unbounded_channel();
    let (client, server) = tokio::io::duplex(1024);
    let incoming = stream::once(async { Ok::<_, std::io::Error>(server) }).chain(stream::pending());
    let service = HealthServer::new(Service(tx));
    tokio::spawn(Server::builder().layer(layer(background)).add_service(service).serve_with_incoming(incoming));
    let mut client = Some(client);
    let connector = tower::service_fn(move |_| {
        let client = client.take().ok_or(std::io::ErrorKind::NotConnected);
        async move { Ok::<_, std::io::Error>(TokioIo::new(client?)) }
    });
    let channel = Endpoint::from_static("http://in.memory").connect_with_connector(connector).await.unwrap();
    (HealthClient::new(channel), rx)
}

fn named(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test]
async fn unary_status_decides_success() {
    let background = on_no_thread();
    let (mut client, mut rx) = connect(&background).await;
    assert_eq!(client.check(named("")).await.unwrap().into_inner().status, 1);
    let outcome = rx.recv().await.unwrap();
    assert_eq!((outcome.end, outcome.delivery, outcome.grpc_status), (End::Complete, Delivery::HandedOver, Some(0)));
    assert!(outcome.is_success());

    assert_eq!(client.check(named("missing")).await.unwrap_err().code(), Code::NotFound);
    let outcome = rx.recv().await.unwrap();
    assert_eq!((outcome.end, outcome.grpc_status), (End::Complete, Some(Code::NotFound as i32)));
    assert_eq!(outcome.status.unwrap(), 200);
    assert!(!outcome.is_success());
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.completed, stats.skipped), (1, 1));
}

#[tokio::test]
async fn status_in_stream_trailers_decides_success() {
    let background = on_no_thread();
    let (mut client, mut rx) = connect(&background).await;
    for (service, code) in [("", Code::Ok), ("missing", Code::NotFound), ("broken", Code::DataLoss)] {
        let answers = match client.watch(named(service)).await {
            Ok(stream) => stream.into_inner().collect().await,
            Err(status) => vec![Err(status)],
        };
        let seen = answers.last().unwrap().as_ref().err().map_or(Code::Ok, Status::code);
        assert_eq!(seen, code);
        let outcome = rx.recv().await.unwrap();
        assert_eq!((outcome.end, outcome.delivery), (End::Complete, Delivery::HandedOver));
        assert_eq!((outcome.grpc_status, outcome.is_success()), (Some(code as i32), code == Code::Ok));
    }
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.completed, stats.skipped), (1, 2));
}

#[tokio::test]
async fn cancelled_stream_is_aborted_without_a_status() {
    let background = on_no_thread();
    let (mut client, mut rx) = connect(&background).await;
    let mut stream = client.watch(named("endless")).await.unwrap().into_inner();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    let outcome = rx.recv().await.unwrap();
    assert_eq!((outcome.end, outcome.delivery, outcome.grpc_status), (End::Aborted, Delivery::NotDelivered, None));
    assert!(!outcome.is_success());
    assert_eq!(after_shutdown(&background).await.skipped, 1);
}
