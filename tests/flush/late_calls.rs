//! A [`TrackedService`](tower_offload::flush::TrackedService) that is called later, in a future
//! that hyper spawned, does not know its stream. Its response is handed over, and does not get the
//! outcome of another stream.

use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    server::conn::http2,
    service::{Service, service_fn},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot,
    },
};
use tower::Layer;
use tower_offload::{
    AfterResponse, AfterResponseLayer,
    after_response::{Delivery, End, Outcome},
    flush::Tracker,
};

use crate::support::{PATIENCE, WIDE_WINDOW, drain, within};

const LENGTH: usize = 100_000;

/// Paths and their outcomes.
type Outcomes = UnboundedReceiver<(String, Outcome)>;

/// Responds with a body of `LENGTH` bytes, and sends the outcome.
async fn respond(
    request: Request<Incoming>,
    tx: UnboundedSender<(String, Outcome)>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let after = request.extensions().get::<AfterResponse>().unwrap();
    let path = request.uri().path().to_owned();
    after.hook(move |outcome| tx.send((path, outcome.clone())).unwrap());
    Ok(Response::new(Full::new(Bytes::from(vec![b'x'; LENGTH]))))
}

/// Serves one connection with a service that the test derives from the tracked service. Returns a
/// client whose streams have a window smaller than a body, and the outcomes.
macro_rules! connect {
    ($tracker:expr, $tracked:ident => $service:expr) => {{
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tx, rx): (_, Outcomes) = unbounded_channel();
        let handler = AfterResponseLayer::new(tower_offload::Background::default())
            .layer(tower::service_fn(move |request| respond(request, tx.clone())));
        let tracker = $tracker.clone();
        tokio::spawn(async move {
            let io = TokioIo::new(listener.accept().await.unwrap().0);
            let (io, $tracked) = tracker.track(io, hyper_util::service::TowerToHyperService::new(handler));
            let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(io, $service);
            drop(connection.await);
        });
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(65_535).initial_connection_window_size(WIDE_WINDOW);
        let io = TcpStream::connect(address).await.unwrap();
        let (client, connection) = builder.handshake::<_, Bytes>(io).await.unwrap();
        tokio::spawn(async { drop(connection.await) });
        (client, rx)
    }};
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://site{path}")).body(()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn service_called_in_spawned_futures_is_handed_over() {
    within(async {
        let tracker = Tracker::new();
        let (mut client, mut rx) = connect!(tracker, tracked => {
            let tracked = Arc::new(tracked);
            service_fn(move |request| {
                let tracked = tracked.clone();
                async move { tracked.call(request).await }
            })
        });
        let mut responses = Vec::new();
        for number in 0..100 {
            client = client.ready().await.unwrap();
            responses.push(client.send_request(get(&format!("/{number}")), true).unwrap().0);
        }
        // One response is never read, so it is never flushed.
        let blocked = responses.remove(50).await.unwrap();
        for response in responses {
            assert_eq!(drain(response.await.unwrap().into_body()).await.unwrap().0, LENGTH as u64);
        }
        for _ in 0..100 {
            let (path, outcome) = rx.recv().await.unwrap();
            assert_eq!((outcome.end, outcome.delivery), (End::Complete, Delivery::HandedOver), "{path}");
        }
        let stats = tracker.stats();
        assert_eq!((stats.unmapped, stats.flushed, stats.mismatched), (100, 0, 0), "{stats:?}");
        drop(blocked);
    })
    .await;
}

/// The service is called for the first request at the worst moment: while hyper passes on the
/// second one.
#[tokio::test]
async fn late_call_does_not_take_the_stream_of_another_request() {
    within(async {
        let tracker = Tracker::new();
        let ((go, goes), (called, was_called)) = (mpsc::channel::<()>(), mpsc::channel::<()>());
        let first = Mutex::new(Some((goes, called)));
        let second = Mutex::new(Some((go, was_called)));
        let (mut client, mut rx) = connect!(tracker, tracked => {
            let tracked = Arc::new(tracked);
            service_fn(move |request: Request<Incoming>| {
                let (now, later) = if request.uri().path() == "/first" {
                    let (goes, called) = first.lock().unwrap().take().unwrap();
                    let (give, given) = oneshot::channel();
                    let tracked = tracked.clone();
                    std::thread::spawn(move || {
                        goes.recv_timeout(PATIENCE).unwrap();
                        assert!(give.send(tracked.call(request)).is_ok());
                        called.send(()).unwrap();
                    });
                    (None, Some(given))
                } else {
                    let (go, was_called) = second.lock().unwrap().take().unwrap();
                    go.send(()).unwrap();
                    was_called.recv_timeout(PATIENCE).unwrap();
                    (Some(tracked.call(request)), None)
                };
                async move {
                    match (now, later) {
                        (Some(now), _) => now.await,
                        (None, later) => later.unwrap().await.unwrap().await,
                    }
                }
            })
        });
        let first = client.send_request(get("/first"), true).unwrap().0;
        client = client.ready().await.unwrap();
        let second = client.send_request(get("/second"), true).unwrap().0;
        let blocked = first.await.unwrap();
        assert_eq!(drain(second.await.unwrap().into_body()).await.unwrap().0, LENGTH as u64);
        for _ in 0..2 {
            let (path, outcome) = rx.recv().await.unwrap();
            let expected = if path == "/first" { Delivery::HandedOver } else { Delivery::Flushed };
            assert_eq!((outcome.end, outcome.delivery), (End::Complete, expected), "{path}");
        }
        let stats = tracker.stats();
        assert_eq!((stats.unmapped, stats.flushed, stats.mismatched), (1, 1, 0), "{stats:?}");
        drop(blocked);
    })
    .await;
}
