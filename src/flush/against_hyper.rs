//! What responses are told on connections that hyper serves, against what their clients got.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, Version};
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
    connection::{Connection, Verdict},
    frames::{Event, Frames, StreamId},
    generated::frame,
    scripted::{FLUSHED, Heard, connection, flushed, stats},
    tracked_io::TrackedIo,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

type Io = TrackedIo<TokioIo<DuplexStream>>;

/// One response, with the path it answers.
struct Answered {
    path: String,
    stream: Option<StreamId>,
    response: Arc<Heard>,
}

/// Answers with as many bytes as the path says, or with the path.
#[derive(Clone)]
struct Answers {
    connection: Arc<Connection>,
    answered: Arc<Mutex<Vec<Answered>>>,
}

impl Answers {
    fn new(io: DuplexStream) -> (Io, Self, Arc<super::stats::Counters>) {
        let (connection, counters) = connection();
        let io = TrackedIo::new(TokioIo::new(io), connection.clone());
        (io, Self { connection, answered: Arc::default() }, counters)
    }

    /// What each was told, by its path.
    fn told(&self) -> Vec<(String, Vec<Verdict>)> {
        let answered = self.answered.lock().unwrap();
        answered.iter().map(|it| (it.path.clone(), it.response.verdicts())).collect()
    }

    /// Once all are told. It fails by itself rather than wait for ever.
    async fn all_told(&self, count: usize) {
        for _ in 0..100_000 {
            if self.told().iter().filter(|(_, verdicts)| !verdicts.is_empty()).count() >= count {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{:?}", self.told());
    }
}

impl Service<Request<Incoming>> for Answers {
    type Response = Response<Ending>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let stream = self.connection.take_stream();
        let response = Arc::new(Heard::default());
        self.connection.begin(request.version(), stream, &response);
        let path = request.uri().path().trim_start_matches('/').to_owned();
        let bytes = path.parse().map_or_else(|_| path.clone().into(), |length| Bytes::from(vec![b'd'; length]));
        self.answered.lock().unwrap().push(Answered { path, stream, response: response.clone() });
        let http1 = request.version() < Version::HTTP_2;
        let body =
            Ending { body: Full::new(bytes), response: http1.then_some(response), connection: self.connection.clone() };
        ready(Ok(Response::new(body)))
    }
}

/// A body that marks its end on HTTP/1. It is always complete.
struct Ending {
    body: Full<Bytes>,
    response: Option<Arc<Heard>>,
    connection: Arc<Connection>,
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
            self.connection.await_flush(response);
        }
    }
}

/// A GET in HPACK: static fields and literals.
fn get(stream: u32, path: &str) -> Vec<u8> {
    let block = [&[0x82, 0x86, 0x04, path.len() as u8], path.as_bytes(), &[0x01, 1, b'a']].concat();
    frame(1, 0x5, stream, &block)
}

/// Reads until so many streams have ended: each with its bytes of data, and what was reset.
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

async fn serve_auto(io: Io, service: Answers) {
    _ = auto::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
}

async fn serve_http2(io: Io, service: Answers) {
    _ = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
}

/// The ids are learnt from the gate; a queue of all that opened would give the second call the malformed stream.
#[tokio::test]
async fn of_four_requests_in_one_segment_the_malformed_one_is_nobody_s() {
    for by_auto in [false, true] {
        let (mut client, server) = duplex(1 << 16);
        let (io, service, counters) = Answers::new(server);
        let served = service.clone();
        let served =
            tokio::spawn(
                async move { if by_auto { serve_auto(io, served).await } else { serve_http2(io, served).await } },
            );
        // The method twice.
        let malformed = frame(1, 0x5, 3, &[0x82, 0x82, 0x86, 0x84, 0x01, 1, b'a']);
        let requests = [get(1, "/one"), malformed, get(5, "/fifth"), get(7, "/the_seventh")].concat();
        client.write_all(&[PREFACE, &frame(4, 0, 0, &[]), &requests].concat()).await.unwrap();

        let (mut ends, resets) = read_ends(&mut client, 3).await;
        ends.sort();
        assert_eq!(ends, [(StreamId::new(1), 3), (StreamId::new(5), 5), (StreamId::new(7), 11)]);
        assert_eq!(resets, [StreamId::new(3)]);
        service.all_told(3).await;
        let streams: Vec<_> = service.answered.lock().unwrap().iter().map(|it| (it.path.clone(), it.stream)).collect();
        let expected = [("one", 1), ("fifth", 5), ("the_seventh", 7)];
        assert_eq!(streams, expected.map(|(path, stream)| (path.to_owned(), Some(StreamId::new(stream)))));
        let told = expected.map(|(path, _)| (path.to_owned(), vec![flushed(path.len() as u64)]));
        assert_eq!(service.told(), told);
        assert_eq!(counters.stats(), stats(|stats| (stats.flushed, stats.undelivered) = (3, 1)));
        drop(client);
        served.await.unwrap();
    }
}

