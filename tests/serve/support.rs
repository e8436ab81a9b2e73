//! Listeners, clients and an app whose outcomes the test receives.

use std::{
    convert::Infallible,
    future::{self, IntoFuture},
    io,
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Request},
    http::{HeaderMap, HeaderName, StatusCode, header::CONTENT_LENGTH},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
    serve::Listener,
};
use futures_util::{StreamExt, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::ring},
    server::TlsStream,
};
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background,
    after_response::{Delivery, End, Outcome},
    axum::serve,
};

/// Longer than any passing test takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Limits the time of a test.
pub(crate) async fn within<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, test).await.expect("the test hangs")
}

/// A client's side of a connection.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

// ---- in memory, so that time can be paused ----

/// Returns a listener and the function that connects to it, through pipes of 1 KiB.
pub(crate) fn in_memory() -> (MemoryListener, impl Fn() -> DuplexStream) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let connect = move || {
        let (client, server) = tokio::io::duplex(1024);
        let _ = sender.send(server); // fails if the listener is closed; the client reads the end
        client
    };
    (MemoryListener(receiver), connect)
}

pub(crate) struct MemoryListener(mpsc::UnboundedReceiver<DuplexStream>);

impl Listener for MemoryListener {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (DuplexStream, ()) {
        match self.0.recv().await {
            Some(io) => (io, ()),
            None => future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

// ---- over sockets ----

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Http1,
    /// With prior knowledge.
    Http2,
    /// Selected by ALPN.
    TlsHttp1,
    TlsHttp2,
}

pub(crate) const ALL: [Transport; 4] = [Transport::Http1, Transport::Http2, Transport::TlsHttp1, Transport::TlsHttp2];
pub(crate) const HTTP1: [Transport; 2] = [Transport::Http1, Transport::TlsHttp1];
pub(crate) const HTTP2: [Transport; 2] = [Transport::Http2, Transport::TlsHttp2];

impl Transport {
    pub(crate) fn is_http2(self) -> bool {
        HTTP2.contains(&self)
    }

    fn is_tls(self) -> bool {
        matches!(self, Self::TlsHttp1 | Self::TlsHttp2)
    }
}

static TLS: LazyLock<(Arc<ServerConfig>, ClientConfig)> = LazyLock::new(|| {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let provider = Arc::new(ring::default_provider());
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], own.signing_key.into())
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut roots = RootCertStore::empty();
    roots.add(own.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), client)
});

/// Accepts TLS connections. Handshakes run in tasks.
pub(crate) struct TlsListener {
    tcp: TcpListener,
    handshakes: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
}

