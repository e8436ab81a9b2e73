use std::{
    convert::Infallible,
    future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use ::axum::{body::Body, extract::Request, response::Response};
use http::{HeaderValue, Version, header};
use hyper::body::Incoming;
use hyper_util::{rt::TokioIo, server::conn::auto, service::TowerToHyperService};
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time,
};
use tower_service::Service;

use super::linger::{Flags, Linger};
use crate::flush::{self, Protocol, TrackedIo, TrackedService};

/// Shutdown phase of a server. It only advances.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// Connections end after their current responses, those on HTTP/1 without one after `idle`.
    Draining {
        idle: Duration,
    },
    /// Connections end now.
    Closing,
}

/// The open connections of a server.
///
/// Dropping it leaves the connections open, in their current phase.
pub(super) struct Connections {
    phase: watch::Sender<Phase>,
    /// Each [`OpenConnection`] holds exactly one receiver, so the number of receivers is the number
    /// of open connections.
    open: watch::Sender<()>,
}

/// The time that an idle HTTP/1 connection of a server that drains remains open: longer than a
/// request is on its way, so that a client that has just connected, or sends one request after the
/// other, gets its response. A client that sends a request when the time has passed may lose it, as
/// always when a server closes a connection (RFC 9112, section 9.5).
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_millis(500);

impl Phase {
    const DRAINING: Self = Self::Draining { idle: Duration::ZERO };
}

impl Connections {
    pub(super) fn new() -> Self {
        Self { phase: watch::Sender::new(Phase::Serving), open: watch::Sender::new(()) }
    }

    /// Adds a connection, which counts as open until every clone of the [`OpenConnection`] is
    /// dropped.
    pub(super) fn register(&self) -> (PhaseReceiver, OpenConnection) {
        (PhaseReceiver(self.phase.subscribe()), OpenConnection(Arc::new(self.open.subscribe())))
    }

    /// Returns the number of open connections.
    pub(super) fn open(&self) -> usize {
        self.open.receiver_count()
    }

    /// Asks the connections to end gracefully, idle ones after `idle`, and waits until all
    /// have.
    pub(super) async fn drain(&self, idle: Duration) {
        self.phase.send_replace(Phase::Draining { idle });
        self.open.closed().await;
    }

    /// Closes the connections, and waits until all are closed.
    pub(super) async fn close(&self) {
        self.phase.send_replace(Phase::Closing);
        self.open.closed().await;
    }
}

/// Keeps a connection counted as open. Held by the task of the connection and by the tasks that
/// hyper spawns for its requests, which may end after it.
#[derive(Clone)]
pub(super) struct OpenConnection(#[expect(dead_code, reason = "held for its drop")] Arc<watch::Receiver<()>>);

tokio::task_local! {
    /// The connection whose task this is.
    static CURRENT: OpenConnection;
}

/// Spawns the tasks of hyper: one for each request on HTTP/2. Each belongs to the connection in
/// whose task it was spawned.
#[derive(Clone)]
pub(super) struct Executor;

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        let connection = CURRENT.try_with(Clone::clone).ok();
        tokio::spawn(async move {
            future.await;
            drop(connection);
        });
    }
}

/// A connection's view of the server.
pub(super) struct PhaseReceiver(watch::Receiver<Phase>);

impl PhaseReceiver {
    /// Waits until the server is in `phase` or a later one, which it returns. Never completes if
    /// the server was dropped before.
    async fn reached(&mut self, phase: Phase) -> Phase {
        let reached = self.0.wait_for(|current| *current >= phase).await.map(|current| *current);
        match reached {
            Ok(current) => current,
            Err(_) => future::pending().await,
        }
    }
}

/// An accepted connection and the service that answers on it.
pub(super) struct Connection<T, S> {
    pub(super) io: TrackedIo<TokioIo<Linger<T>>>,
    pub(super) service: TrackedService<App<S>>,
    pub(super) flags: Flags,
    pub(super) http: Arc<auto::Builder<Executor>>,
    pub(super) header_read_timeout: Option<Duration>,
}

impl<T, S> Connection<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    /// Serves the connection until it ends, or the server closes it.
    pub(super) async fn serve(self, phase: PhaseReceiver, open: OpenConnection) {
        CURRENT.scope(open, self.run(phase)).await;
    }

    async fn run(self, mut phase: PhaseReceiver) {
        let Self { io, service, flags, http, header_read_timeout } = self;
        let tracked = io.connection();
        let mut connection = pin!(http.serve_connection_with_upgrades(io, service));
        let reached = tokio::select! {
            biased;
            result = connection.as_mut() => return report(result),
            reached = phase.reached(Phase::DRAINING) => reached,
            () = silent_for(header_read_timeout, &tracked) => return,
        };
        // hyper closes an idle HTTP/1 connection at once, and hyper-util one that has not sent its
        // first bytes. Before that, the response to a request that is on its way closes it. On
        // HTTP/2, GOAWAY names the last request that is answered.
        flags.drain();
        if let Phase::Draining { idle } = reached {
            if tracked.protocol() != Protocol::Http2 && !idle.is_zero() {
                tokio::select! {
                    biased;
                    result = connection.as_mut() => return report(result),
                    () = time::sleep(idle) => {}
                    _ = phase.reached(Phase::Closing) => return,
                }
            }
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            biased;
            result = connection => report(result),
            _ = phase.reached(Phase::Closing) => {}
        }
    }
}

/// Completes after `timeout` if the client has not sent enough to distinguish HTTP/1 from HTTP/2.
///
/// hyper-util waits for these bytes without a limit, and the header timeout of hyper begins after
/// them (`hyper_util/server/conn/auto`, `ReadVersion`).
async fn silent_for(timeout: Option<Duration>, connection: &flush::Connection) {
    if let Some(timeout) = timeout {
        time::sleep(timeout).await;
        if connection.protocol() == Protocol::Undecided {
            return;
        }
    }
    future::pending().await
}

fn report(result: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    #[cfg(feature = "tracing")]
    if let Err(error) = result {
        tracing::event!(tracing::Level::DEBUG, error, "connection failed");
    }
    #[cfg(not(feature = "tracing"))]
    drop(result);
}

/// Adapts an axum service to the service that hyper calls on a connection.
pub(super) struct App<S> {
    inner: TowerToHyperService<S>,
    flags: Flags,
}

impl<S> App<S> {
    pub(super) fn new(service: S, flags: Flags) -> Self {
        Self { inner: TowerToHyperService::new(service), flags }
    }
}

impl<S> hyper::service::Service<http::Request<Incoming>> for App<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone,
{
    type Response = Response;
    type Error = Infallible;
    type Future = AppFuture<<TowerToHyperService<S> as hyper::service::Service<Request>>::Future>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let flags = (request.version() < Version::HTTP_2).then(|| self.flags.clone());
        AppFuture { inner: self.inner.call(self.flags.observe(request).map(Body::new)), flags }
    }
}

pin_project! {
    /// Response of an [`App`], which closes the connection if the server drains.
    pub(super) struct AppFuture<F> {
        #[pin]
        inner: F,
        // `None` on HTTP/2, which has no header for it.
        flags: Option<Flags>,
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for AppFuture<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(mut response) = ready!(this.inner.poll(cx));
        if this.flags.as_ref().is_some_and(Flags::is_draining) {
            // An upgrade has a header of its own.
            response.headers_mut().entry(header::CONNECTION).or_insert(HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(response))
    }
}
