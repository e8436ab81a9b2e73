use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    net::SocketAddr,
    task::{Context, Poll},
};

use ::axum::{
    Router,
    extract::connect_info::Connected,
    handler::HandlerService,
    routing::MethodRouter,
    serve::{Listener, TapIo},
};
use tokio::net::TcpListener;
use tower_service::Service;

/// A connection that was accepted and not read from yet, as make-services and [`Connected`] see it.
///
/// It is like [`axum::serve::IncomingStream`](::axum::serve::IncomingStream), which only axum can
/// make.
///
/// ```
/// # #[cfg(unix)] {
/// use std::sync::Arc;
/// use axum::{Router, extract::connect_info::{ConnectInfo, Connected}, routing::get};
/// use tokio::net::{UnixListener, unix::UCred};
/// use tower_offload::axum::serve::{IncomingStream, serve};
///
/// #[derive(Clone)]
/// struct Client(Option<UCred>);
///
/// impl Connected<IncomingStream<'_, UnixListener>> for Client {
///     fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
///         Self(stream.io().peer_cred().ok())
///     }
/// }
///
/// async fn hello(ConnectInfo(client): ConnectInfo<Client>) -> String {
///     format!("Hello, {:?}!", client.0)
/// }
///
/// # async {
/// let router = Router::new().route("/", get(hello));
/// let listener = UnixListener::bind("/run/hello.sock").unwrap();
/// serve(listener, router.into_make_service_with_connect_info::<Client>()).await.unwrap();
/// # };
/// # }
/// ```
pub struct IncomingStream<'a, L: Listener> {
    io: &'a L::Io,
    remote_addr: L::Addr,
}

impl<'a, L: Listener> IncomingStream<'a, L> {
    pub(super) fn new(io: &'a L::Io, remote_addr: L::Addr) -> Self {
        Self { io, remote_addr }
    }

    /// Returns the transport that the listener accepted.
    pub fn io(&self) -> &L::Io {
        self.io
    }

    /// Returns the address of the client.
    pub fn remote_addr(&self) -> &L::Addr {
        &self.remote_addr
    }
}

impl<L> fmt::Debug for IncomingStream<'_, L>
where
    L: Listener<Io: fmt::Debug, Addr: fmt::Debug>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IncomingStream").field("io", &self.io).field("remote_addr", &self.remote_addr).finish()
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for SocketAddr {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        stream.remote_addr
    }
}

impl<L, F> Connected<IncomingStream<'_, TapIo<L, F>>> for SocketAddr
where
    L: Listener<Addr = Self>,
    F: FnMut(&mut L::Io) + Send + 'static,
{
    fn connect_info(stream: IncomingStream<'_, TapIo<L, F>>) -> Self {
        stream.remote_addr
    }
}

impl<L: Listener> Service<IncomingStream<'_, L>> for Router {
    type Response = Self;
    type Error = Infallible;
    type Future = Ready<Result<Self, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: IncomingStream<'_, L>) -> Self::Future {
        // `with_state` creates the routes once for each connection, not for each request (axum's
        // own `Service<IncomingStream>` for `Router`).
        ready(Ok(self.clone().with_state(())))
    }
}

impl<L: Listener> Service<IncomingStream<'_, L>> for MethodRouter {
    type Response = Self;
    type Error = Infallible;
    type Future = Ready<Result<Self, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: IncomingStream<'_, L>) -> Self::Future {
        ready(Ok(self.clone().with_state(())))
    }
}

impl<H, T, S, L> Service<IncomingStream<'_, L>> for HandlerService<H, T, S>
where
    H: Clone,
    S: Clone,
    L: Listener,
{
    type Response = Self;
    type Error = Infallible;
    type Future = Ready<Result<Self, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: IncomingStream<'_, L>) -> Self::Future {
        ready(Ok(self.clone()))
    }
}
