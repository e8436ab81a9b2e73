//! axum's server with tracked connections, timeouts, and a shutdown that ends within a grace
//! period. See [`serve`](serve()).
//!
//! # Connections
//!
//! Each connection is a task of the runtime. It speaks HTTP/1 or HTTP/2, as the client chooses, and
//! supports upgrades. Every response on it is tracked: see [`flush`](crate::flush).
//!
//! These limits apply to each connection:
//!
//! - [`header_read_timeout`](Serve::header_read_timeout), 30 seconds: otherwise a client that sends
//!   its headers slowly, or nothing at all, keeps a connection forever. The value is hyper's
//!   default.
//! - [`http2_keep_alive_interval`](Serve::http2_keep_alive_interval), 30 seconds, and
//!   [`http2_keep_alive_timeout`](Serve::http2_keep_alive_timeout), 20 seconds: pings find HTTP/2
//!   clients that vanished without closing. The interval is as long as an HTTP/1 connection may be
//!   idle; the timeout is hyper's default.
//! - [`http2_max_concurrent_streams`](Serve::http2_max_concurrent_streams), 200: the number of
//!   requests open at once on one connection. The value is hyper's default.
//!
//! Request bodies, handlers and clients that do not read their response have no timeout. Use
//! `tower_http::timeout` for the first two; [`Serve::shutdown`] limits all of them when the server
//! stops. If a client stops reading, the [outcome](crate::flush#clients-that-do-not-read) of a
//! response whose body has ended is known after a minute at the latest. There is no limit on the
//! number of connections either, and an HTTP/2 client that answers pings may be idle forever.
//!
//! If a handler responds on HTTP/1 without reading the whole request, the connection is closed
//! after the response. Then the server reads and discards up to 64 MiB of the rest for up to 5
//! seconds, because otherwise the kernel may reset the connection and the client may lose the
//! response (RFC 9112, section 9.6). hyper reads a short rest that has already arrived itself, and
//! keeps the connection. If that request was the last one on a connection that the server closes,
//! the server waits for the client to close its side too, for up to 5 seconds.
//!
//! # Requests that are not answered
//!
//! A server that stops answers the requests whose head it has read, within the grace period if
//! there is one. An HTTP/1 client can still send a request that is not answered, as with every
//! server that closes connections (RFC 9112, section 9.5):
//!
//! - An idle connection is closed 500 ms after the stop began. A request that is sent at just that
//!   moment is lost. One that arrives earlier is answered.
//! - The next response of a connection has `connection: close`. Requests that the client has
//!   already sent behind that one (pipelining) are not answered.
//!
//! Clients retry such requests if they are idempotent. HTTP/2 has no such gap: the server says
//! which requests it has accepted.
//!
//! In tests with tokio's paused clock, all of these times, and those after which a tracked response
//! is handed over, pass as soon as the runtime is idle, also while a client of the test on another
//! thread is busy.
//!
//! # TLS
//!
//! TLS belongs in the listener: its `Io` is the decrypted stream, and ALPN offers `h2` and
//! `http/1.1`. `accept` should run handshakes in tasks and limit their time, so that a slow client
//! does not delay others. `examples/tls.rs` has such a listener for tokio-rustls.
//!
//! # When not to use it
//!
//! To set other options of hyper, write the accept loop yourself and use
//! [`Tracker::track`](crate::flush::Tracker::track), as the module [`flush`](crate::flush) shows.

mod connection;
mod incoming;
mod linger;
mod report;
mod shutdown;
mod signal;

use std::{
    convert::Infallible,
    fmt,
    future::{self, poll_fn},
    io,
    marker::PhantomData,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use ::axum::{extract::Request, response::Response, serve::Listener};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::time;
use tower_service::Service;

use self::{
    connection::{App, Connection, Connections, Executor},
    linger::{Flags, Linger},
};
pub use self::{
    incoming::IncomingStream,
    report::ServeShutdownReport,
    shutdown::{ServeFuture, WithGracefulShutdown, WithShutdown},
    signal::{ShutdownSignal, shutdown_signal},
};
#[cfg(target_os = "linux")]
use crate::flush::FindSocket;
use crate::{Background, flush::Tracker};

const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);
const HTTP2_KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const HTTP2_KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
const HTTP2_MAX_CONCURRENT_STREAMS: u32 = 200;

