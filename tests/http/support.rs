//! Servers, clients and latches, without any sleeps.

use std::{
    collections::HashMap,
    future::poll_fn,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};
use tower_offload::{
    ThreadPool,
    pool::{Pool, Run},
};

/// Longer than any passing test takes.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Fails the test after [`TEST_TIMEOUT`].
pub(crate) async fn within<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_TIMEOUT, test).await.expect("the test hangs")
}

/// Returns a pool with threads named `pool-0`, `pool-1`, ..
pub(crate) fn pool(threads: usize) -> ThreadPool {
    ThreadPool::builder().name("pool").threads(threads).build().unwrap()
}

/// Returns a pool with one thread.
pub(crate) fn one_thread(queue_capacity: usize) -> ThreadPool {
    ThreadPool::builder().name("pool").threads(1).queue_capacity(queue_capacity).build().unwrap()
}

pub(crate) fn thread_name() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}

pub(crate) fn is_pool_thread(name: &str) -> bool {
    name.starts_with("pool-")
}

/// The number of passes of an open latch.
const OPEN: usize = usize::MAX;

/// Blocks the calling thread until the test lets it continue.
#[derive(Clone)]
pub(crate) struct Latch(Arc<LatchState>);

struct LatchState {
    /// One permit for each thread that has arrived and was not yet reported by `reached`.
    arrived: Semaphore,
    /// The number of threads that may still continue.
    passes: Mutex<usize>,
    opened: Condvar,
}

impl Latch {
    pub(crate) fn new() -> Self {
        Self(Arc::new(LatchState { arrived: Semaphore::new(0), passes: Mutex::new(0), opened: Condvar::new() }))
    }

    /// Reports the arrival of this thread and blocks it.
    pub(crate) fn block(&self) {
        self.0.arrived.add_permits(1);
        let passes = self.0.passes.lock().unwrap();
        let (mut passes, waited) =
            self.0.opened.wait_timeout_while(passes, TEST_TIMEOUT, |passes| *passes == 0).unwrap();
        assert!(!waited.timed_out(), "the latch was not opened");
        if *passes != OPEN {
            *passes -= 1;
        }
    }

    /// Waits until one more thread has arrived.
    pub(crate) async fn reached(&self) {
        self.0.arrived.acquire().await.unwrap().forget();
    }

    /// Returns the number of threads that have arrived and were not yet reported by `reached`.
    pub(crate) fn unseen(&self) -> usize {
        self.0.arrived.available_permits()
    }

    pub(crate) fn let_one_pass(&self) {
        *self.0.passes.lock().unwrap() += 1;
        self.0.opened.notify_one();
    }

    /// Lets all threads continue, now and later.
    pub(crate) fn open(&self) {
        *self.0.passes.lock().unwrap() = OPEN;
        self.0.opened.notify_all();
    }
}

/// A pool whose only thread is blocked and whose queue is full.
pub(crate) struct FullPool {
    pub(crate) pool: ThreadPool,
    latch: Latch,
    held: [Run<()>; 2],
}

impl FullPool {
    pub(crate) async fn new() -> Self {
        let (pool, latch) = (one_thread(1), Latch::new());
        let running = pool.run({
            let latch = latch.clone();
            move || latch.block()
        });
        latch.reached().await; // it has left the queue
        let queued = pool.run(|| ());
        assert_eq!(pool.stats().queued, 1);
        Self { pool, latch, held: [running, queued] }
    }

    /// Unblocks the thread and empties the queue.
    pub(crate) async fn release(self) {
        self.latch.open();
        for held in self.held {
            held.await.unwrap();
        }
    }
}

/// Observes the calls of a router from outside its layers.
#[derive(Clone)]
pub(crate) struct Spy(Arc<SpyState>);

struct SpyState {
    /// One permit for each call whose future has returned pending.
    pending: Semaphore,
    /// One permit for each call whose future was dropped before it completed.
    dropped: Semaphore,
}

impl Spy {
    pub(crate) fn new() -> Self {
        Self(Arc::new(SpyState { pending: Semaphore::new(0), dropped: Semaphore::new(0) }))
    }

    /// Adds the spy around all present layers of `router`.
    pub(crate) fn around(&self, router: Router) -> Router {
        async fn spy(State(spy): State<Spy>, request: Request, next: Next) -> Response {
            struct OnDrop(Option<Spy>);
            impl Drop for OnDrop {
                fn drop(&mut self) {
                    if let Some(spy) = &self.0 {
                        spy.0.dropped.add_permits(1);
                    }
                }
            }
            // It is declared before the call, so it is dropped after it.
            let mut on_drop = OnDrop(Some(spy.clone()));
            let mut reported = false;
            let mut call = pin!(next.run(request));
            let response = poll_fn(|cx| {
                let polled = call.as_mut().poll(cx);
                if polled.is_pending() && !reported {
                    reported = true;
                    spy.0.pending.add_permits(1);
                }
                polled
            })
            .await;
            on_drop.0 = None;
            response
        }
        router.layer(from_fn_with_state(self.clone(), spy))
    }

