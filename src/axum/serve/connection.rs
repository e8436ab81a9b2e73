use std::{convert::Infallible, future, pin::pin, sync::Arc, time::Duration};

use ::axum::{body::Body, extract::Request, response::Response};
use hyper::body::Incoming;
use hyper_util::{rt::TokioIo, server::conn::auto, service::TowerToHyperService};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time,
};
use tower_service::Service;

use super::linger::{Linger, UnreadRequest};
use crate::flush::{self, Protocol, TrackedIo, TrackedService};

/// Shutdown phase of a server. It only advances.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// Connections end after their current responses.
    Draining,
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

    /// Asks the connections to end gracefully, and waits until all have.
    pub(super) async fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
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
    /// Waits until the server is in `phase` or a later one. Never completes if the server was
    /// dropped before.
    async fn reached(&mut self, phase: Phase) {
        if self.0.wait_for(|current| *current >= phase).await.is_err() {
            future::pending().await
        }
    }
}

/// An accepted connection and the service that answers on it.
pub(super) struct Connection<T, S> {
    pub(super) io: TrackedIo<TokioIo<Linger<T>>>,
    pub(super) service: TrackedService<App<S>>,
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
        let Self { io, service, http, header_read_timeout } = self;
        let tracked = io.connection();
        let mut connection = pin!(http.serve_connection_with_upgrades(io, service));
        tokio::select! {
            biased;
            result = connection.as_mut() => return report(result),
            () = phase.reached(Phase::Draining) => connection.as_mut().graceful_shutdown(),
            () = silent_for(header_read_timeout, &tracked) => return,
        }
        tokio::select! {
            biased;
            result = connection => report(result),
            () = phase.reached(Phase::Closing) => {}
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
    unread: UnreadRequest,
}

impl<S> App<S> {
    pub(super) fn new(service: S, unread: UnreadRequest) -> Self {
        Self { inner: TowerToHyperService::new(service), unread }
    }
}

impl<S> hyper::service::Service<http::Request<Incoming>> for App<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone,
{
    type Response = Response;
    type Error = Infallible;
    type Future = <TowerToHyperService<S> as hyper::service::Service<Request>>::Future;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        self.inner.call(self.unread.observe(request).map(Body::new))
    }
}