/// Everything is larger than the window, many at once, over a transport that takes little at a time.
#[tokio::test]
async fn each_of_many_http2_responses_is_flushed_with_its_own_length() {
    // hyper admits 200 at once.
    const RESPONSES: usize = 200;
    let (client, server) = duplex(4_999);
    let (io, service, counters) = Answers::new(server);
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
    service.all_told(RESPONSES).await;
    for (path, verdicts) in service.told() {
        assert_eq!(verdicts, [flushed(path.parse().unwrap())]);
    }
    assert_eq!(counters.stats(), stats(|stats| stats.flushed = RESPONSES as u64));
    drop(requests);
    client.await.unwrap().unwrap();
    served.await.unwrap().unwrap();
}

/// C9: the body has long ended, and its client does not read.
#[tokio::test]
async fn a_response_is_told_nothing_before_its_last_byte_was_taken() {
    for http2 in [false, true] {
        let (mut client, server) = duplex(1000);
        let (io, service, _) = Answers::new(server);
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
            if service.told().iter().any(|(_, verdicts)| !verdicts.is_empty()) {
                break;
            }
            let mut bytes = [0; 1000];
            if let Poll::Ready(read) = task::spawn(client.read(&mut bytes)).poll() {
                taken += read.unwrap();
            }
            // Runs what hyper spawned, and gives the transport a new budget.
            tokio::task::yield_now().await;
        }
        // What the transport holds was flushed to it, as to a kernel.
        assert!(taken > 49_000 && taken < 51_000, "{taken}");
        let verdict = if http2 { flushed(50_000) } else { FLUSHED };
        assert_eq!(service.told(), [("50000".to_owned(), vec![verdict])]);
    }
}

#[tokio::test]
async fn pipelined_http1_responses_are_flushed_one_by_one() {
    let (mut client, server) = duplex(1000);
    let (io, service, counters) = Answers::new(server);
    let mut served = task::spawn(http1::Builder::new().serve_connection(io, service.clone()));
    client.write_all(&b"GET /700 HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3)).await.unwrap();
    assert_pending!(served.poll());
    let flushed_of = || service.told().into_iter().map(|(_, verdicts)| verdicts).collect::<Vec<_>>();
    assert_eq!(flushed_of(), [vec![FLUSHED], vec![]], "there is room for one");

    client.read_exact(&mut [0; 900]).await.unwrap();
    assert_pending!(served.poll());
    assert_eq!(flushed_of(), [vec![FLUSHED], vec![FLUSHED], vec![]]);
    drop(client);
    assert!(served.poll().is_ready());
    drop(served);
    assert_eq!(flushed_of(), [[FLUSHED], [FLUSHED], [Verdict::Lost]]);
    assert_eq!(counters.stats(), stats(|stats| (stats.flushed, stats.lost) = (2, 1)));
}

#[tokio::test]
async fn what_a_dropped_http2_connection_had_open_is_lost() {
    let (mut client, server) = duplex(1000);
    let (io, service, _) = Answers::new(server);
    let mut served = task::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service.clone()));
    client.write_all(&[PREFACE, &frame(4, 0, 0, &[]), &get(1, "/100000"), &get(3, "/9")].concat()).await.unwrap();
    assert_pending!(served.poll());
    drop(served);
    let told = service.told();
    assert!(!told.is_empty() && told.iter().all(|(_, verdicts)| *verdicts == [Verdict::Lost]), "{told:?}");
}
