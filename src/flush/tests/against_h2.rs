//! Compares what the parsers find on the wire with what h2 was asked to write.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client, server};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};

use crate::flush::{
    frames::StreamId,
    inbound::{Event, Inbound},
    mark::Mark,
    outbound::{Abort, Outbound},
    preface::{Preface, Protocol},
};

/// A call of the server to its transport.
#[derive(Debug)]
enum Step {
    Accepted(Vec<u8>),
    Flushed,
    Read(Vec<u8>),
}

/// A transport that records calls.
struct Recorded {
    transport: DuplexStream,
    steps: Arc<Mutex<Vec<Step>>>,
}

impl Recorded {
    fn record(&self, step: Step) {
        self.steps.lock().unwrap().push(step);
    }
}

impl AsyncRead for Recorded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.transport).poll_read(cx, buffer))?;
        self.record(Step::Read(buffer.filled()[before..].to_vec()));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Recorded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let accepted = ready!(Pin::new(&mut self.transport).poll_write(cx, bytes))?;
        self.record(Step::Accepted(bytes[..accepted].to_vec()));
        Poll::Ready(Ok(accepted))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.transport).poll_flush(cx))?;
        self.record(Step::Flushed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}

/// The end of a stream that was requested from h2: after a number of bytes, or by a reset.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Requested {
    End(u64),
    Reset,
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("later"))])
}

fn send(stream: &mut SendStream<Bytes>, length: usize, end_stream: bool) -> u64 {
    stream.send_data(Bytes::from(vec![b'd'; length]), end_stream).unwrap();
    length as u64
}

/// Sends the response that the path names.
fn respond_to(request: &Request<RecvStream>, respond: &mut server::SendResponse<Bytes>) -> Requested {
    let mut response = Response::new(());
    let path = request.uri().path();
    if path == "/long-head" {
        // Three frames of a header block: HEADERS and two CONTINUATION.
        let long = HeaderValue::from_bytes(&[b'~'; 40_000]).unwrap();
        response.headers_mut().insert("long", long);
    }
    if matches!(path, "/head" | "/long-head") {
        respond.send_response(response, true).unwrap();
        return Requested::End(0);
    }
    let mut stream = respond.send_response(response, false).unwrap();
    match path {
        // Larger than the window, so most of it is sent later.
        "/blocked" => Requested::End(send(&mut stream, 300_000, true)),
        "/chunks" => Requested::End((0..9).map(|chunk| send(&mut stream, 1_000 * chunk, chunk == 8)).sum()),
        "/empty-end" => Requested::End(send(&mut stream, 17_000, false) + send(&mut stream, 0, true)),
        "/trailers" => {
            let sent = send(&mut stream, 70_000, false);
            stream.send_trailers(trailers()).unwrap();
            Requested::End(sent)
        }
        _ => {
            send(&mut stream, 10, false);
            stream.send_reset(Reason::INTERNAL_ERROR);
            Requested::Reset
        }
    }
}

async fn serve(transport: Recorded) -> Vec<(StreamId, Requested)> {
    let mut connection = server::handshake(transport).await.unwrap();
    let mut requested = Vec::new();
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted.unwrap();
        let outcome = respond_to(&request, &mut respond);
        requested.push((StreamId::new(respond.stream_id().as_u32()), outcome));
    }
    requested
}

/// Sends all requests at once, some with bodies and trailers, and reads all responses.
async fn request_all(transport: DuplexStream) {
    let (mut requests, connection) = client::handshake(transport).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut responses = Vec::new();
    for round in 0..4 {
        for path in ["head", "blocked", "long-head", "chunks", "reset", "empty-end", "trailers"] {
            let request = Request::get(format!("http://server/{path}")).body(()).unwrap();
            requests = requests.ready().await.unwrap();
            let (response, mut body) = requests.send_request(request, round == 0).unwrap();
            match round {
                0 => {}
                1 => _ = send(&mut body, 300, true),
                2 => body.send_trailers(trailers()).unwrap(),
                _ => {
                    send(&mut body, 300, false);
                    body.send_trailers(trailers()).unwrap();
                }
            }
            responses.push(tokio::spawn(async move {
                let Ok(response) = response.await else { return };
                let mut body = response.into_body();
                while let Some(Ok(data)) = body.data().await {
                    body.flow_control().release_capacity(data.len()).unwrap();
                }
            }));
        }
    }
    for response in responses {
        response.await.unwrap();
    }
    drop(requests);
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn parsers_find_what_h2_was_asked_to_write() {
    // The transport accepts little at a time, so that writes are split at many positions.
    let (client, server) = duplex(5_003);
    let steps = Arc::new(Mutex::new(Vec::new()));
    let client = tokio::spawn(request_all(client));
    let requested = serve(Recorded { transport: server, steps: steps.clone() }).await;
    client.await.unwrap();

    let (mut preface, mut inbound, mut outbound) = (Preface::default(), Inbound::default(), Outbound::<()>::default());
    let (mut opened, mut client_resets, mut found, mut resets) = (Vec::new(), Vec::new(), BTreeMap::new(), Vec::new());
    let (mut accepted, mut early_flushes, mark) = (0, 0, Mark::new());
    for step in steps.lock().unwrap().iter() {
        match step {
            Step::Accepted(bytes) => {
                accepted += bytes.len();
                outbound.accept(bytes, |abort, _| match abort {
                    Abort::Reset { stream, error_code } => resets.push((stream, error_code)),
                    Abort::Malformed => panic!("h2 sends valid frames"),
                });
            }
            Step::Flushed => {
                let before = found.len();
                outbound.flush(|stream, data, _| _ = found.insert(stream, Requested::End(data)));
                early_flushes += usize::from(found.len() == before);
            }
            Step::Read(bytes) => {
                let rest = match preface.read(bytes) {
                    Protocol::Http2 { preface } => &bytes[preface..],
                    Protocol::Undecided => &[],
                    Protocol::Http1 => panic!("h2 sends the preface first"),
                };
                inbound.deliver(
                    &mark,
                    rest,
                    usize::MAX,
                    |_| (),
                    |event| match event {
                        Event::Open(stream) => {
                            outbound.open(stream);
                            opened.push(stream);
                        }
                        Event::Reset(stream) => client_resets.push(stream),
                    },
                );
            }
        }
    }

    assert!(!outbound.gave_up());
    assert_eq!(client_resets, []);
    assert_eq!(opened, requested.iter().map(|(stream, _)| *stream).collect::<Vec<_>>(), "in the order of acceptance");
    assert!(resets.iter().all(|(_, error_code)| *error_code == 2), "INTERNAL_ERROR");
    found.extend(resets.into_iter().map(|(stream, _)| (stream, Requested::Reset)));
    assert_eq!(found, BTreeMap::from_iter(requested));
    assert_eq!(found.len(), 28);
    assert!(accepted > 1_000_000 && early_flushes > 28, "most flushes cover no end: {early_flushes}");
}