/// The longest duration that hyper gets, 30 years. It adds durations to an instant without a
/// check, so that a longer one could panic in every connection.
const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// Serves `make_service` on the connections that `listener` accepts, like
/// [`axum::serve`](::axum::serve()), and tracks when each response was flushed.
///
/// It accepts what `axum::serve` accepts: a [`Router`], a [`MethodRouter`], a handler, or a service
/// that makes a service for each connection. With an
/// [`AfterResponseLayer`](crate::AfterResponseLayer) on the router, outcomes say
/// [`Flushed`](crate::after_response::Delivery::Flushed).
///
/// Unlike in axum, HTTP/2 is always enabled and connections have [timeouts](self#connections).
///
/// # Examples
///
/// Serving a [`Router`]:
///
/// ```
/// use axum::{Router, routing::get};
///
/// # async {
/// let router = Router::new().route("/", get(|| async { "Hello, World!" }));
///
/// let listener = tokio::net::TcpListener::bind("0.0.0.0:3000").await.unwrap();
/// tower_offload::axum::serve(listener, router).await.unwrap();
/// # };
/// ```
///
/// Serving a [`MethodRouter`]:
///
/// ```
/// use axum::routing::get;
///
/// # async {
/// let router = get(|| async { "Hello, World!" });
///
/// let listener = tokio::net::TcpListener::bind("0.0.0.0:3000").await.unwrap();
/// tower_offload::axum::serve(listener, router).await.unwrap();
/// # };
/// ```
///
/// Serving a [`Handler`](::axum::handler::Handler):
///
/// ```
/// use axum::handler::HandlerWithoutStateExt;
///
/// # async {
/// async fn handler() -> &'static str {
///     "Hello, World!"
/// }
///
/// let listener = tokio::net::TcpListener::bind("0.0.0.0:3000").await.unwrap();
/// tower_offload::axum::serve(listener, handler.into_make_service()).await.unwrap();
/// # };
/// ```
///
/// With [`ConnectInfo`](::axum::extract::ConnectInfo), and with an option set on each socket:
///
/// ```
/// use std::net::SocketAddr;
/// use axum::{Router, extract::ConnectInfo, routing::get, serve::ListenerExt};
///
/// # async {
/// async fn hello(ConnectInfo(peer): ConnectInfo<SocketAddr>) -> String {
///     format!("Hello, {peer}!")
/// }
///
/// let router = Router::new().route("/", get(hello));
///
/// let listener = tokio::net::TcpListener::bind("0.0.0.0:3000").await.unwrap().tap_io(|stream| {
///     let _ = stream.set_nodelay(true);
/// });
/// let app = router.into_make_service_with_connect_info::<SocketAddr>();
/// tower_offload::axum::serve(listener, app).await.unwrap();
/// # };
/// ```
///
/// A [`Connected`](::axum::extract::connect_info::Connected) of your own is implemented for this
/// crate's [`IncomingStream`], because only axum can make its own.
///
/// # Accept errors
///
/// [`Listener::accept`] returns no errors: a listener must handle them itself. axum does so for
/// tokio's TCP and Unix listeners. It ignores a connection that failed before it was accepted.
/// After any other error, for example if the process has no file descriptor left, it logs the error
/// and waits for one second.
///
/// # Return value
///
/// The future never completes. Its output is `io::Result<()>`, like axum's, for compatibility.
///
/// # Panics
///
/// The future panics outside a tokio runtime with time enabled.
///
/// # Cancel safety
///
/// Dropping the future closes the listener. Connections that were accepted are served until they
/// end, as in axum.
///
/// [`MethodRouter`]: ::axum::routing::MethodRouter
/// [`Router`]: ::axum::Router
pub fn serve<L, M, S>(listener: L, make_service: M) -> Serve<L, M, S>
where
    L: Listener,
    M: for<'a> Service<IncomingStream<'a, L>, Error = Infallible, Response = S>,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let mut http = auto::Builder::new(Executor);
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT);
    http.http2()
        .timer(TokioTimer::new())
        .enable_connect_protocol() // WebSockets on HTTP/2 (RFC 8441)
        .keep_alive_interval(HTTP2_KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(HTTP2_KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(HTTP2_MAX_CONCURRENT_STREAMS);
    Serve {
        listener,
        make_service,
        http,
        header_read_timeout: Some(HEADER_READ_TIMEOUT),
        tracker: Tracker::new(),
        #[cfg(target_os = "linux")]
        find_socket: find_tcp_stream,
        _service: PhantomData,
    }
}

/// A server that has not started yet. Returned by [`serve`](serve()); `.await` runs it.
#[must_use = "a server does nothing unless it is awaited"]
pub struct Serve<L: Listener, M, S> {
    listener: L,
    make_service: M,
    http: auto::Builder<Executor>,
    header_read_timeout: Option<Duration>,
    tracker: Tracker,
    #[cfg(target_os = "linux")]
    find_socket: FindSocket<L::Io>,
    _service: PhantomData<fn() -> S>,
}

impl<L: Listener, M, S> Serve<L, M, S> {
    /// Closes an HTTP/1 connection whose client does not send the whole head of a request in time.
    ///
    /// The time runs from the first bytes of the connection or the end of the previous response, so
    /// that it also limits how long a connection may be idle. It applies in the same way to the
    /// first bytes, which distinguish HTTP/1 from HTTP/2, from the moment the connection was
    /// accepted. The default is 30 seconds; `None` removes the limit.
    pub fn header_read_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.header_read_timeout = timeout.into().map(|timeout| timeout.min(MAX_TIMEOUT));
        self.http.http1().header_read_timeout(self.header_read_timeout);
        self
    }

    /// Sends a ping on each HTTP/2 connection after this time without a frame from the client.
    ///
    /// Pings detect clients that have vanished without closing the connection. Their responses end
    /// as [`Aborted`](crate::after_response::End::Aborted). The default is 30 seconds; `None` sends
    /// no pings.
    pub fn http2_keep_alive_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.http.http2().keep_alive_interval(interval.into().map(|interval| interval.min(MAX_TIMEOUT)));
        self
    }

    /// Closes an HTTP/2 connection whose client does not acknowledge a
    /// [ping](Self::http2_keep_alive_interval) in time. The default is 20 seconds.
    pub fn http2_keep_alive_timeout(mut self, timeout: Duration) -> Self {
        self.http.http2().keep_alive_timeout(timeout.min(MAX_TIMEOUT));
        self
    }

    /// Sets the maximum number of requests that a client may have open on one HTTP/2 connection.
    /// The default is 200; `None` removes the limit.
    pub fn http2_max_concurrent_streams(mut self, max: impl Into<Option<u32>>) -> Self {
        self.http.http2().max_concurrent_streams(max);
        self
    }

    /// Counts connections and their responses in `tracker`, whose
    /// [`stats`](Tracker::stats) then cover this server too.
    pub fn tracker(mut self, tracker: &Tracker) -> Self {
        self.tracker = tracker.clone();
        self
    }

    /// Names the TCP socket below the transports of the listener, so that a response can
    /// [request](crate::AfterResponse::request_acknowledgement) that its acknowledgement by the
    /// peer is reported. Linux only.
    ///
    /// This is needed only if the listener's `Io` is not a `TcpStream`, for example for TLS. `find`
    /// returns `None` if a transport has no such socket. See
    /// [`TrackedIo::with_socket`](crate::flush::TrackedIo::with_socket) for what it must guarantee.
    ///
    /// ```
    /// # use axum::{Router, serve::Listener};
    /// # use tokio::{io::BufStream, net::TcpStream};
    /// # fn example(listener: impl Listener<Io = BufStream<TcpStream>>, app: Router) {
    /// use std::os::fd::AsFd;
    ///
    /// let server = tower_offload::axum::serve(listener, app);
    /// let server = server.tcp_socket(|io| Some(io.get_ref().as_fd()));
    /// # }
    /// ```
    #[cfg(target_os = "linux")]
    pub fn tcp_socket(mut self, find: fn(&L::Io) -> Option<std::os::fd::BorrowedFd<'_>>) -> Self {
        self.find_socket = find;
        self
    }

    /// Returns the local address this server is bound to.
    ///
    /// # Errors
    ///
    /// Fails if the listener does not know its address.
    pub fn local_addr(&self) -> io::Result<L::Addr> {
        self.listener.local_addr()
    }

    /// Stops accepting connections when `signal` completes, and waits until the open ones have
    /// ended.
    ///
    /// Connections end after their current responses. An HTTP/1 connection that is idle is closed
    /// after 500 ms: see [requests that are not answered](self#requests-that-are-not-answered). An
    /// HTTP/2 connection ends only when its client has acknowledged a ping, or at the timeout of
    /// the next [keep-alive ping](Self::http2_keep_alive_interval). There is no time limit: a
    /// client that does not read keeps the server running. See [`shutdown`](Self::shutdown) for one
    /// with a limit.
    ///
    /// ```
    /// use axum::{Router, routing::get};
    ///
    /// # async {
    /// let router = Router::new().route("/", get(|| async { "Hello, World!" }));
    ///
    /// let listener = tokio::net::TcpListener::bind("0.0.0.0:3000").await.unwrap();
    /// tower_offload::axum::serve(listener, router)
    ///     .with_graceful_shutdown(shutdown_signal())
    ///     .await
    ///     .unwrap();
    /// # };
    ///
    /// async fn shutdown_signal() {
    ///     // ...
    /// }
    /// ```
    ///
    /// # Return value
    ///
    /// Always `Ok(())`, after `signal` has completed and every connection has ended. An upgraded
    /// connection, such as a WebSocket on HTTP/1, belongs to its handler and is not waited for.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the listener. Connections are served until they end, which is
    /// after their current responses if `signal` had completed.
    pub fn with_graceful_shutdown<F>(self, signal: F) -> WithGracefulShutdown<L, M, S, F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        WithGracefulShutdown::new(self, signal)
    }

    /// Stops accepting connections when `signal` completes, and ends the open connections and the
    /// tasks of `background` within `grace`.
    ///
    /// 1. The listener is closed. Connections end after their current responses. An HTTP/1
    ///    connection that is idle is closed after 500 ms, at most a tenth of `grace`: see
    ///    [requests that are not answered](self#requests-that-are-not-answered).
    /// 2. Connections that are still open when a tenth of `grace`, but at most one second, is left
    ///    are closed. Their responses end as [`Aborted`](crate::after_response::End::Aborted), and
    ///    the hooks and tasks registered with them run in the time that is left.
    /// 3. The background is [shut down](crate::Background::shutdown) for the rest of `grace`, which
    ///    begins as soon as every connection has ended. Tasks that still run at its end are asked
    ///    to stop and reported.
    ///
    /// Neither a client that does not read its response nor a task that runs for too long extends
    /// `grace`. A server without background tasks passes `None`. An upgraded connection, such as a
    /// WebSocket on HTTP/1, belongs to its handler and is neither waited for nor closed.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use axum::{Router, routing::get};
    /// use tower_offload::{AfterResponse, AfterResponseLayer, Background};
    /// use tower_offload::axum::{serve, shutdown_signal};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> std::io::Result<()> {
    /// let background = Background::default();
    /// let app = Router::new()
    ///     .route("/", get(async |after: AfterResponse| {
    ///         after.hook(|outcome| println!("{} {}", outcome.end, outcome.delivery));
    ///         "hello"
    ///     }))
    ///     .layer(AfterResponseLayer::new(background.clone()));
    ///
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    /// let grace = Duration::from_secs(10);
    /// let report = serve(listener, app).shutdown(shutdown_signal()?, grace, &background).await;
    /// println!("stopped: {report}");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// The future panics outside a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future before `signal` completes is like dropping that of [`serve`](serve()).
    /// After it, connections end gracefully without a time limit, and the background is closed only
    /// if step 3 had begun.
    pub fn shutdown<'a, F>(
        self,
        signal: F,
        grace: Duration,
        background: impl Into<Option<&'a Background>>,
    ) -> WithShutdown<L, M, S, F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        WithShutdown::new(self, signal, grace, background.into().cloned())
    }
}

