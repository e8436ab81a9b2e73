//! Compares the outcomes of responses that hyper serves with what the client received.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::Service,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_test::{assert_pending, task};

use super::{
    generated::frame,
    scripted::{FLUSHED, begin_with, connection, flushed, stats},
};
use crate::{
    after_response::{FlushOutcome, TestResponse},
    flush::{
        connection::Connection,
        frames::{Event, Frames, StreamId},
        io::TrackedIo,
        tracker::Counters,
    },
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

type Io = TrackedIo<TokioIo<DuplexStream>>;

/// A response and the path of its request.
struct Sent {
    path: String,
    response: TestResponse,
}

/// Responds with the number of bytes in the path, or with the path.
#[derive(Clone)]
struct Responder {
    connection: Arc<Connection>,
    sent: Arc<Mutex<Vec<Sent>>>,
}

impl Responder {
    fn new(io: DuplexStream) -> (Io, Self, Arc<Counters>) {
        let (connection, counters) = connection();
        let io = TrackedIo::new(TokioIo::new(io), connection.clone());
        (io, Self { connection, sent: Arc::default() }, counters)
    }

    /// Returns the outcomes so far, each with the path of its request.
    fn outcomes(&self) -> Vec<(String, Option<FlushOutcome>)> {
        let sent = self.sent.lock().unwrap();
        sent.iter().map(|sent| (sent.path.clone(), sent.response.flush_outcome())).collect()
    }

    /// Waits for `count` outcomes.
    async fn wait_for(&self, count: usize) {
        for _ in 0..100_000 {
            if self.outcomes().iter().filter(|(_, outcome)| outcome.is_some()).count() >= count {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{:?}", self.outcomes());
    }
}

impl Service<Request<Incoming>> for Responder {
    type Response = Response<Ending>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let version = request.version();
        let response = begin_with(&self.connection, version, request.headers_mut());
        let path = request.uri().path().trim_start_matches('/').to_owned();
        let bytes = path.parse().map_or_else(|_| path.clone().into(), |length| Bytes::from(vec![b'd'; length]));
        self.sent.lock().unwrap().push(Sent { path, response: response.clone() });
        response.set_head(false);
        ready(Ok(Response::new(Ending { body: Full::new(bytes), response: Some(response) })))
    }
}

/// A body that ends its response when it is dropped. It is always complete.
struct Ending {
    body: Full<Bytes>,
    response: Option<TestResponse>,
}

impl Body for Ending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(response) = self.response.take() {
            response.end();
        }
    }
}

/// A GET request in HPACK, with static fields and literals.
fn get(stream: u32, path: &str) -> Vec<u8> {
    let block = [&[0x82, 0x86, 0x04, path.len() as u8], path.as_bytes(), &[0x01, 1, b'a']].concat();
    frame(1, 0x5, stream, &block)
}

/// Reads until `count` streams have ended. Returns them with their last DATA frame, and the streams
/// that were reset.
async fn read_ends(client: &mut DuplexStream, count: usize) -> (Vec<(StreamId, u32)>, Vec<StreamId>) {
    let (mut frames, mut ends, mut resets) = (Frames::default(), Vec::new(), Vec::new());
    let mut bytes = [0; 1000];
    while ends.len() < count {
        let read = client.read(&mut bytes).await.unwrap();
        assert!(read > 0);
        let mut rest = &bytes[..read];
        while !rest.is_empty() {
            let (read, event) = frames.read(rest);
            rest = &rest[read..];
            match event {
                Some(Event::Data { stream, data, end_stream: true }) => ends.push((stream, data)),
                Some(Event::Reset { stream, .. }) => resets.push(stream),
                _ => {}
            }
        }
    }
    (ends, resets)
}

async fn serve_auto(io: Io, service: Responder) {
    _ = auto::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
}

async fn serve_http2(io: Io, service: Responder) {
    _ = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
}

/// A queue of all opened streams would give the malformed stream to the second call.
#[tokio::test]
async fn malformed_request_in_a_segment_does_not_shift_the_others() {
    for by_auto in [false, true] {
        let (mut client, server) = duplex(1 << 16);
        let (io, service, counters) = Responder::new(server);
        let served = service.clone();
        let served =
            tokio::spawn(
                async move { if by_auto { serve_auto(io, served).await } else { serve_http2(io, served).await } },
            );
        // It has two methods.
        let malformed = frame(1, 0x5, 3, &[0x82, 0x82, 0x86, 0x84, 0x01, 1, b'a']);
        let requests = [get(1, "/one"), malformed, get(5, "/fifth"), get(7, "/the_seventh")].concat();
        client.write_all(&[PREFACE, &frame(4, 0, 0, &[]), &requests].concat()).await.unwrap();

        let (mut ends, resets) = read_ends(&mut client, 3).await;
        ends.sort();
        assert_eq!(ends, [(StreamId::new(1), 3), (StreamId::new(5), 5), (StreamId::new(7), 11)]);
        assert_eq!(resets, [StreamId::new(3)]);
        service.wait_for(3).await;
        // Each body has another length, so a wrong stream would have another outcome.
        let expected = ["one", "fifth", "the_seventh"].map(|path| (path.to_owned(), Some(flushed(path.len() as u64))));
        assert_eq!(service.outcomes(), expected);
        // The doubles of the responses report no bytes.
        let expected = stats(|stats| (stats.flushed, stats.mismatched, stats.undelivered) = (3, 3, 1));
        assert_eq!(counters.stats(), expected);
        drop(client);
        served.await.unwrap();
    }
}

