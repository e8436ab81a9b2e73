//! Unusual ends of responses, on HTTP/1 and HTTP/2, with and without TLS.

use http::{Method, Request};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{io::AsyncWriteExt, task::JoinHandle};
use tower_offload::after_response::End;

use crate::support::{ALL, HTTP1, HTTP2, Server, read_response, read_to_close, read_until, within};

/// A hyper client on one connection.
struct Client {
    sender: Sender,
    connection: JoinHandle<()>,
}

enum Sender {
    Http1(hyper::client::conn::http1::SendRequest<Empty<Bytes>>),
    Http2(hyper::client::conn::http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    async fn connect(server: &Server) -> Self {
        let io = TokioIo::new(server.connect().await);
        if server.transport.is_http2() {
            let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (sender, connection) = builder.initial_stream_window_size(65_535).handshake(io).await.unwrap();
            Self { sender: Sender::Http2(sender), connection: tokio::spawn(async { _ = connection.await }) }
        } else {
            let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            Self { sender: Sender::Http1(sender), connection: tokio::spawn(async { _ = connection.await }) }
        }
    }

    async fn head(&mut self, method: Method, path: &str) -> hyper::Result<http::Response<Incoming>> {
        let request = Request::builder().method(method).header("te", "trailers");
        match &mut self.sender {
            Sender::Http1(sender) => {
                let request = request.uri(path).header("host", "site").body(Empty::new()).unwrap();
                within(sender.ready()).await?;
                within(sender.send_request(request)).await
            }
            Sender::Http2(sender) => {
                let request = request.uri(format!("http://site{path}")).body(Empty::new()).unwrap();
                within(sender.ready()).await?;
                within(sender.send_request(request)).await
            }
        }
    }

    /// Returns the status and the length of the body.
    async fn get(&mut self, path: &str) -> hyper::Result<(u16, usize)> {
        let response = self.head(Method::GET, path).await?;
        let status = response.status().as_u16();
        Ok((status, within(response.into_body().collect()).await?.to_bytes().len()))
    }

    /// Closes the connection at once.
    async fn leave(self) {
        self.connection.abort();
        let _ = self.connection.await;
    }
}

#[tokio::test]
async fn complete_responses_are_flushed() {
    for transport in ALL {
        let mut server = Server::start(transport).await;
        let mut client = Client::connect(&server).await;
        for (path, status, body) in [
            ("/full/5", 200, 5),
            ("/full/300000", 200, 300_000),
            ("/full/0", 200, 0),
            ("/chunks/3/1000", 200, 3000),
            ("/chunks/0/0", 200, 0),
            ("/chunks/20/10000", 200, 200_000),
            ("/trailers/10", 200, 10),
            ("/empty", 200, 0),
            ("/status/204", 204, 0),
            ("/status/304", 304, 0),
            ("/status/503", 503, 0),
            ("/nowhere", 404, 0),
        ] {
            assert_eq!(client.get(path).await.unwrap(), (status, body), "{path} on {transport:?}");
            let outcome = server.flushed(path, body as u64).await;
            assert_eq!(outcome.status.unwrap().as_u16(), status);
        }
    }
}

#[tokio::test]
async fn a_response_to_head_is_flushed_without_its_body() {
    for transport in ALL {
        let mut server = Server::start(transport).await;
        let mut client = Client::connect(&server).await;
        for path in ["/full/5", "/chunks/3/100", "/empty"] {
            client.head(Method::HEAD, path).await.unwrap();
            server.flushed(path, 0).await;
        }
    }
}

#[tokio::test]
async fn a_satisfied_content_length_ends_an_unending_body() {
    for transport in HTTP1 {
        let mut server = Server::start(transport).await;
        let mut client = Client::connect(&server).await;
        assert_eq!(client.get("/length/100000").await.unwrap().1, 100_000);
        server.flushed("/length/100000", 100_000).await;
    }
}

#[tokio::test]
async fn a_body_over_its_content_length_is_cut_there() {
    for transport in HTTP1 {
        let mut server = Server::start(transport).await;
        let mut client = Client::connect(&server).await;
        assert_eq!(client.get("/long/50").await.unwrap().1, 50);
        assert!(server.flushed("/long/50", 50).await.truncated);
        assert_eq!(client.get("/full/5").await.unwrap().1, 5);
        server.flushed("/full/5", 5).await;
    }
}

#[tokio::test]
async fn a_body_under_its_content_length_is_too_short() {
    for transport in ALL {
        let mut server = Server::start(transport).await;
        let mut client = Client::connect(&server).await;
        client.get("/short/1000").await.unwrap_err();
        let outcome = server.outcome("/short/1000").await;
        assert_eq!((outcome.end, outcome.body_bytes), (End::BodyTooShort, 999), "{transport:?}");
    }
}

#[tokio::test]
async fn a_failing_body_and_a_panic_are_named() {
    for transport in ALL {
        let mut server = Server::start(transport).await;
        Client::connect(&server).await.get("/error/1000").await.unwrap_err();
        let outcome = server.failed("/error/1000", End::BodyError).await;
        assert!(outcome.error.unwrap().contains("the body failed"));
        Client::connect(&server).await.get("/panic").await.unwrap_err();
        let outcome = server.failed("/panic", End::HandlerError).await;
        assert_eq!(outcome.error.as_deref(), Some("panicked"));
    }
}

#[tokio::test]
async fn a_client_that_leaves_aborts_its_response() {
    for transport in ALL {
        let mut server = Server::start(transport).await;
        let mut client = Client::connect(&server).await;
        let response = client.head(Method::GET, "/hang/1000").await.unwrap();
        client.leave().await;
        drop(response);
        server.failed("/hang/1000", End::Aborted).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_response_gets_none() {
    for transport in ALL {
        let mut server = Server::start(transport).await;
        let mut client = Client::connect(&server).await;
        tokio::select! {
            answer = client.get("/wait") => panic!("{answer:?}"),
            () = server.waits() => {}
        }
        client.leave().await;
        server.failed("/wait", End::NoResponse).await;
    }
}

/// h2 discards the frames that it has queued, even if the body ended long before.
#[tokio::test]
async fn a_reset_stream_is_aborted_and_others_are_flushed() {
    for transport in HTTP2 {
        let mut server = Server::start(transport).await;
        let mut client = Client::connect(&server).await;
        let blocked = client.head(Method::GET, "/full/1000000").await.unwrap();
        assert_eq!(client.get("/full/5").await.unwrap().1, 5);
        server.flushed("/full/5", 5).await;
        drop(blocked);
        let outcome = server.failed("/full/1000000", End::Aborted).await;
        assert_eq!(outcome.body_bytes, 1_000_000);
        assert_eq!(client.get("/full/6").await.unwrap().1, 6);
        server.flushed("/full/6", 6).await;
    }
}

#[tokio::test]
async fn concurrent_streams_have_their_own_outcomes() {
    for transport in HTTP2 {
        let mut server = Server::start(transport).await;
        let client = Client::connect(&server).await;
        let Sender::Http2(sender) = &client.sender else { unreachable!() };
        let mut requests = tokio::task::JoinSet::new();
        for size in 1..=100 {
            let mut sender = sender.clone();
            requests.spawn(async move {
                let request = Request::get(format!("http://site/full/{size}")).body(Empty::new()).unwrap();
                let body = sender.send_request(request).await.unwrap().into_body();
                assert_eq!(body.collect().await.unwrap().to_bytes().len(), size);
            });
        }
        within(requests.join_all()).await;
        let mut sizes = Vec::new();
        for _ in 0..100 {
            let (path, outcome) = server.any_outcome().await;
            assert!(outcome.is_flushed(), "{path}: {outcome:?}");
            assert_eq!(path, format!("/full/{}", outcome.body_bytes));
            sizes.push(outcome.body_bytes);
        }
        sizes.sort_unstable();
        assert!(sizes.into_iter().eq(1..=100));
    }
}

#[tokio::test]
async fn pipelined_responses_are_flushed_in_order() {
    for transport in HTTP1 {
        let mut server = Server::start(transport).await;
        let mut io = server.connect().await;
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: site\r\n\r\n");
        io.write_all([get("/full/3"), get("/full/4"), get("/full/5")].concat().as_bytes()).await.unwrap();
        io.flush().await.unwrap();
        for size in 3..=5 {
            assert_eq!(read_response(&mut io).await.1, size);
            server.flushed(&format!("/full/{size}"), size as u64).await;
        }
    }
}

#[tokio::test]
async fn a_response_that_ends_the_connection_is_flushed() {
    for transport in HTTP1 {
        for request in ["HTTP/1.0\r\n\r\n", "HTTP/1.1\r\nhost: site\r\nconnection: close\r\n\r\n"] {
            let mut server = Server::start(transport).await;
            let mut io = server.connect().await;
            io.write_all(format!("GET /chunks/3/1000 {request}").as_bytes()).await.unwrap();
            io.flush().await.unwrap();
            read_until(&mut io, "\r\n\r\n").await;
            assert!(read_to_close(&mut io).await.len() >= 3000);
            server.flushed("/chunks/3/1000", 3000).await;
        }
    }
}
