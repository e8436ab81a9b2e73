//! Responses that request an acknowledgement. A filter on the client's socket drops what arrives,
//! so that the test decides which bytes its kernel acknowledges.

mod endings;
mod namespaces;
mod processes;
mod reader;
mod stress;
mod tonic;

use std::{net::SocketAddr, os::fd::AsFd, sync::Arc, time::Duration};

use axum::{Router, extract::Path, routing::get};
use socket2::{Domain, SockFilter, SockRef, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background,
    after_response::{Delivery, End},
    axum::serve,
    flush::Tracker,
};

use crate::support::{ALL, Client, Http1, Setup, Stack, frames, on_each, within};

fn requesting(stack: Stack) -> Setup {
    Setup::on(stack).registers(|after, _| assert!(after.request_acknowledgement()))
}

/// Drops every segment that arrives at this socket from now on, so that none is acknowledged.
fn freeze(socket: &impl AsFd) {
    const RETURN: u16 = 0x06;
    SockRef::from(socket).attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)]).unwrap();
}

fn thaw(socket: &impl AsFd) {
    SockRef::from(socket).detach_filter().unwrap();
}

#[tokio::test]
async fn response_without_a_request_for_it_stays_flushed() {
    on_each(ALL, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Client::connect(&site).await;
        client.get("/full/5").await;
        site.record("/full/5").await.is_flushed(5);
        let stats = site.sure_stats();
        assert_eq!((stats.acknowledged, stats.unacknowledged), (0, 0));
    })
    .await;
}

#[tokio::test]
async fn untracked_connection_refuses_the_request() {
    on_each(&[Stack::AutoHttp1, Stack::AutoHttp2], |stack| async move {
        let setup = Setup::on(stack).untracked().registers(|after, _| {
            assert!(!after.request_acknowledgement());
            assert!(after.task("").on_acknowledged().spawn(async {}).unwrap_err().is_untracked());
        });
        let mut site = setup.start();
        Client::connect(&site).await.get("/full/5").await;
        site.record("/full/5").await.is(End::Complete, Delivery::HandedOver);
    })
    .await;
}

