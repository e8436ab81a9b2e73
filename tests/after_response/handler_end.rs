//! A task with the default condition runs if its handler succeeds, whoever leaves and wherever the
//! layer is.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, mpsc},
};

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{sync::oneshot, task::JoinHandle};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_offload::{
    AfterResponse, Background, OffloadLayer, ThreadPool, axum::blocking, flush::Tracker, offload::ProblemJson,
    pool::Pool,
};

use crate::support::{after_shutdown, handle, layer, on_threads};

/// Returns whether the connection is tracked and whether it is HTTP/2.
fn connections() -> impl Iterator<Item = (bool, bool)> {
    [(false, false), (false, true), (true, false), (true, true)].into_iter()
}

/// A client connection, and the task that drives it.
struct Client {
    send: Sender,
    connection: JoinHandle<()>,
}

#[derive(Clone)]
enum Sender {
    Http1(Arc<Mutex<Option<hyper::client::conn::http1::SendRequest<Empty<Bytes>>>>>),
    Http2(hyper::client::conn::http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    /// Connects to a server of `service`.
    async fn connect<S, B>(service: S, is_tracked: bool, is_http2: bool) -> Self
    where
        S: tower::Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
        B: http_body::Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    {
        let (client, server) = tokio::io::duplex(1024);
        let (server, service) = (TokioIo::new(server), TowerToHyperService::new(service));
        if is_tracked {
            let (io, service) = Tracker::new().track(server, service);
            tokio::spawn(async { drop(auto::Builder::new(TokioExecutor::new()).serve_connection(io, service).await) });
        } else {
            let serving =
                async { drop(auto::Builder::new(TokioExecutor::new()).serve_connection(server, service).await) };
            tokio::spawn(serving);
        }
        let client = TokioIo::new(client);
        if is_http2 {
            let (send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), client).await.unwrap();
            Self { send: Sender::Http2(send), connection: tokio::spawn(async { drop(connection.await) }) }
        } else {
            let (send, connection) = hyper::client::conn::http1::handshake(client).await.unwrap();
            let send = Sender::Http1(Arc::new(Mutex::new(Some(send))));
            Self { send, connection: tokio::spawn(async { drop(connection.await) }) }
        }
    }

    /// Sends a request. Returns the task that reads the whole response.
    fn request(&self) -> JoinHandle<StatusCode> {
        let request = Request::builder().uri("http://test/").header("host", "test").body(Empty::new()).unwrap();
        let send = self.send.clone();
        tokio::spawn(async move {
            let response = match send {
                Sender::Http1(send) => {
                    let mut send = send.lock().unwrap().take().unwrap();
                    send.send_request(request).await.unwrap()
                }
                Sender::Http2(mut send) => send.send_request(request).await.unwrap(),
            };
            let (parts, body) = response.into_parts();
            body.collect().await.unwrap();
            parts.status
        })
    }

