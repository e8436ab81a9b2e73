//! The server, whose connections are tracked or plain.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::io::{DuplexStream, duplex};
use tower::{Layer, service_fn};
use tower_offload::{AfterResponse, AfterResponseLayer, flush::Tracker};

use crate::{
    BoxError,
    ledger::Ledger,
    work::{Shape, Work},
};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Capacity of a transport. Small, so that writes are split at any byte.
const TRANSPORT_BYTES: usize = 10_007;

#[derive(Debug, Clone)]
pub(crate) struct Server {
    ledger: Arc<Ledger>,
    layer: AfterResponseLayer,
    tracker: Option<Tracker>,
}

impl Server {
    pub(crate) fn new(ledger: Arc<Ledger>, tracker: Option<Tracker>) -> Self {
        Self { ledger, layer: AfterResponseLayer::new(tower_offload::Background::default()), tracker }
    }

    /// Opens a connection and returns the client's end of it.
    pub(crate) fn connect(&self) -> DuplexStream {
        let (client, server) = duplex(TRANSPORT_BYTES);
        let ledger = self.ledger.clone();
        let handler = service_fn(move |request| respond(request, ledger.clone()));
        let service = TowerToHyperService::new(self.layer.layer(handler));
        let io = TokioIo::new(server);
        let builder = auto::Builder::new(TokioExecutor::new());
        // How a connection ends is the client's to judge.
        if let Some(tracker) = &self.tracker {
            let (io, service) = tracker.track(io, service);
            tokio::spawn(async move { drop(builder.serve_connection(io, service).await) });
        } else {
            tokio::spawn(async move { drop(builder.serve_connection(io, service).await) });
        }
        client
    }
}

async fn respond(request: Request<Incoming>, ledger: Arc<Ledger>) -> Result<Response<Body>, BoxError> {
    let work: Work = request.uri().path().parse()?;
    ledger.begun(work.id);
    let after = request.extensions().get::<AfterResponse>().ok_or("the layer is missing")?;
    after.hook(move |outcome| ledger.reported(work.id, outcome));
    // hyper closes an HTTP/1 connection after a request whose body was not read.
    if work.reads() || request.version() < Version::HTTP_2 {
        request.into_body().collect().await?;
    }
    Ok(Response::new(body(work)))
}

fn body(work: Work) -> Body {
    const PIECE: usize = 10_000;
    let pieces = (0..work.length).step_by(PIECE).map(move |start| vec![b'x'; PIECE.min(work.length - start)]);
    let pieces = pieces.map(|piece| Frame::data(Bytes::from(piece)));
    match work.shape {
        Shape::Empty => Empty::new().boxed_unsync(),
        Shape::Pieces => StreamBody::new(stream::iter(pieces).map(Ok)).boxed_unsync(),
        Shape::Trailers => {
            let trailers = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("end"))]);
            StreamBody::new(stream::iter(pieces.chain([Frame::trailers(trailers)])).map(Ok)).boxed_unsync()
        }
        Shape::Whole => Full::new(Bytes::from(vec![b'x'; work.length])).boxed_unsync(),
    }
}