type Event = (&'static str, Delivery);

/// A server of `axum::serve`: `GET /{length}`, and `GET /held/{length}`, which waits until it is
/// released. Each handler reports that it has begun, its hook the outcome, and its task that it
/// ran.
struct Server {
    address: SocketAddr,
    tracker: Tracker,
    outcomes: mpsc::UnboundedReceiver<Event>,
    held: Arc<Semaphore>,
}

impl Server {
    fn start() -> Self {
        Self::start_on("127.0.0.1")
    }

    fn start_on(host: &str) -> Self {
        let (sender, outcomes) = mpsc::unbounded_channel();
        let held = Arc::new(Semaphore::new(0));
        let respond = async move |after: AfterResponse, Path(length): Path<usize>| {
            register(&after, &sender);
            vec![b'x'; length]
        };
        let release = held.clone();
        let respond_later = {
            let respond = respond.clone();
            async move |after: AfterResponse, path: Path<usize>| {
                let body = respond(after, path).await;
                release.acquire().await.unwrap().forget();
                body
            }
        };
        let routes = Router::new().route("/{length}", get(respond)).route("/held/{length}", get(respond_later));
        let app = routes.layer(AfterResponseLayer::new(Background::default()));
        let listener = std::net::TcpListener::bind((host, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let tracker = Tracker::new();
        let listener = TcpListener::from_std(listener).unwrap();
        tokio::spawn(serve(listener, app).tracker(&tracker).into_future());
        Self { address, tracker, outcomes, held }
    }

    /// Releases one handler.
    fn release(&self) {
        self.held.add_permits(1);
    }

    async fn event(&mut self) -> Event {
        within(self.outcomes.recv()).await.unwrap()
    }

    /// Waits until a handler has begun.
    async fn begun(&mut self) {
        assert_eq!(self.event().await, ("handler", Delivery::NotDelivered));
    }

    /// Waits for the outcome of a response, and for the task of one that was acknowledged.
    async fn delivery(&mut self) -> Delivery {
        let (who, delivery) = self.event().await;
        assert_eq!(who, "hook", "{delivery}");
        if delivery == Delivery::Acknowledged {
            assert_eq!(self.event().await, ("task", Delivery::Acknowledged));
        }
        delivery
    }

    /// Waits long enough for the first checks, none of which finds an acknowledgement.
    async fn has_no_outcome(&mut self) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(self.outcomes.try_recv().is_err());
    }

    /// Returns the numbers of responses that were acknowledged and that were not.
    fn counted(&self) -> (u64, u64) {
        (self.tracker.stats().acknowledged, self.tracker.stats().unacknowledged)
    }
}

fn register(after: &AfterResponse, sender: &mpsc::UnboundedSender<Event>) {
    let (task, hook) = (sender.clone(), sender.clone());
    after.task("").on_acknowledged().spawn(async move { _ = task.send(("task", Delivery::Acknowledged)) }).unwrap();
    after.hook(move |outcome| hook.send(("hook", outcome.delivery)).unwrap());
    sender.send(("handler", Delivery::NotDelivered)).unwrap();
}

/// Connects with a small receive buffer.
fn connect(address: SocketAddr) -> std::net::TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

/// A server and a client whose kernel can be frozen.
struct World {
    server: Server,
    client: TcpStream,
}

impl World {
    /// The client has received one response, was frozen, and has sent a request with these fields,
    /// whose handler has begun.
    async fn frozen(fields: &str) -> Self {
        let server = Server::start();
        let mut world = Self { client: TcpStream::connect(server.address).await.unwrap(), server };
        world.client.write_all(b"GET /5 HTTP/1.1\r\nhost: site\r\n\r\n").await.unwrap();
        world.receive().await;
        world.server.begun().await;
        assert_eq!(world.server.delivery().await, Delivery::Acknowledged);

        freeze(&world.client);
        let request = format!("GET /5 HTTP/1.1\r\nhost: site\r\n{fields}\r\n");
        world.client.write_all(request.as_bytes()).await.unwrap();
        world.server.begun().await;
        world
    }

    async fn receive(&mut self) {
        let mut received = Vec::new();
        while !received.ends_with(b"xxxxx") {
            assert!(within(self.client.read_buf(&mut received)).await.unwrap() > 0);
        }
    }
}

#[tokio::test]
async fn vanished_client_that_returns_acknowledges() {
    for fields in ["", "connection: close\r\n"] {
        let mut world = World::frozen(fields).await;
        world.server.has_no_outcome().await;
        thaw(&world.client);
        world.receive().await;
        assert_eq!(world.server.delivery().await, Delivery::Acknowledged);
        assert_eq!(world.server.counted(), (2, 0));
    }
}

#[tokio::test]
async fn client_that_resets_without_the_response_does_not_acknowledge() {
    let World { client, mut server } = World::frozen("").await;
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_ne!(server.delivery().await, Delivery::Acknowledged);
    assert_eq!(server.tracker.stats().acknowledged, 1);
}

#[tokio::test]
async fn wait_for_a_vanished_client_ends() {
    for fields in ["", "connection: close\r\n"] {
        let mut world = World::frozen(fields).await;
        tokio::time::pause();
        assert_eq!(world.server.outcomes.recv().await, Some(("hook", Delivery::Flushed)));
        assert_eq!(world.server.counted(), (1, 1));
        tokio::time::resume();
    }
}

/// The client no longer wants the response, which is on its way.
#[tokio::test]
async fn stream_that_is_reset_after_its_flush_is_acknowledged() {
    let mut server = Server::start();
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(&[frames::PREFACE, &frames::settings(), &frames::get(1, "/5")].concat()).await.unwrap();
    server.begun().await;
    assert_eq!(server.delivery().await, Delivery::Acknowledged);

    freeze(&client);
    client.write_all(&frames::get(3, "/5")).await.unwrap();
    server.begun().await;
    server.has_no_outcome().await;
    client.write_all(&frames::reset(3)).await.unwrap();
    server.has_no_outcome().await;
    thaw(&client);
    assert_eq!(server.delivery().await, Delivery::Acknowledged);
}

/// With `pipeline_flush`, hyper does not poll the transport while a handler runs and the next
/// request has arrived. The module docs of `flush` say so.
#[tokio::test]
async fn pipeline_flush_delays_the_check_until_the_handler_ends() {
    within(async {
        let mut site = requesting(Stack::HyperHttp1).pipeline_flush().start();
        let mut client = TcpStream::connect(site.address()).await.unwrap();
        let get = |path| format!("GET {path} HTTP/1.1\r\nhost: site\r\n\r\n");
        freeze(&client);
        client.write_all(get("/full/5").as_bytes()).await.unwrap();
        site.body_dropped("/full/5").await;
        client.write_all((get("/wait/full/1") + &get("/full/2")).as_bytes()).await.unwrap();
        site.handlers.reached().await;
        thaw(&client);
        let _ = client.read_u8().await.unwrap(); // the kernel of the client has acknowledged
        tokio::time::sleep(Duration::from_millis(50)).await; // long enough for a check
        assert!(site.unasked().is_empty());
        site.handlers.open();
        for path in ["/full/5", "/wait/full/1", "/full/2"] {
            site.record(path).await.is(End::Complete, Delivery::Acknowledged);
        }
    })
    .await;
}

/// Its kernel acknowledges, although the process reads nothing.
#[tokio::test]
async fn kernel_of_a_client_that_never_reads_acknowledges() {
    let mut site = requesting(Stack::AxumHttp1).start();
    let mut client = Http1::connect(&site).await;
    client.send_get("/full/5").await;
    site.record("/full/5").await.is(End::Complete, Delivery::Acknowledged);
    assert_eq!(client.wire.read(), 0);
}
