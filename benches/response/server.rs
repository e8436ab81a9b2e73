//! The server of a variant, on one connection in memory.

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
use tower_offload_benches::BoxError;

use crate::{Protocol, Registers, Variant};

pub(crate) const BODY: &[u8] = b"hello";

/// More tasks than are ever in flight, so that none is rejected.
const QUEUE_CAPACITY: usize = 8192;

/// The number of hooks or tasks that have run.
pub(crate) type Completed = Arc<AtomicU64>;

/// Serves one end of a transport, in a task of the current runtime.
pub(crate) fn start(
    variant: &Variant,
    protocol: Protocol,
    transport: DuplexStream,
    completed: Completed,
) -> Result<(), BoxError> {
    let (is_tracked, registers) = (variant.is_tracked, variant.registers);
    let handler = service_fn(move |request| respond(&request, registers, &completed));
    if variant.has_layer {
        let pool = ThreadPool::builder().threads(1).queue_capacity(QUEUE_CAPACITY).build()?;
        let background = Background::builder().pool(pool).max_tasks(QUEUE_CAPACITY).build();
        track(is_tracked, protocol, transport, AfterResponseLayer::new(background).layer(handler));
    } else {
        track(is_tracked, protocol, transport, handler);
    }
    Ok(())
}

fn respond(
    request: &Request<Incoming>,
    registers: Registers,
    completed: &Completed,
) -> Ready<Result<Response<Full<Bytes>>, Infallible>> {
    let after = || request.extensions().get::<AfterResponse>().expect("the layer is there");
    let complete = || {
        let completed = completed.clone();
        move || _ = completed.fetch_add(1, Relaxed)
    };
    match registers {
        Registers::Nothing => {}
        Registers::Hook => {
            let complete = complete();
            after().hook(move |outcome| {
                black_box(outcome);
                complete();
            });
        }
        Registers::AsyncTask => {
            let complete = complete();
            after().task("").on_runtime().spawn(async move { complete() }).expect("there is room");
        }
        Registers::BlockingTask => _ = after().spawn_blocking(complete()).expect("there is room"),
    }
    ready(Ok(Response::new(Full::new(Bytes::from_static(BODY)))))
}

fn track<S, B>(is_tracked: bool, protocol: Protocol, transport: DuplexStream, service: S)
where
    S: tower::Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let (io, service) = (TokioIo::new(transport), TowerToHyperService::new(service));
    if is_tracked {
        let (io, service) = Tracker::new().track(io, service);
        serve(protocol, io, service);
    } else {
        serve(protocol, io, service);
    }
}

/// Serves with the defaults of hyper. The connection ends when the client ends it.
fn serve<I, S, B>(protocol: Protocol, io: I, service: S)
where
    I: Read + Write + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error: fmt::Debug, Future: Send> + Send + 'static,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
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