    /// Closes the connection without waiting for the response.
    async fn leave(self, request: JoinHandle<StatusCode>) {
        request.abort();
        self.connection.abort();
        let _ = self.connection.await;
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum HandlerEnd {
    Status(u16),
    Panic,
}

const ENDS: [(HandlerEnd, u64); 4] =
    [(HandlerEnd::Status(200), 1), (HandlerEnd::Status(302), 1), (HandlerEnd::Status(500), 0), (HandlerEnd::Panic, 0)];

/// A handler that registers a task, blocks until it is released, and then ends.
#[derive(Clone)]
struct Handler {
    end: HandlerEnd,
    /// Sends the release of the handler that has begun.
    begun: tokio::sync::mpsc::UnboundedSender<mpsc::Sender<()>>,
}

impl Handler {
    fn run(&self, after: &AfterResponse) -> StatusCode {
        after.spawn_blocking(|| ()).unwrap();
        let (release, released) = mpsc::channel::<()>();
        self.begun.send(release).unwrap();
        let _ = released.recv();
        match self.end {
            HandlerEnd::Status(status) => StatusCode::from_u16(status).unwrap(),
            HandlerEnd::Panic => panic!("in the handler"),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Outside,
    Inside,
}

/// Returns the number of completed and of skipped tasks after a client left while the handler ran
/// on a pool.
async fn tasks_after_leaving(end: HandlerEnd, place: Place, is_detached: bool, connection: (bool, bool)) -> (u64, u64) {
    let background = on_threads(1).build();
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let offload = OffloadLayer::new(pool.clone());
    let offload = if is_detached { offload.detached() } else { offload };
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let handler = Handler { end, begun };
    let service = service_fn(move |request: Request<Incoming>| {
        let (handler, after) = (handler.clone(), handle(&request));
        async move {
            let status = handler.run(&after);
            Ok::<_, Infallible>(Response::builder().status(status).body(Full::<Bytes>::default()).unwrap())
        }
    });
    let service = match place {
        Place::Outside => BoxCloneSyncService::new(layer(&background).layer(offload.layer(service))),
        Place::Inside => BoxCloneSyncService::new(offload.layer(layer(&background).layer(service))),
    };
    let (is_tracked, is_http2) = connection;
    let client = Client::connect(service, is_tracked, is_http2).await;
    let request = client.request();
    let release = begins.recv().await.unwrap();
    client.leave(request).await;
    while pool.stats().abandoned == 0 {
        tokio::task::yield_now().await;
    }
    drop(release);
    let stats = after_shutdown(&background).await;
    (stats.completed, stats.skipped)
}

#[tokio::test]
async fn tasks_run_if_the_handler_succeeds_after_its_client_left() {
    for connection in connections() {
        for (end, completed) in ENDS {
            for (place, is_detached) in
                [(Place::Outside, true), (Place::Inside, true), (Place::Outside, false), (Place::Inside, false)]
            {
                let tasks = tasks_after_leaving(end, place, is_detached, connection).await;
                let case = (end, place, is_detached, connection);
                assert_eq!(tasks, (completed, 1 - completed), "{case:?}");
            }
        }
    }
}

#[tokio::test]
async fn tasks_of_a_blocking_handler_run_if_it_succeeds() {
    for connection in connections() {
        for (end, completed) in ENDS {
            let background = on_threads(1).build();
            let pool = ThreadPool::builder().threads(1).build().unwrap();
            let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
            let handler = Handler { end, begun };
            let handler = blocking(pool.clone(), move |after: AfterResponse| handler.run(&after));
            let app = Router::new().route("/", get(handler)).layer(layer(&background));
            let client = Client::connect(app.into_service(), connection.0, connection.1).await;
            let request = client.request();
            let release = begins.recv().await.unwrap();
            client.leave(request).await;
            while pool.stats().abandoned == 0 {
                tokio::task::yield_now().await;
            }
            drop(release);
            let stats = after_shutdown(&background).await;
            assert_eq!((stats.completed, stats.skipped), (completed, 1 - completed), "{end:?} {connection:?}");
        }
    }
}

#[tokio::test]
async fn tasks_of_a_handler_dropped_with_its_client_are_skipped() {
    for connection in connections() {
        let background = on_threads(1).build();
        let (begun, begins) = oneshot::channel();
        let begun = Arc::new(Mutex::new(Some(begun)));
        let service = layer(&background).layer(service_fn(move |request: Request<Incoming>| {
            let (after, begun) = (handle(&request), begun.lock().unwrap().take().unwrap());
            async move {
                after.spawn_blocking(|| ()).unwrap();
                after.task("").always().spawn_blocking(|| ()).unwrap();
                begun.send(()).unwrap();
                std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>().await
            }
        }));
        let client = Client::connect(service, connection.0, connection.1).await;
        let request = client.request();
        begins.await.unwrap();
        client.leave(request).await;
        let stats = after_shutdown(&background).await;
        assert_eq!((stats.completed, stats.skipped), (1, 1), "{connection:?}");
    }
}

/// A rejected call never runs its handler, so tasks that were registered outside of it are skipped.
#[tokio::test]
async fn tasks_of_a_rejected_call_are_skipped() {
    for connection in connections() {
        let background = on_threads(1).build();
        let pool = ThreadPool::builder().threads(1).build().unwrap();
        pool.shutdown(crate::support::LONG).await;
        let inner = OffloadLayer::new(pool)
            .detached()
            .reject(ProblemJson)
            .layer(service_fn(async |_: Request<_>| Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))));
        let service = layer(&background).layer(service_fn(move |request: Request<Incoming>| {
            handle(&request).spawn_blocking(|| ()).unwrap();
            inner.clone().oneshot(request)
        }));
        let client = Client::connect(service, connection.0, connection.1).await;
        assert_eq!(client.request().await.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
        let stats = after_shutdown(&background).await;
        assert_eq!((stats.completed, stats.skipped), (0, 1), "{connection:?}");
    }
}

#[tokio::test]
async fn replacing_a_response_further_out_changes_no_task() {
    for connection in connections() {
        for (own, sent, completed) in [(200, 500, 1), (500, 200, 0), (404, 302, 0), (204, 404, 1)] {
            let background = on_threads(1).build();
            let own = StatusCode::from_u16(own).unwrap();
            let handler = get(async move |after: AfterResponse| {
                after.spawn_blocking(|| ()).unwrap();
                own
            });
            let replacement = StatusCode::from_u16(sent).unwrap();
            let replace =
                axum::middleware::map_response(move |_: Response<axum::body::Body>| async move { replacement });
            let app = Router::new().route("/", handler).layer(layer(&background)).layer(replace);
            let client = Client::connect(app.into_service(), connection.0, connection.1).await;
            assert_eq!(client.request().await.unwrap(), sent);
            let stats = after_shutdown(&background).await;
            let case = (own, sent, connection);
            assert_eq!((stats.completed, stats.skipped), (completed, 1 - completed), "{case:?}");
        }
    }
}

/// The status of a gRPC response may be in its trailers.
#[tokio::test]
async fn grpc_trailers_decide_the_tasks_of_their_handler() {
    for connection in connections() {
        for (leading, trailing, completed) in
            [(None, Some("0"), 1), (None, Some("13"), 0), (None, None, 0), (Some("0"), None, 1), (Some("5"), None, 0)]
        {
            let background = on_threads(1).build();
            let service = layer(&background).layer(service_fn(move |request: Request<Incoming>| {
                handle(&request).spawn_blocking(|| ()).unwrap();
                let trailers = trailing.map(|status| {
                    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
                    Frame::trailers(trailers)
                });
                let frames = [Some(Frame::data(Bytes::from_static(b"data"))), trailers].into_iter().flatten();
                let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, Infallible>)));
                let response = Response::builder().header("content-type", "application/grpc");
                let response =
                    leading.into_iter().fold(response, |response, status| response.header("grpc-status", status));
                async move { Ok::<_, Infallible>(response.body(body).unwrap()) }
            }));
            let client = Client::connect(service, connection.0, connection.1).await;
            client.request().await.unwrap();
            let stats = after_shutdown(&background).await;
            let case = (leading, trailing, connection);
            assert_eq!((stats.completed, stats.skipped), (completed, 1 - completed), "{case:?}");
        }
    }
}