    /// Waits until `calls` more calls have returned pending.
    pub(crate) async fn pending(&self, calls: u32) {
        self.0.pending.acquire_many(calls).await.unwrap().forget();
    }

    /// Waits until the server has dropped one more call before it completed.
    pub(crate) async fn dropped(&self) {
        self.0.dropped.acquire().await.unwrap().forget();
    }
}

pub(crate) async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Serves HTTP/1 and HTTP/2 until the runtime of the test shuts down.
pub(crate) async fn serve(router: Router) -> SocketAddr {
    let (listener, address) = bind().await;
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// A response with its whole body.
#[derive(Debug)]
pub(crate) struct FullResponse {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl FullResponse {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    pub(crate) fn assert_ok(&self, body: &str) {
        assert_eq!((self.status, self.text()), (StatusCode::OK, body));
    }

    #[track_caller]
    pub(crate) fn assert_unavailable(&self) {
        assert_eq!(self.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(self.header("retry-after").parse::<u64>().unwrap() >= 1);
        assert!(self.body.is_empty());
    }

    async fn of(response: http::Response<hyper::body::Incoming>) -> hyper::Result<Self> {
        let (head, body) = response.into_parts();
        Ok(Self { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
    }
}

/// One HTTP/1 connection.
pub(crate) struct Http1 {
    sender: http1::SendRequest<Body>,
    connection: JoinHandle<()>,
}

impl Http1 {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let socket = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, connection) = http1::handshake(socket).await.unwrap();
        Self { sender, connection: tokio::spawn(async { drop(connection.await) }) }
    }

    pub(crate) async fn try_send(&mut self, mut request: http::Request<Body>) -> hyper::Result<FullResponse> {
        request.headers_mut().insert("host", "test".parse().unwrap());
        self.sender.ready().await?;
        FullResponse::of(self.sender.send_request(request).await?).await
    }

    pub(crate) async fn send(&mut self, request: http::Request<Body>) -> FullResponse {
        self.try_send(request).await.unwrap()
    }

    pub(crate) async fn get(&mut self, path: &str) -> FullResponse {
        self.send(request(Method::GET, path, Body::empty())).await
    }
}

impl Drop for Http1 {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// One HTTP/2 connection.
#[derive(Clone)]
pub(crate) struct Http2(http2::SendRequest<Body>);

impl Http2 {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let socket = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, connection) = http2::handshake(TokioExecutor::new(), socket).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub(crate) async fn try_send(&mut self, request: http::Request<Body>) -> hyper::Result<FullResponse> {
        self.0.ready().await?;
        FullResponse::of(self.0.send_request(request).await?).await
    }

    pub(crate) async fn send(&mut self, request: http::Request<Body>) -> FullResponse {
        self.try_send(request).await.unwrap()
    }
}

pub(crate) fn request(method: Method, path: &str, body: impl Into<Body>) -> http::Request<Body> {
    http::Request::builder().method(method).uri(path).body(body.into()).unwrap()
}

/// Returns a request with an absolute target, for HTTP/2.
pub(crate) fn absolute(method: Method, path: &str, body: impl Into<Body>) -> http::Request<Body> {
    request(method, &format!("http://test{path}"), body)
}

/// Sends a GET on a new connection.
pub(crate) async fn get(address: SocketAddr, path: &str) -> FullResponse {
    Http1::connect(address).await.get(path).await
}

/// Sends a request on a new connection.
pub(crate) async fn send(address: SocketAddr, request: http::Request<Body>) -> FullResponse {
    Http1::connect(address).await.send(request).await
}

/// A client that writes and reads raw bytes.
pub(crate) struct Raw(TcpStream);

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    /// Connects and writes `bytes`.
    pub(crate) async fn with(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Self {
        let mut raw = Self::connect(address).await;
        raw.write(bytes).await;
        raw
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads up to and including `end`.
    pub(crate) async fn read_until(&mut self, end: &str) -> String {
        let mut read = Vec::new();
        while !read.ends_with(end.as_bytes()) {
            read.push(self.0.read_u8().await.expect("the server closed early"));
        }
        String::from_utf8(read).unwrap()
    }

    pub(crate) async fn read_exact(&mut self, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        self.0.read_exact(&mut read).await.unwrap();
        read
    }

    /// Reads at least one byte, unless the connection is closed.
    pub(crate) async fn read_some(mut self) -> String {
        let mut buffer = vec![0; 4096];
        let bytes = self.0.read(&mut buffer).await.unwrap();
        String::from_utf8_lossy(&buffer[..bytes]).into_owned()
    }

    /// Reads until the server closes or resets the connection.
    pub(crate) async fn read_to_end(mut self) -> String {
        let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(bytes @ 1..) = self.0.read(&mut buffer).await {
            read.extend_from_slice(&buffer[..bytes]);
        }
        String::from_utf8(read).unwrap()
    }
}

pub(crate) const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

/// Counts responses by status.
pub(crate) fn count_statuses(responses: &[FullResponse]) -> HashMap<u16, usize> {
    responses.iter().fold(HashMap::new(), |mut counts, response| {
        *counts.entry(response.status.as_u16()).or_default() += 1;
        counts
    })
}
