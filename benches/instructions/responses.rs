//! Responses on one HTTP/2 connection in memory, served by hyper on the thread of the client.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use hyper::{
    body::Incoming,
    rt::{Read, Write},
    server::conn::http2,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tower::{Layer, service_fn};
use tower_offload::{AfterResponse, AfterResponseLayer, Background, flush::Tracker};
use tower_offload_benches::BoxError;

/// The number of requests in one write. Their responses are awaited before the next ones.
const STREAMS: usize = 64;
/// The header block of a request: `:method GET`, `:scheme http`, `:path /`, `:authority a` and
/// `user-agent: b`.
const BLOCK: [u8; 10] = [0x82, 0x86, 0x84, 0x01, 1, b'a', 0x0f, 0x2b, 1, b'b'];
/// Larger than everything in flight.
const BUFFER_BYTES: usize = 64 * 1024;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

pub(crate) fn plain(calls: u64) -> Result<(), BoxError> {
    run(calls, |io| serve(TokioIo::new(io), TowerToHyperService::new(service_fn(respond))))
}

pub(crate) fn tracked(calls: u64) -> Result<(), BoxError> {
    run(calls, |io| {
        let (io, service) = Tracker::new().track(TokioIo::new(io), TowerToHyperService::new(service_fn(respond)));
        serve(io, service);
    })
}

pub(crate) fn hook(calls: u64) -> Result<(), BoxError> {
    let service = service_fn(|request: Request<Incoming>| {
        if let Some(after) = request.extensions().get::<AfterResponse>() {
            after.hook(|outcome| _ = black_box(outcome));
        }
        respond(request)
    });
    let service = AfterResponseLayer::new(Background::default()).layer(service);
    run(calls, |io| {
        let (io, service) = Tracker::new().track(TokioIo::new(io), TowerToHyperService::new(service));
        serve(io, service);
    })
}

fn respond(_: Request<Incoming>) -> Ready<Result<Response<Full<Bytes>>, Infallible>> {
    ready(Ok(Response::new(Full::new(Bytes::from_static(b"hello")))))
}

fn serve<I, S, B>(io: I, service: S)
where
    I: Read + Write + Unpin + Send + 'static,
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
        + Send
        + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service));
}

fn run(calls: u64, start: impl FnOnce(DuplexStream)) -> Result<(), BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let (mut client, server) = duplex(BUFFER_BYTES);
        start(server);
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
    })
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