#[tokio::test]
async fn tasks_of_a_success_that_is_dropped_unsent_run() {
    for (status, completed) in [(200, 1), (404, 0)] {
        let background: Background = on_threads(1).build();
        crate::support::exchange(&background, status, tower_offload::after_response::End::NoResponse, |after| {
            after.spawn_blocking(|| ()).unwrap();
        })
        .await;
        let stats = after_shutdown(&background).await;
        assert_eq!((stats.completed, stats.skipped), (completed, 1 - completed));
    }
}

/// While one handler is undecided, tasks that were registered later wait, and hooks do not.
#[tokio::test]
async fn order_of_tasks_is_kept_while_a_handler_goes_on() {
    let (background, log) = (on_threads(1).build(), crate::support::Log::default());
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let (handler, registers) = (Handler { end: HandlerEnd::Status(200), begun }, log.clone());
    let service =
        layer(&background).layer(OffloadLayer::new(pool).detached().layer(service_fn(move |request: Request<()>| {
            let (handler, after, log) = (handler.clone(), handle(&request), registers.clone());
            async move {
                after.spawn_blocking(log.adds("default")).unwrap();
                after.task("").always().spawn_blocking(log.adds("always")).unwrap();
                let hook = log.adds("hook");
                after.hook(move |_| hook());
                let status = handler.run(&after);
                Ok::<_, Infallible>(Response::builder().status(status).body(Full::<Bytes>::default()).unwrap())
            }
        })));
    let call = tokio::spawn(service.oneshot(Request::new(())));
    let release = begins.recv().await.unwrap();
    call.abort();
    let _ = call.await;
    while log.entries().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(log.entries(), ["hook"]);
    drop(release);
    assert_eq!(after_shutdown(&background).await.completed, 3);
    assert_eq!(log.entries(), ["hook", "default", "always"]);
}

#[tokio::test]
async fn tasks_of_a_detached_handler_run_after_a_timeout_has_responded() {
    for connection in connections() {
        for (end, completed) in [(HandlerEnd::Status(200), 1), (HandlerEnd::Status(500), 0)] {
            let background = on_threads(1).build();
            let pool = ThreadPool::builder().threads(1).build().unwrap();
            let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
            let handler = Handler { end, begun };
            let handler = get(async move |after: AfterResponse| handler.run(&after));
            let responds =
                axum::middleware::from_fn(async |request: axum::extract::Request, next: axum::middleware::Next| {
                    let _ = tokio::time::timeout(std::time::Duration::from_millis(1), next.run(request)).await;
                    StatusCode::REQUEST_TIMEOUT
                });
            let app = Router::new()
                .route("/", handler)
                .layer(OffloadLayer::new(pool).detached())
                .layer(responds)
                .layer(layer(&background));
            let client = Client::connect(app.into_service(), connection.0, connection.1).await;
            let request = client.request();
            let release = begins.recv().await.unwrap();
            assert_eq!(request.await.unwrap(), StatusCode::REQUEST_TIMEOUT);
            assert_eq!(background.stats().skipped, 0);
            drop(release);
            let stats = after_shutdown(&background).await;
            assert_eq!((stats.completed, stats.skipped), (completed, 1 - completed), "{end:?} {connection:?}");
        }
    }
}
