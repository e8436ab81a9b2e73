//! The server: one connection of a variant, in memory.

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use hyper::{
    body::Incoming,
    rt::{Read, Write},
    server::conn::{http1, http2},
    service::Service,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::io::DuplexStream;
use tower::{Layer, service_fn};
use tower_offload::{AfterResponse, AfterResponseLayer, Background, ThreadPool, flush::Tracker};

use crate::{
    BoxError,
    plan::Protocol,
    variants::{Registers, Variant},
};

pub(crate) const BODY: &[u8] = b"hello";

/// More than are ever under way, so that none is refused.
const QUEUE_CAPACITY: usize = 8192;

/// How many hooks or tasks have run.
pub(crate) type Ran = Arc<AtomicU64>;

/// Serves on that end of a transport, in a task of the current runtime.
pub(crate) fn start(variant: &Variant, protocol: Protocol, transport: DuplexStream, ran: Ran) -> Result<(), BoxError> {
    let registers = variant.registers;
    let handler = service_fn(move |request| respond(&request, registers, &ran));
    if variant.layer {
        let pool = ThreadPool::builder().threads(1).queue_capacity(QUEUE_CAPACITY).build()?;
        let background = Background::builder().pool(pool).queue_capacity(QUEUE_CAPACITY).build();
        track(variant, protocol, transport, AfterResponseLayer::new(background).layer(handler));
    } else {
        track(variant, protocol, transport, handler);
    }
    Ok(())
}

fn respond(
    request: &Request<Incoming>,
    registers: Registers,
    ran: &Ran,
) -> Ready<Result<Response<Full<Bytes>>, Infallible>> {
    let after = || request.extensions().get::<AfterResponse>().expect("the layer is there");
    let ran = || {
        let ran = ran.clone();
        move || _ = ran.fetch_add(1, Relaxed)
    };
    match registers {
        Registers::Hook => {
            let ran = ran();
            after().hook(move |outcome| {
                black_box(outcome);
                ran();
            });
        }
        Registers::Nothing => {}
        Registers::Run => _ = after().spawn_blocking(ran()).expect("there is room"),
        Registers::Spawn => {
            let ran = ran();
            after().spawn(async move { ran() }).expect("there is room");
        }
    }
    ready(Ok(Response::new(Full::new(Bytes::from_static(BODY)))))
}

fn track<S, B>(variant: &Variant, protocol: Protocol, transport: DuplexStream, service: S)
where
    S: tower::Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let (io, service) = (TokioIo::new(transport), TowerToHyperService::new(service));
    if variant.tracked {
        let (io, service) = Tracker::new().track(io, service);
        serve(protocol, io, service);
    } else {
        serve(protocol, io, service);
    }
}

/// With hyper's defaults.
fn serve<I, S, B>(protocol: Protocol, io: I, service: S)
where
    I: Read + Write + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error: fmt::Debug, Future: Send> + Send + 'static,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    // The connection ends when the client does; how is all the same.
    match protocol {
        Protocol::Http1 | Protocol::Http1Pipelined => {
            let connection = http1::Builder::new().serve_connection(io, service);
            tokio::spawn(async { drop(connection.await) });
        }
        Protocol::Http2 => {
            let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service);
            tokio::spawn(async { drop(connection.await) });
        }
    }
}
