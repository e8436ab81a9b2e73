use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use ::axum::{
    body::Body,
    extract::{ConnectInfo, Request},
    response::Response,
    serve::{IncomingStream, Listener},
};
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    after_response::{Observer, ResponseFuture},
    flush::{Connection, StreamId, TrackedIo, Tracker, begin},
};

/// A listener whose connections are tracked, for [`axum::serve`](::axum::serve()), together with [`FlushMakeService`].
///
/// With another service than `FlushMakeService`, as a plain router, it compiles, and every outcome is only handed over. Adapters
/// such as axum's `tap_io` go inside: `FlushListener::new(listener.tap_io(..))`.
///
/// See the [module docs](crate::axum).
#[derive(Debug)]
pub struct FlushListener<L> {
    inner: L,
    tracker: Tracker,
}

impl<L> FlushListener<L> {
    /// Around any listener: TCP, Unix sockets, TLS.
    pub fn new(listener: L) -> Self {
        Self { inner: listener, tracker: Tracker::new() }
    }

    /// What counts the connections' responses. Take a clone before the listener goes to `serve`.
    pub fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// The inner listener.
    pub fn get_ref(&self) -> &L {
        &self.inner
    }
}

impl<L: Listener> Listener for FlushListener<L> {
    type Io = TrackedIo<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, L::Addr) {
        let (io, address) = self.inner.accept().await;
        (TrackedIo::new(io, self.tracker.connection()), address)
    }

    fn local_addr(&self) -> io::Result<L::Addr> {
        self.inner.local_addr()
    }
}

/// Makes the service for each connection of a [`FlushListener`]. It also puts [`ConnectInfo`] into each request, since axum's
/// own `into_make_service_with_connect_info` takes no listeners but axum's.
///
/// See the [module docs](crate::axum).
#[derive(Debug, Clone)]
pub struct FlushMakeService<S> {
    inner: S,
}

impl<S> FlushMakeService<S> {
    /// For a router (with its state, if it has one), or any other service that axum serves.
    pub fn new(service: S) -> Self {
        Self { inner: service }
    }
}

impl<L, S> Service<IncomingStream<'_, FlushListener<L>>> for FlushMakeService<S>
where
    L: Listener,
    L::Addr: Clone,
    S: Clone,
{
    type Response = FlushService<S, L::Addr>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, stream: IncomingStream<'_, FlushListener<L>>) -> Self::Future {
        ready(Ok(FlushService {
            inner: self.inner.clone(),
            connection: stream.io().connection(),
            stream: None,
            address: stream.remote_addr().clone(),
        }))
    }
}

/// The service of one connection. Made by [`FlushMakeService`].
///
/// hyper-util clones it as the request comes, before it reads on, and calls the clone later: so it is in `clone` that a
/// request meets the number of its HTTP/2 stream. Clones that are made at other times find none, and their responses are only handed over.
pub struct FlushService<S, A> {
    inner: S,
    connection: Arc<Connection>,
    stream: Option<StreamId>,
    address: A,
}

impl<S: Clone, A: Clone> Clone for FlushService<S, A> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            connection: self.connection.clone(),
            stream: self.connection.take_stream(),
            address: self.address.clone(),
        }
    }
}

impl<S, A> Service<Request> for FlushService<S, A>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    A: Clone + Send + Sync + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = FlushFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let mut guard = begin(&self.connection, self.stream.take(), &mut request);
        request.extensions_mut().insert(ConnectInfo(self.address.clone()));
        let inner = guard.run(|| self.inner.call(request));
        FlushFuture { inner: ResponseFuture::new(inner, Observer::Owner(guard)) }
    }
}

impl<S: fmt::Debug, A: fmt::Debug> fmt::Debug for FlushService<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlushService")
            .field("inner", &self.inner)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

pin_project! {
    /// The future of [`FlushService`].
    ///
    /// # Cancel safety
    ///
    /// As [`ResponseFuture`].
    #[derive(Debug)]
    pub struct FlushFuture<F> {
        #[pin]
        inner: ResponseFuture<F>,
    }
}

impl<F> Future for FlushFuture<F>
where
    F: Future<Output = Result<Response, Infallible>>,
{
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(self.project().inner.poll(cx))?;
        Poll::Ready(Ok(response.map(Body::new)))
    }
}