impl TlsListener {
    pub(crate) fn new(tcp: TcpListener) -> Self {
        Self { tcp, handshakes: JoinSet::new() }
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            tokio::select! {
                (stream, address) = Listener::accept(&mut self.tcp) => {
                    let handshake = TlsAcceptor::from(TLS.0.clone()).accept(stream);
                    self.handshakes.spawn(async move { Some((handshake.await.ok()?, address)) });
                }
                Some(handshake) = self.handshakes.join_next() => {
                    if let Ok(Some(accepted)) = handshake {
                        return accepted;
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

pub(crate) async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

pub(crate) async fn connect(address: SocketAddr, transport: Transport) -> Box<dyn Io> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    if !transport.is_tls() {
        return Box::new(stream);
    }
    let protocol: &[u8] = if transport.is_http2() { b"h2" } else { b"http/1.1" };
    let mut config = TLS.1.clone();
    config.alpn_protocols = vec![protocol.to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
    Box::new(stream)
}

/// A server of [`app`] on a socket, until it is dropped.
pub(crate) struct Server {
    pub(crate) transport: Transport,
    address: SocketAddr,
    outcomes: Outcomes,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(crate) async fn start(transport: Transport) -> Self {
        let (listener, address) = bind().await;
        let (app, outcomes) = app(&Background::default());
        let server = if transport.is_tls() {
            serve(TlsListener::new(listener), app).into_future()
        } else {
            serve(listener, app).into_future()
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async { server.await.unwrap() });
        Self { transport, address, outcomes, _tasks: tasks }
    }

    pub(crate) async fn connect(&self) -> Box<dyn Io> {
        connect(self.address, self.transport).await
    }

    /// Returns the outcome of the next request that ends, which must be for `path`.
    pub(crate) async fn outcome(&mut self, path: &str) -> Outcome {
        self.outcomes.next(path).await
    }

    /// Returns the path and the outcome of the next request that ends.
    pub(crate) async fn any_outcome(&mut self) -> (String, Outcome) {
        within(self.outcomes.ended.recv()).await.unwrap()
    }

    /// Waits until a handler of `/wait` has begun.
    pub(crate) async fn waits(&self) {
        within(self.outcomes.waits.acquire()).await.unwrap().forget();
    }

    /// Checks that the next response that ends is for `path`, and was flushed with a body of that
    /// length.
    pub(crate) async fn flushed(&mut self, path: &str, body_bytes: u64) -> Outcome {
        let outcome = self.outcome(path).await;
        let seen = (outcome.end, outcome.delivery, outcome.body_bytes);
        assert_eq!(seen, (End::Complete, Delivery::Flushed, body_bytes), "{path} on {:?}", self.transport);
        outcome
    }

    /// Checks that the next response that ends is for `path`, and ended with `end`.
    pub(crate) async fn failed(&mut self, path: &str, end: End) -> Outcome {
        let outcome = self.outcome(path).await;
        assert_eq!((outcome.end, outcome.delivery), (end, Delivery::NotDelivered), "{path} on {:?}", self.transport);
        outcome
    }
}

// ---- the app ----

pub(crate) struct Outcomes {
    ended: mpsc::UnboundedReceiver<(String, Outcome)>,
    /// One permit for each handler of `/wait` that has begun.
    waits: Arc<Semaphore>,
}

impl Outcomes {
    pub(crate) async fn next(&mut self, path: &str) -> Outcome {
        let (of, outcome) = within(self.ended.recv()).await.unwrap();
        assert_eq!(of, path);
        outcome
    }
}

/// Returns an app that responds as the path describes, and the outcomes of its responses.
pub(crate) fn app(background: &Background) -> (Router, Outcomes) {
    let (sender, ended) = mpsc::unbounded_channel();
    let waits = Arc::new(Semaphore::new(0));
    let wait = {
        let waits = waits.clone();
        async move || {
            waits.add_permits(1);
            future::pending::<()>().await
        }
    };
    let send_outcome = move |after: AfterResponse, request: Request, next: Next| {
        let (sender, path) = (sender.clone(), request.uri().path().to_owned());
        after.hook(move |outcome| {
            let _ = sender.send((path, outcome.clone()));
        });
        next.run(request)
    };
    let app = Router::new()
        .route("/full/{n}", get(async |Path(n): Path<usize>| vec![b'x'; n]))
        .route("/chunks/{n}/{size}", get(async |Path((n, size)): Path<(usize, usize)>| chunks(n, size)))
        .route("/hang/{n}", get(async |Path(n): Path<usize>| unending(n)))
        .route("/length/{n}", get(async |Path(n): Path<usize>| ([(CONTENT_LENGTH, n)], unending(n))))
        .route("/long/{n}", get(async |Path(n): Path<usize>| ([(CONTENT_LENGTH, n)], chunks(1, 2 * n))))
        .route("/short/{n}", get(async |Path(n): Path<usize>| ([(CONTENT_LENGTH, n)], chunks(1, n - 1))))
        .route("/trailers/{n}", get(async |Path(n): Path<usize>| trailers(n)))
        .route("/empty", get(async || Body::empty()))
        .route("/status/{code}", get(async |Path(code): Path<u16>| StatusCode::from_u16(code).unwrap()))
        .route("/error/{n}", get(async |Path(n): Path<usize>| failing(n)))
        .route("/panic", get(async || -> () { panic!("a handler panics") }))
        .route("/slow/{ms}", get(async |Path(ms): Path<u64>| tokio::time::sleep(Duration::from_millis(ms)).await))
        .route("/wait", get(wait))
        .layer(middleware::from_fn(send_outcome))
        .layer(AfterResponseLayer::new(background.clone()));
    (app, Outcomes { ended, waits })
}

fn chunks(n: usize, size: usize) -> Body {
    Body::from_stream(stream::iter((0..n).map(move |_| Ok::<_, Infallible>(vec![b'x'; size]))))
}

/// Returns a body that yields `n` bytes and never ends.
fn unending(n: usize) -> Body {
    let data = stream::iter([Ok::<_, Infallible>(vec![b'x'; n])]);
    Body::from_stream(data.chain(stream::pending()))
}

fn trailers(n: usize) -> impl IntoResponse {
    let trailers = HeaderMap::from_iter([(HeaderName::from_static("x-after"), 1.into())]);
    let frames = [Frame::data(Bytes::from(vec![b'x'; n])), Frame::trailers(trailers)];
    ([("trailer", "x-after")], Body::new(StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)))))
}

fn failing(n: usize) -> Response {
    let frames = [Ok(vec![b'x'; n]), Err(io::Error::other("the body failed"))];
    Response::new(Body::from_stream(stream::iter(frames)))
}

// ---- raw HTTP/1 ----

pub(crate) async fn send_get(io: &mut (impl AsyncWrite + Unpin), path: &str) {
    io.write_all(format!("GET {path} HTTP/1.1\r\nhost: site\r\n\r\n").as_bytes()).await.unwrap();
    io.flush().await.unwrap();
}

/// Reads until `text` ends with `end`.
pub(crate) async fn read_until(io: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        text.push(within(io.read_u8()).await.expect("the connection stays open"));
    }
    String::from_utf8(text).unwrap().to_ascii_lowercase()
}

/// Reads until the server closes the connection. A reset is a close.
pub(crate) async fn read_to_close(io: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = within(io.read_to_end(&mut bytes)).await;
    bytes
}

/// Reads a response with a content length; returns its head and the length of its body.
pub(crate) async fn read_response(io: &mut (impl AsyncRead + Unpin)) -> (String, usize) {
    let head = read_until(io, "\r\n\r\n").await;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    within(io.read_exact(&mut body)).await.unwrap();
    (head, length)
}

/// Sends a request on a connection of its own, and returns the whole response.
pub(crate) async fn ask(io: &mut (impl AsyncRead + AsyncWrite + Unpin), path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: site\r\nconnection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    String::from_utf8(read_to_close(io).await).unwrap()
}