impl<L, M, S> Serve<L, M, S>
where
    L: Listener,
    M: for<'a> Service<IncomingStream<'a, L>, Error = Infallible, Response = S> + Send + 'static,
    for<'a> <M as Service<IncomingStream<'a, L>>>::Future: Send,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    /// Accepts connections until `signal` completes, then closes the listener and returns the
    /// connections that are still open.
    async fn accept_until(self, signal: impl Future<Output = ()>) -> Connections {
        // Panics without a timer. Otherwise each connection would, in a task that no one awaits.
        drop(time::sleep(Duration::ZERO));
        #[cfg(target_os = "linux")]
        let find_socket = self.find_socket;
        let Self { mut listener, mut make_service, http, header_read_timeout, tracker, .. } = self;
        let http = Arc::new(http);
        let connections = Connections::new();
        let mut signal = pin!(signal);
        loop {
            // The signal also ends a wait for the service of a connection.
            let (io, service) = tokio::select! {
                biased;
                () = signal.as_mut() => return connections,
                accepted = accept(&mut listener, &mut make_service) => accepted,
            };
            let flags = Flags::default();
            let io = Linger::new(io, flags.clone());
            #[cfg(target_os = "linux")]
            let io = io.with_socket(find_socket);
            let (io, service) = tracker.track(TokioIo::new(io), App::new(service, flags.clone()));
            #[cfg(target_os = "linux")]
            let io = io.with_socket(|io| io.inner().socket());
            let connection = Connection { io, service, flags, http: http.clone(), header_read_timeout };
            let (phase, open) = connections.register();
            tokio::spawn(connection.serve(phase, open));
        }
    }
}

