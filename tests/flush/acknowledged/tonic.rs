//! gRPC with tonic's client, and tonic's service on `axum::serve`.

use std::{env, net::SocketAddr, pin::Pin, process::Stdio, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    process::Command,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};
use tonic::{
    Code, Request, Response, Status,
    service::Routes,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background,
    after_response::{Delivery, End, Outcome},
    axum::serve,
};

use super::freeze;
use crate::support::{after_shutdown, within};

const CLIENT: &str = "TOWER_OFFLOAD_TEST_GRPC_CLIENT";

/// Registers a hook, and a task for an acknowledged response. `None` says that a handler has begun.
struct Service(UnboundedSender<Option<Outcome>>);

impl Service {
    fn register<T>(&self, request: &Request<T>) {
        let after = request.extensions().get::<AfterResponse>().unwrap();
        after.task("").on_acknowledged().spawn_blocking(|| ()).unwrap();
        self.0.send(None).unwrap();
        let sender = self.0.clone();
        after.hook(move |outcome| sender.send(Some(outcome.clone())).unwrap());
    }
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.register(&request);
        match &*request.get_ref().service {
            "missing" => Err(Status::not_found("no such service")),
            _ => Ok(Response::new(HealthCheckResponse { status: 1 })),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.register(&request);
        let three = stream::iter((0..3).map(|status| Ok(HealthCheckResponse { status })));
        Ok(Response::new(match &*request.get_ref().service {
            "broken" => three.chain(stream::once(async { Err(Status::data_loss("in the middle")) })).boxed(),
            "endless" => three.chain(stream::pending()).boxed(),
            _ => three.boxed(),
        }))
    }
}

struct Server {
    address: SocketAddr,
    background: Background,
    events: UnboundedReceiver<Option<Outcome>>,
}

impl Server {
    async fn start() -> Self {
        let (sender, events) = unbounded_channel();
        let background = Background::default();
        let routes = Routes::new(HealthServer::new(Service(sender))).into_axum_router();
        let app = routes.layer(AfterResponseLayer::new(background.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, app).into_future());
        Self { address, background, events }
    }

    async fn begun(&mut self) {
        assert!(within(self.events.recv()).await.unwrap().is_none());
    }

    async fn outcome(&mut self) -> Outcome {
        within(self.events.recv()).await.unwrap().unwrap()
    }

    #[track_caller]
    fn expect(outcome: &Outcome, end: End, delivery: Delivery, status: Option<Code>) {
        let expected = (end, delivery, status.map(|code| code as i32));
        assert_eq!((outcome.end, outcome.delivery, outcome.grpc_status), expected);
    }
}

async fn connect(address: SocketAddr) -> HealthClient<Channel> {
    HealthClient::new(Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap())
}

fn named(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test]
async fn unary_and_streaming_responses_are_acknowledged() {
    let mut server = Server::start().await;
    let mut client = connect(server.address).await;
    for (service, code) in [("", Code::Ok), ("missing", Code::NotFound)] {
        let status = client.check(named(service)).await.map_or_else(|status| status.code(), |_| Code::Ok);
        assert_eq!(status, code);
        server.begun().await;
        Server::expect(&server.outcome().await, End::Complete, Delivery::Acknowledged, Some(code));
    }
    for (service, code) in [("", Code::Ok), ("broken", Code::DataLoss)] {
        let answers: Vec<_> = client.watch(named(service)).await.unwrap().into_inner().collect().await;
        assert_eq!(answers.last().unwrap().as_ref().map_or_else(|status| status.code(), |_| Code::Ok), code);
        server.begun().await;
        Server::expect(&server.outcome().await, End::Complete, Delivery::Acknowledged, Some(code));
    }
    // An acknowledged response need not be a success.
    assert_eq!(after_shutdown(&server.background).await.completed, 4);
}

/// The response was flushed, and the client resets the connection before its kernel has it.
#[tokio::test]
async fn client_that_vanishes_does_not_acknowledge() {
    let mut server = Server::start().await;
    let stream = TcpStream::connect(server.address).await.unwrap().into_std().unwrap();
    let socket = stream.try_clone().unwrap();
    let mut stream = Some(TcpStream::from_std(stream).unwrap());
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().ok_or(std::io::ErrorKind::NotConnected);
        async move { Ok::<_, std::io::Error>(TokioIo::new(stream?)) }
    });
    let channel = Endpoint::from_static("http://site").connect_with_connector(connector).await.unwrap();
    let mut client = HealthClient::new(channel);
    client.check(named("")).await.unwrap();
    server.begun().await;
    Server::expect(&server.outcome().await, End::Complete, Delivery::Acknowledged, Some(Code::Ok));

    freeze(&socket);
    let call = tokio::spawn(async move { client.check(named("")).await });
    server.begun().await;
    tokio::time::sleep(Duration::from_millis(50)).await; // long enough for the first checks
    assert!(server.events.try_recv().is_err());
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    SockRef::from(&socket).shutdown(std::net::Shutdown::Both).unwrap();
    drop(socket);
    assert!(call.await.unwrap().is_err());
    Server::expect(&server.outcome().await, End::Complete, Delivery::Flushed, Some(Code::Ok));
    assert_eq!(after_shutdown(&server.background).await.completed, 1);
}

/// The `main` of a client process. In an ordinary test run it returns at once.
#[tokio::test]
async fn client_process() {
    let Ok(address) = env::var(CLIENT) else { return };
    let mut client = connect(address.parse().unwrap()).await;
    client.check(named("")).await.unwrap();
    let mut stream = client.watch(named("endless")).await.unwrap().into_inner();
    while stream.next().await.is_some() {}
}

#[tokio::test]
async fn stream_whose_client_is_killed_is_not_acknowledged() {
    let mut server = Server::start().await;
    let mut client = Command::new(env::current_exe().unwrap())
        .args(["acknowledged::tonic::client_process", "--exact"])
        .env(CLIENT, server.address.to_string())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // The second call may begin before the acknowledgement of the first response is found.
    let mut outcomes = Vec::new();
    for _ in 0..3 {
        outcomes.extend(within(server.events.recv()).await.unwrap());
    }
    assert_eq!(outcomes.len(), 1);
    Server::expect(&outcomes[0], End::Complete, Delivery::Acknowledged, Some(Code::Ok));
    client.kill().await.unwrap();
    Server::expect(&server.outcome().await, End::Aborted, Delivery::NotDelivered, None);
    assert_eq!(after_shutdown(&server.background).await.completed, 1);
}
