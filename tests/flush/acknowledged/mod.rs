//! Responses that request an acknowledgement. A filter on the client's socket drops what arrives,
//! so that the test decides which bytes its kernel acknowledges.

mod stress;

use std::{os::fd::AsFd, sync::mpsc, time::Duration};

use axum::{Router, routing::get};
use socket2::{SockFilter, SockRef};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background,
    after_response::{Delivery, End},
    axum::serve,
    flush::Tracker,
};

use crate::support::{ALL, Client, HTTP1, Http1, Setup, Stack, on_each, within};

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
async fn live_client_acknowledges_each_response() {
    on_each(ALL, |stack| async move {
        let mut site = requesting(stack).start();
        let mut client = Client::connect(&site).await;
        let paths = ["/full/5", "/full/0", "/chunks/3/1000", "/trailers/10", "/status/204/0", "/full/1000000"];
        for path in paths {
            client.get(path).await;
            site.record(path).await.is(End::Complete, Delivery::Acknowledged);
        }
        let stats = site.sure_stats();
        assert_eq!((stats.flushed, stats.acknowledged, stats.unacknowledged), (6, 6, 0), "{stats:?}");
    })
    .await;
}

#[tokio::test]
async fn pipelined_responses_are_acknowledged() {
    on_each(HTTP1, |stack| async move {
        let mut site = requesting(stack).start();
        let mut client = Http1::connect(&site).await;
        let heads = (1..=5).map(|n| format!("GET /full/{n} HTTP/1.1\r\nhost: site\r\n\r\n"));
        client.send(heads.collect::<String>()).await;
        for n in 1..=5 {
            assert_eq!(client.answer().await.body, n);
            site.record(&format!("/full/{n}")).await.is(End::Complete, Delivery::Acknowledged);
        }
    })
    .await;
}

/// The server closes the connection after the response, and waits for the acknowledgement before.
#[tokio::test]
async fn last_response_of_a_connection_is_acknowledged() {
    on_each(HTTP1, |stack| async move {
        let mut site = requesting(stack).start();
        let mut client = Http1::connect(&site).await;
        client.send("GET /full/77 HTTP/1.1\r\nhost: site\r\nconnection: close\r\n\r\n").await;
        assert_eq!(client.answer().await.body, 77);
        site.record("/full/77").await.is(End::Complete, Delivery::Acknowledged);
        assert_eq!(client.rest().await, 0);
    })
    .await;
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

/// A server of `axum::serve` on a plain listener, and a client whose kernel can be frozen.
struct World {
    tracker: Tracker,
    outcomes: tokio::sync::mpsc::UnboundedReceiver<(&'static str, Delivery)>,
    client: TcpStream,
}

impl World {
    /// The client has received one response, was frozen, and has sent a request with these fields,
    /// whose handler has begun.
    async fn frozen(fields: &str) -> Self {
        let (sender, outcomes) = tokio::sync::mpsc::unbounded_channel();
        let handler = async move |after: AfterResponse| {
            let task = sender.clone();
            sender.send(("handler", Delivery::NotDelivered)).unwrap();
            let work = async move { _ = task.send(("task", Delivery::Acknowledged)) };
            after.task("").on_acknowledged().spawn(work).unwrap();
            after.hook(move |outcome| sender.send(("hook", outcome.delivery)).unwrap());
            "hello"
        };
        let app = Router::new().route("/", get(handler)).layer(AfterResponseLayer::new(Background::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tracker = Tracker::new();
        tokio::spawn(serve(listener, app).tracker(&tracker).into_future());
        let mut world = Self { tracker, outcomes, client: TcpStream::connect(address).await.unwrap() };
        world.client.write_all(b"GET / HTTP/1.1\r\nhost: site\r\n\r\n").await.unwrap();
        world.receive().await;
        assert_eq!(world.outcome().await, ("handler", Delivery::NotDelivered));
        assert_eq!(world.outcome().await, ("hook", Delivery::Acknowledged));
        assert_eq!(world.outcome().await, ("task", Delivery::Acknowledged));

        freeze(&world.client);
        let request = format!("GET / HTTP/1.1\r\nhost: site\r\n{fields}\r\n");
        world.client.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(world.outcome().await, ("handler", Delivery::NotDelivered));
        world
    }

    async fn outcome(&mut self) -> (&'static str, Delivery) {
        within(self.outcomes.recv()).await.unwrap()
    }

    async fn receive(&mut self) {
        let mut received = Vec::new();
        while !received.ends_with(b"hello") {
            assert!(within(self.client.read_buf(&mut received)).await.unwrap() > 0);
        }
    }

    /// Returns the numbers of responses that were acknowledged and that were not.
    fn counted(&self) -> (u64, u64) {
        (self.tracker.stats().acknowledged, self.tracker.stats().unacknowledged)
    }
}

#[tokio::test]
async fn vanished_client_that_returns_acknowledges() {
    for fields in ["", "connection: close\r\n"] {
        let mut world = World::frozen(fields).await;
        // Long enough for the first checks, all of which find nothing.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(world.outcomes.try_recv().is_err());
        thaw(&world.client);
        world.receive().await;
        assert_eq!(world.outcome().await, ("hook", Delivery::Acknowledged));
        assert_eq!(world.outcome().await, ("task", Delivery::Acknowledged));
        assert_eq!(world.counted(), (2, 0));
    }
}

#[tokio::test]
async fn client_that_resets_without_the_response_does_not_acknowledge() {
    let World { client, mut outcomes, tracker } = World::frozen("").await;
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let (who, delivery) = within(outcomes.recv()).await.unwrap();
    assert!(who == "hook" && delivery != Delivery::Acknowledged, "{who} {delivery}");
    assert_eq!(tracker.stats().acknowledged, 1);
}

#[tokio::test]
async fn wait_for_a_vanished_client_ends() {
    for fields in ["", "connection: close\r\n"] {
        let mut world = World::frozen(fields).await;
        tokio::time::pause();
        assert_eq!(world.outcomes.recv().await, Some(("hook", Delivery::Flushed)));
        assert_eq!(world.counted(), (1, 1));
        tokio::time::resume();
    }
}

/// Its kernel acknowledges, although the process reads nothing.
#[tokio::test]
async fn kernel_of_a_client_that_never_reads_acknowledges() {
    let (sender, outcomes) = mpsc::channel();
    let setup = requesting(Stack::AxumHttp1).registers(move |after, _| {
        assert!(after.request_acknowledgement());
        let sender = sender.clone();
        after.hook(move |outcome| sender.send(outcome.is_acknowledged()).unwrap());
    });
    let mut site = setup.start();
    let mut client = Http1::connect(&site).await;
    client.send_get("/full/5").await;
    site.record("/full/5").await.is(End::Complete, Delivery::Acknowledged);
    assert!(outcomes.recv().unwrap());
    assert_eq!(client.wire.read(), 0);
}