/// Finds the socket of a listener without a TLS of its own.
#[cfg(target_os = "linux")]
fn find_tcp_stream<T: 'static>(io: &T) -> Option<std::os::fd::BorrowedFd<'_>> {
    let stream = (io as &dyn std::any::Any).downcast_ref::<tokio::net::TcpStream>()?;
    Some(std::os::fd::AsFd::as_fd(stream))
}

/// Accepts one connection and creates its service.
async fn accept<L, M, S>(listener: &mut L, make_service: &mut M) -> (L::Io, S)
where
    L: Listener,
    M: for<'a> Service<IncomingStream<'a, L>, Error = Infallible, Response = S>,
{
    let (io, remote_addr) = listener.accept().await;
    let Ok(()) = poll_fn(|cx| Service::<IncomingStream<'_, L>>::poll_ready(make_service, cx)).await;
    let Ok(service) = make_service.call(IncomingStream::new(&io, remote_addr)).await;
    (io, service)
}

impl<L, M, S> IntoFuture for Serve<L, M, S>
where
    L: Listener,
    M: for<'a> Service<IncomingStream<'a, L>, Error = Infallible, Response = S> + Send + 'static,
    for<'a> <M as Service<IncomingStream<'a, L>>>::Future: Send,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Output = io::Result<()>;
    type IntoFuture = ServeFuture<io::Result<()>>;

    fn into_future(self) -> Self::IntoFuture {
        ServeFuture::new(async {
            self.accept_until(future::pending()).await;
            Ok(())
        })
    }
}

impl<L: Listener + fmt::Debug, M: fmt::Debug, S> fmt::Debug for Serve<L, M, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve")
            .field("listener", &self.listener)
            .field("make_service", &self.make_service)
            .finish_non_exhaustive()
    }
}
