//! Pipelined HTTP/1 responses over transports that accept a few bytes at a time, so that writes are
//! split everywhere.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering::SeqCst},
};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::duplex,
    sync::{Semaphore, mpsc},
};
use tower::{Layer, service_fn};
use tower_offload::{
    Background,
    after_response::{AfterResponse, AfterResponseLayer, Delivery, End, Outcome},
    flush::Tracker,
};

use crate::support::{Chop, Choppy, Http1, PATIENCE, within};

type BoxBody = UnsyncBoxBody<Bytes, Infallible>;

/// Accepts at most `size` bytes in a write.
struct Narrow {
    size: usize,
    /// If `true`, each write and flush is pending once before it succeeds.
    stalls: bool,
    stalled: bool,
}

impl Chop for Narrow {
    fn pauses(&mut self, is_read: bool) -> bool {
        if is_read {
            return false;
        }
        self.stalled = self.stalls && !self.stalled;
        self.stalled
    }

    fn max_write(&mut self) -> usize {
        self.size
    }
}

/// A tracked connection with its client and outcomes.
struct Served {
    client: Http1,
    /// Path, outcome, and the number of bytes that the transport had accepted.
    outcomes: mpsc::UnboundedReceiver<(String, Outcome, usize)>,
    /// Holds back all chunks of `/stream` but the first.
    gate: Arc<Semaphore>,
}

impl Served {
    fn new(size: usize, stalls: bool, pipeline_flush: bool) -> Self {
        let (client, io) = duplex(1 << 16);
        let io = Choppy::new(io, Narrow { size, stalls, stalled: false });
        let accepted = io.accepted();
        let (sender, outcomes) = mpsc::unbounded_channel();
        let gate = Arc::new(Semaphore::new(0));
        let held = gate.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let path = request.uri().path().to_owned();
            let (of, sender, accepted) = (path.clone(), sender.clone(), accepted.clone());
            request.extensions().get::<AfterResponse>().unwrap().hook(move |outcome| {
                let _ = sender.send((of, outcome.clone(), accepted.load(SeqCst)));
            });
            let body = body_of(&path, held.clone());
            async move { Ok::<_, Infallible>(Response::new(body)) }
        });
        let service = TowerToHyperService::new(AfterResponseLayer::new(Background::default()).layer(service));
        let (io, service) = Tracker::new().track(TokioIo::new(io), service);
        let mut builder = http1::Builder::new();
        builder.pipeline_flush(pipeline_flush);
        tokio::spawn(async move { _ = builder.serve_connection(io, service).await });
        Self { client: Http1::over(client), outcomes, gate }
    }

    /// Waits for the next outcome, which must be that of `path`: flushed, with its last byte
    /// accepted.
    async fn is_flushed(&mut self, path: &str, bytes: u64, end: usize) {
        let (of, outcome, accepted) = self.outcomes.recv().await.unwrap();
        assert_eq!((&*of, outcome.end, outcome.delivery), (path, End::Complete, Delivery::Flushed));
        assert!(outcome.body_bytes == bytes && accepted >= end, "{accepted} of {end}: {outcome:?}");
    }
}

/// Returns the body for a path. `/stream`: two chunks of 6 bytes, the second after the gate.
/// `/full/n`: n bytes.
fn body_of(path: &str, gate: Arc<Semaphore>) -> BoxBody {
    let Some(length) = path.strip_prefix("/full/") else {
        let frames = stream::unfold((0, gate), |(sent, gate)| async move {
            if sent == 1 {
                gate.acquire().await.unwrap().forget();
            }
            let frame = Ok(Frame::data(Bytes::from_static(b"chunk ")));
            (sent < 2).then_some((frame, (sent + 1, gate)))
        });
        return StreamBody::new(frames).boxed_unsync();
    };
    Full::from(vec![b'x'; length.parse().unwrap()]).boxed_unsync()
}

const GET: &str = "GET /full/10 HTTP/1.1\r\nhost: site\r\n\r\n";
const POST: &str = "POST /full/10 HTTP/1.1\r\nhost: site\r\ncontent-length: 7\r\n\r\nunread.";
const STREAM: &str = "GET /stream HTTP/1.1\r\nhost: site\r\n\r\n";

/// Sizes of writes. The largest exceeds the longest write of these tests, so that it splits none.
const SIZES: std::ops::Range<usize> = 1..250;

/// Runs a case for each size of writes, with and without `pipeline_flush`.
async fn on_each_split<F: Future<Output = ()>>(case: impl Fn(Served) -> F) {
    for pipeline_flush in [false, true] {
        for stalls in [false, true] {
            for size in SIZES {
                let served = Served::new(size, stalls, pipeline_flush);
                if tokio::time::timeout(PATIENCE / 2, case(served)).await.is_err() {
                    panic!("hangs: pipeline_flush {pipeline_flush}, stalls {stalls}, {size} bytes in a write");
                }
            }
        }
    }
}

/// The head of the stream may be in one write with the response before it.
#[tokio::test]
async fn response_before_a_slow_stream_is_flushed_at_once() {
    within(on_each_split(|mut served| async move {
        served.client.send([GET, STREAM].concat()).await;
        let first = served.client.answer().await;
        let mut end = first.head.len() + 10;
        served.is_flushed("/full/10", 10, end).await;
        let head = served.client.head().await;
        assert!(served.outcomes.try_recv().is_err());
        served.gate.add_permits(1);
        end += head.head.len();
        assert_eq!(served.client.body_of(head).await.body, 12);
        served.is_flushed("/stream", 12, end + 2 * 11 + 5).await;
        // The connection still works.
        served.client.send(GET).await;
        served.client.answer().await;
        served.is_flushed("/full/10", 10, end).await;
    }))
    .await;
}

/// The handler does not read the body of the request.
#[tokio::test]
async fn response_to_an_unread_body_is_flushed_before_a_slow_stream() {
    within(on_each_split(|mut served| async move {
        served.client.send([POST, STREAM].concat()).await;
        let first = served.client.answer().await;
        served.is_flushed("/full/10", 10, first.head.len() + 10).await;
        let head = served.client.head().await;
        served.gate.add_permits(1);
        assert_eq!(served.client.body_of(head).await.body, 12);
        served.is_flushed("/stream", 12, 0).await;
    }))
    .await;
}

/// The first response fills the transport, and its request has a body that the handler does not
/// read.
#[tokio::test]
async fn slow_stream_behind_a_full_transport_is_flushed() {
    within(async {
        let mut served = Served::new(usize::MAX, false, false);
        let big = POST.replace("/full/10", "/full/100000");
        served.client.send([&big, STREAM].concat()).await;
        // The server runs until it can neither read nor write.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(served.client.answer().await.body, 100_000);
        served.is_flushed("/full/100000", 100_000, 100_000).await;
        let head = served.client.head().await;
        served.gate.add_permits(1);
        assert_eq!(served.client.body_of(head).await.body, 12);
        served.is_flushed("/stream", 12, 0).await;
    })
    .await;
}

/// Streams alternate with short responses, and all of them are requested at once.
#[tokio::test]
async fn pipelined_streams_are_all_flushed() {
    within(on_each_split(|mut served| async move {
        served.gate.add_permits(3);
        served.client.send([GET, STREAM, STREAM, POST, GET, STREAM].concat()).await;
        for (path, bytes) in
            [("/full/10", 10), ("/stream", 12), ("/stream", 12), ("/full/10", 10), ("/full/10", 10), ("/stream", 12)]
        {
            assert_eq!(served.client.answer().await.body, bytes);
            served.is_flushed(path, bytes, 0).await;
        }
    }))
    .await;
}