/// Many concurrent responses, most larger than the window, over a transport with a small buffer.
#[tokio::test]
async fn concurrent_http2_responses_are_flushed_with_their_lengths() {
    // hyper allows 200 concurrent streams.
    const RESPONSES: usize = 200;
    let (client, server) = duplex(4_999);
    let (io, service, counters) = Responder::new(server);
    let served = tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service.clone()));
    let (requests, client) =
        hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(client))
            .await
            .unwrap();
    let client = tokio::spawn(client);
    let lengths = (0..RESPONSES).map(|at| at * 277);
    let responses = lengths.map(|length| {
        let mut requests = requests.clone();
        tokio::spawn(async move {
            requests.ready().await.unwrap();
            let body = Full::from(vec![b'r'; length / 3]);
            let request = Request::post(format!("http://server/{length}")).body(body).unwrap();
            let response = requests.send_request(request).await.unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), length);
        })
    });
    for response in responses.collect::<Vec<_>>() {
        response.await.unwrap();
    }
    service.wait_for(RESPONSES).await;
    for (path, outcome) in service.outcomes() {
        assert_eq!(outcome, Some(flushed(path.parse().unwrap())));
    }
    // The doubles of the responses report no bytes, and one response has none.
    let expected = stats(|stats| (stats.flushed, stats.mismatched) = (RESPONSES as u64, RESPONSES as u64 - 1));
    assert_eq!(counters.stats(), expected);
    drop(requests);
    client.await.unwrap().unwrap();
    served.await.unwrap().unwrap();
}

/// The body ended long ago, but the client does not read.
#[tokio::test]
async fn response_has_no_outcome_before_its_last_byte_was_taken() {
    for http2 in [false, true] {
        let (mut client, server) = duplex(1000);
        let (io, service, _) = Responder::new(server);
        let mut served = task::spawn(serve_auto(io, service.clone()));
        if http2 {
            // The window of a stream is 65,535 bytes.
            let request = [PREFACE, &frame(4, 0, 0, &[]), &get(1, "/50000")].concat();
            client.write_all(&request).await.unwrap();
        } else {
            client.write_all(b"GET /50000 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        }
        let mut taken = 0;
        loop {
            assert_pending!(served.poll());
            if service.outcomes().iter().any(|(_, outcome)| outcome.is_some()) {
                break;
            }
            let mut bytes = [0; 1000];
            if let Poll::Ready(read) = task::spawn(client.read(&mut bytes)).poll() {
                taken += read.unwrap();
            }
            // Runs the tasks of hyper, and renews the budget of the transport.
            tokio::task::yield_now().await;
        }
        // The last bytes are in the buffer of the transport, like in a kernel.
        assert!(taken > 49_000 && taken < 51_000, "{taken}");
        let outcome = if http2 { flushed(50_000) } else { FLUSHED };
        assert_eq!(service.outcomes(), [("50000".to_owned(), Some(outcome))]);
    }
}

#[tokio::test]
async fn pipelined_http1_responses_are_flushed_one_by_one() {
    let (mut client, server) = duplex(1000);
    let (io, service, counters) = Responder::new(server);
    let mut served = task::spawn(http1::Builder::new().serve_connection(io, service.clone()));
    client.write_all(&b"GET /700 HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3)).await.unwrap();
    assert_pending!(served.poll());
    let outcomes = || service.outcomes().into_iter().map(|(_, outcome)| outcome).collect::<Vec<_>>();
    assert_eq!(outcomes(), [Some(FLUSHED), None], "there is room for one response");

    client.read_exact(&mut [0; 900]).await.unwrap();
    assert_pending!(served.poll());
    assert_eq!(outcomes(), [Some(FLUSHED), Some(FLUSHED), None]);
    drop(client);
    assert!(served.poll().is_ready());
    drop(served);
    assert_eq!(outcomes(), [Some(FLUSHED), Some(FLUSHED), Some(FlushOutcome::Lost)]);
    assert_eq!(counters.stats(), stats(|stats| (stats.flushed, stats.lost) = (2, 1)));
}

#[tokio::test]
async fn dropped_http2_connection_loses_open_responses() {
    let (mut client, server) = duplex(1000);
    let (io, service, _) = Responder::new(server);
    let mut served = task::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service.clone()));
    client.write_all(&[PREFACE, &frame(4, 0, 0, &[]), &get(1, "/100000"), &get(3, "/9")].concat()).await.unwrap();
    assert_pending!(served.poll());
    drop(served);
    let outcomes = service.outcomes();
    let all_lost = outcomes.iter().all(|(_, outcome)| *outcome == Some(FlushOutcome::Lost));
    assert!(!outcomes.is_empty() && all_lost, "{outcomes:?}");
}
