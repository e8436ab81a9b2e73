//! Responses on one connection in memory, served by hyper on the thread of the client: one by one
//! on HTTP/1, and as [`STREAMS`] streams on HTTP/2.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::Body;
use http_body_util::Full;
use hyper::{
    body::Incoming,
    rt::{Read, Write},
    server::conn::{http1, http2},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tower::{Layer, service_fn};
use tower_offload::{AfterResponse, AfterResponseLayer, Background, flush::Tracker};
use tower_offload_benches::BoxError;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\nuser-agent: b\r\n\r\n";
const BODY: &[u8] = b"hello";

/// The number of requests in one write. Their responses are awaited before the next ones.
const STREAMS: usize = 64;
/// The header block of a request: `:method GET`, `:scheme http`, `:path /`, `:authority a` and
/// `user-agent: b`.
const BLOCK: [u8; 10] = [0x82, 0x86, 0x84, 0x01, 1, b'a', 0x0f, 0x2b, 1, b'b'];
/// Larger than everything in flight.
const BUFFER_BYTES: usize = 64 * 1024;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

pub(crate) fn plain(protocol: Protocol, calls: u64) -> Result<(), BoxError> {
    run(protocol, calls, |io| {
        let service = service_fn(move |_| respond(protocol));
        serve(protocol, TokioIo::new(io), TowerToHyperService::new(service));
    })
}

pub(crate) fn tracked(protocol: Protocol, calls: u64) -> Result<(), BoxError> {
    run(protocol, calls, |io| {
        let service = service_fn(move |_| respond(protocol));
        let (io, service) = Tracker::new().track(TokioIo::new(io), TowerToHyperService::new(service));
        serve(protocol, io, service);
    })
}

pub(crate) fn hook(protocol: Protocol, calls: u64) -> Result<(), BoxError> {
    let service = service_fn(move |request: Request<Incoming>| {
        if let Some(after) = request.extensions().get::<AfterResponse>() {
            after.hook(|outcome| _ = black_box(outcome));
        }
        respond(protocol)
    });
    let service = AfterResponseLayer::new(Background::default()).layer(service);
    run(protocol, calls, |io| {
        let (io, service) = Tracker::new().track(TokioIo::new(io), TowerToHyperService::new(service));
        serve(protocol, io, service);
    })
}

/// On HTTP/1 the response has a field, as most have, which a hook gets.
fn respond(protocol: Protocol) -> Ready<Result<Response<Full<Bytes>>, Infallible>> {
    let mut response = Response::new(Full::new(Bytes::from_static(BODY)));
    if let Protocol::Http1 = protocol {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    ready(Ok(response))
}

fn serve<I, S, B>(protocol: Protocol, io: I, service: S)
where
    I: Read + Write + Unpin + Send + 'static,
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
        + Send
        + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    match protocol {
        Protocol::Http1 => {
            // The date would be formatted once a second, however long a call takes.
            drop(tokio::spawn(http1::Builder::new().auto_date_header(false).serve_connection(io, service)));
        }
        Protocol::Http2 => {
            drop(tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service)));
        }
    }
}

fn run(protocol: Protocol, calls: u64, start: impl FnOnce(DuplexStream)) -> Result<(), BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let (client, server) = duplex(BUFFER_BYTES);
        start(server);
        match protocol {
            Protocol::Http1 => request_http1(client, calls).await,
            Protocol::Http2 => request_http2(client, calls).await,
        }
    })
}

async fn request_http1(mut client: DuplexStream, calls: u64) -> Result<(), BoxError> {
    let mut response = Vec::with_capacity(1024);
    for _ in 0..calls {
        client.write_all(REQUEST).await?;
        response.clear();
        while !response.ends_with(BODY) {
            if client.read_buf(&mut response).await? == 0 {
                return Err("the server closed the connection".into());
            }
        }
    }
    Ok(())
}

async fn request_http2(mut client: DuplexStream, calls: u64) -> Result<(), BoxError> {
    client.write_all(PREFACE).await?;
    let (mut next, mut ends) = (1_u32, Ends::default());
    let mut buffer = vec![0; BUFFER_BYTES];
    for _ in 0..calls / STREAMS as u64 {
        let mut requests = Vec::with_capacity(STREAMS * (9 + BLOCK.len()));
        for _ in 0..STREAMS {
            requests.extend([0, 0, BLOCK.len() as u8, 1, 0x5]);
            requests.extend(next.to_be_bytes());
            requests.extend(BLOCK);
            next += 2;
        }
        client.write_all(&requests).await?;
        let mut ended = 0;
        while ended < STREAMS {
            let read = client.read(&mut buffer).await?;
            if read == 0 {
                return Err("the server closed the connection".into());
            }
            ended += ends.count(&buffer[..read]);
        }
    }
    Ok(())
}

/// Counts frames that end streams.
#[derive(Default)]
struct Ends {
    header: Vec<u8>,
    payload: usize,
}

impl Ends {
    fn count(&mut self, mut bytes: &[u8]) -> usize {
        let mut ended = 0;
        while !bytes.is_empty() {
            let skipped = self.payload.min(bytes.len());
            (self.payload, bytes) = (self.payload - skipped, &bytes[skipped..]);
            let (header, behind) = bytes.split_at((9 - self.header.len()).min(bytes.len()));
            self.header.extend(header);
            bytes = behind;
            if let [high, middle, low, kind, flags, _, _, _, _] = self.header[..] {
                self.payload = u32::from_be_bytes([0, high, middle, low]) as usize;
                ended += usize::from(kind <= 1 && flags & 1 != 0);
                self.header.clear();
            }
        }
        ended
    }
}
