use std::{
    convert::Infallible,
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use ::axum::{extract::Request, response::Response, serve::Listener};
use tokio::time::{Instant, timeout};
use tower_service::Service;

use super::{IncomingStream, Serve, ServeShutdownReport, connection::IDLE_TIMEOUT};
use crate::Background;

/// The maximum part of the grace period that is reserved for hooks and tasks of connections closed
/// early.
const MAX_RESERVE: Duration = Duration::from_secs(1);

/// A server that stops when a signal completes. Returned by [`Serve::with_graceful_shutdown`];
/// `.await` runs it.
#[must_use = "a server does nothing unless it is awaited"]
pub struct WithGracefulShutdown<L: Listener, M, S, F> {
    server: Serve<L, M, S>,
    signal: F,
}

impl<L: Listener, M, S, F> WithGracefulShutdown<L, M, S, F> {
    pub(super) fn new(server: Serve<L, M, S>, signal: F) -> Self {
        Self { server, signal }
    }

    /// Returns the local address this server is bound to.
    ///
    /// # Errors
    ///
    /// Fails if the listener does not know its address.
    pub fn local_addr(&self) -> io::Result<L::Addr> {
        self.server.local_addr()
    }
}

impl<L, M, S, F> IntoFuture for WithGracefulShutdown<L, M, S, F>
where
    L: Listener,
    M: for<'a> Service<IncomingStream<'a, L>, Error = Infallible, Response = S> + Send + 'static,
    for<'a> <M as Service<IncomingStream<'a, L>>>::Future: Send,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    F: Future<Output = ()> + Send + 'static,
{
    type Output = io::Result<()>;
    type IntoFuture = ServeFuture<io::Result<()>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { server, signal } = self;
        ServeFuture::new(async {
            server.accept_until(signal).await.drain(IDLE_TIMEOUT).await;
            Ok(())
        })
    }
}

impl<L: Listener + fmt::Debug, M: fmt::Debug, S, F> fmt::Debug for WithGracefulShutdown<L, M, S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithGracefulShutdown").field("server", &self.server).finish_non_exhaustive()
    }
}

/// A server that stops within a grace period after a signal completes. Returned by
/// [`Serve::shutdown`]; `.await` runs it.
#[must_use = "a server does nothing unless it is awaited"]
pub struct WithShutdown<L: Listener, M, S, F> {
    server: Serve<L, M, S>,
    signal: F,
    grace: Duration,
    background: Option<Background>,
}

impl<L: Listener, M, S, F> WithShutdown<L, M, S, F> {
    pub(super) fn new(server: Serve<L, M, S>, signal: F, grace: Duration, background: Option<Background>) -> Self {
        Self { server, signal, grace, background }
    }

    /// Returns the local address this server is bound to.
    ///
    /// # Errors
    ///
    /// Fails if the listener does not know its address.
    pub fn local_addr(&self) -> io::Result<L::Addr> {
        self.server.local_addr()
    }
}

impl<L, M, S, F> WithShutdown<L, M, S, F>
where
    L: Listener,
    M: for<'a> Service<IncomingStream<'a, L>, Error = Infallible, Response = S> + Send + 'static,
    for<'a> <M as Service<IncomingStream<'a, L>>>::Future: Send,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    F: Future<Output = ()>,
{
    async fn run(self) -> ServeShutdownReport {
        let Self { server, signal, grace, background } = self;
        let connections = server.accept_until(signal).await;

        let began = Instant::now();
        let rest = || grace.saturating_sub(began.elapsed());
        let mut open_connections = 0;
        if timeout(grace - MAX_RESERVE.min(grace / 10), connections.drain(IDLE_TIMEOUT.min(grace / 10))).await.is_err()
        {
            open_connections = connections.open();
            // A connection cannot be closed while a handler blocks its thread.
            let _ = timeout(rest(), connections.close()).await;
        }
        // After the connections, because their requests may still register tasks.
        let background = match background {
            Some(background) => background.shutdown(rest()).await,
            None => Default::default(),
        };
        ServeShutdownReport::new(open_connections, background, began, grace)
    }
}

impl<L, M, S, F> IntoFuture for WithShutdown<L, M, S, F>
where
    L: Listener,
    M: for<'a> Service<IncomingStream<'a, L>, Error = Infallible, Response = S> + Send + 'static,
    for<'a> <M as Service<IncomingStream<'a, L>>>::Future: Send,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    F: Future<Output = ()> + Send + 'static,
{
    type Output = ServeShutdownReport;
    type IntoFuture = ServeFuture<ServeShutdownReport>;

    fn into_future(self) -> Self::IntoFuture {
        ServeFuture::new(self.run())
    }
}

impl<L: Listener + fmt::Debug, M: fmt::Debug, S, F> fmt::Debug for WithShutdown<L, M, S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithShutdown")
            .field("server", &self.server)
            .field("grace", &self.grace)
            .field("background", &self.background)
            .finish_non_exhaustive()
    }
}

/// The future of a running server. It is boxed once for each server.
#[must_use = "futures do nothing unless polled"]
pub struct ServeFuture<T>(Pin<Box<dyn Future<Output = T> + Send>>);

impl<T> ServeFuture<T> {
    pub(super) fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self(Box::pin(future))
    }
}

impl<T> Future for ServeFuture<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.0.as_mut().poll(cx)
    }
}

impl<T> fmt::Debug for ServeFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServeFuture").finish_non_exhaustive()
    }
}
