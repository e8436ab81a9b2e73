//! How a server ends. Time is paused, unless a thread is blocked.

use std::{
    convert::Infallible,
    future::{self, IntoFuture},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, extract::Request, http::StatusCode, routing::get};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background,
    after_response::{Delivery, End},
    axum::{
        serve,
        serve::{IncomingStream, ServeShutdownReport},
    },
    pool::Inline,
};

use crate::support::{MemoryListener, app, in_memory, read_response, read_to_close, read_until, send_get, within};

const GRACE: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);

/// A server in memory that has not been asked to shut down yet.
struct Server<C> {
    connect: C,
    stop: oneshot::Sender<()>,
    task: JoinHandle<ServeShutdownReport>,
}

fn start(app: Router, grace: Duration, background: &Background) -> Server<impl Fn() -> DuplexStream> {
    let (listener, connect) = in_memory();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = serve(listener, app).shutdown(async { drop(stopped.await) }, grace, background);
    Server { connect, stop, task: tokio::spawn(server.into_future()) }
}

impl<C: Fn() -> DuplexStream> Server<C> {
    fn connect(&self) -> DuplexStream {
        (self.connect)()
    }

    /// Asks the server to shut down. Returns its report, and the milliseconds until the report.
    async fn shut_down(self) -> (ServeShutdownReport, u128) {
        drop(self.stop);
        let start = Instant::now();
        let report = within(self.task).await.unwrap();
        (report, start.elapsed().as_millis())
    }
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed_after_half_a_second() {
    let background = Background::default();
    let server = start(app(&background).0, GRACE, &background);
    let mut silent = server.connect();
    let mut idle = server.connect();
    send_get(&mut idle, "/full/5").await;
    read_response(&mut idle).await;
    let (mut client, connection) = h2::client::handshake(server.connect()).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::get("http://site/full/5").body(()).unwrap();
    drop(client.send_request(request, true).unwrap().0.await.unwrap());

    let (report, elapsed) = server.shut_down().await;
    assert_eq!(elapsed, 500);
    assert!(report.is_clean());
    assert_eq!(report.to_string(), "all connections ended");
    assert_eq!(read_to_close(&mut silent).await, b"");
    assert_eq!(read_to_close(&mut idle).await, b"");
    within(connection).await.unwrap().unwrap();
    assert!(background.is_closed());
}

/// Clients that have just connected, and that send one request after the other.
#[tokio::test(start_paused = true)]
async fn request_on_its_way_at_the_signal_gets_its_response() {
    let background = Background::default();
    let server = start(app(&background).0, GRACE, &background);
    let mut fresh = server.connect();
    let mut used = server.connect();
    send_get(&mut used, "/full/5").await;
    read_response(&mut used).await;
    let send = async {
        sleep(Duration::from_millis(400)).await;
        for io in [&mut fresh, &mut used] {
            send_get(io, "/full/5").await;
            let (head, body) = read_response(io).await;
            assert!(head.contains("connection: close") && body == 5, "{head}");
            assert_eq!(read_to_close(io).await, b"");
        }
    };
    let ((report, elapsed), ()) = tokio::join!(server.shut_down(), send);
    assert_eq!((report.is_clean(), elapsed), (true, 400));
}

#[tokio::test(start_paused = true)]
async fn what_remains_of_the_grace_period_counts_from_the_signal() {
    let background = Background::default();
    let server = start(app(&background).0, GRACE, &background);
    sleep(HOUR).await;
    let (report, _) = server.shut_down().await;
    assert_eq!(report.remaining(), GRACE);
    sleep(Duration::from_secs(4)).await;
    assert_eq!(report.remaining(), Duration::from_secs(6));
    sleep(GRACE).await;
    assert_eq!(report.remaining(), Duration::from_secs(1), "the next step can store what it has");
}

#[tokio::test(start_paused = true)]
async fn a_request_in_flight_gets_its_response() {
    let background = Background::default();
    let (app, mut outcomes) = app(&background);
    let server = start(app, GRACE, &background);
    let mut io = server.connect();
    send_get(&mut io, "/slow/5000").await;
    sleep(Duration::from_secs(1)).await;
    let (report, elapsed) = server.shut_down().await;
    assert_eq!((report.is_clean(), elapsed), (true, 4000));
    assert!(read_response(&mut io).await.0.starts_with("http/1.1 200 ok"));
    assert!(outcomes.next("/slow/5000").await.is_flushed());
}

#[tokio::test(start_paused = true)]
async fn a_stalled_client_and_a_long_task_end_with_the_grace_period() {
    let background = Background::new(Inline::new());
    let (app, mut outcomes) = app(&background);
    let server = start(app, Duration::from_secs(5), &background);
    let mut io = server.connect();
    send_get(&mut io, "/full/1000000").await;
    read_until(&mut io, "\r\n\r\n").await;
    let _task = background.task("mail").spawn(sleep(GRACE)).unwrap();
    sleep(Duration::from_secs(1)).await;

    let (report, elapsed) = server.shut_down().await;
    assert_eq!(elapsed, 5000);
    assert_eq!((report.open_connections, report.is_clean()), (1, false));
    assert_eq!(report.background.still_running.len(), 1);
    assert_eq!(report.background.still_running[0].name, "mail");
    let text = report.to_string();
    assert!(text.ends_with("1 still running (task 1 `mail` for 6.0s)"), "{text}");
    let outcome = outcomes.next("/full/1000000").await;
    assert_eq!((outcome.end, outcome.delivery), (End::Aborted, Delivery::NotDelivered));
    assert!(read_to_close(&mut io).await.len() <= 1024, "no more than the pipe holds");
}

#[tokio::test(start_paused = true)]
async fn stalled_http2_clients_end_with_the_grace_period() {
    let background = Background::default();
    let (app, mut outcomes) = app(&background);
    let server = start(app, GRACE, &background);
    let mut kept = Vec::new();
    for _ in 0..2 {
        let (mut client, connection) = h2::client::handshake(server.connect()).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::get("http://site/full/1000000").body(()).unwrap();
        // The window of the stream stays closed after 65,535 bytes.
        kept.push((client.send_request(request, true).unwrap().0.await.unwrap(), client));
    }
    let (report, elapsed) = server.shut_down().await;
    assert_eq!((report.open_connections, elapsed), (2, 9000), "no task needs the last second");
    assert!(report.to_string().starts_with("2 connections were closed before they ended"), "{report}");
    for _ in 0..2 {
        assert_eq!(outcomes.next("/full/1000000").await.end, End::Aborted);
    }
}

/// Returns an app whose requests register a task that runs for half a second, however they end.
fn app_with_tasks(background: &Background) -> Router {
    let register = async |after: AfterResponse| {
        let task = after.task("later").always().spawn(async { sleep(Duration::from_millis(500)).await });
        task.map_or(StatusCode::SERVICE_UNAVAILABLE, |_| StatusCode::OK)
    };
    let slow = async move |after: AfterResponse| {
        sleep(Duration::from_secs(5)).await;
        register(after).await
    };
    let big = async move |after: AfterResponse| (register(after).await, vec![b'x'; 1_000_000]);
    Router::new().route("/slow", get(slow)).route("/big", get(big)).layer(AfterResponseLayer::new(background.clone()))
}

#[tokio::test(start_paused = true)]
async fn a_request_in_flight_may_register_a_task() {
    let background = Background::new(Inline::new());
    let server = start(app_with_tasks(&background), GRACE, &background);
    let mut io = server.connect();
    send_get(&mut io, "/slow").await;
    sleep(Duration::from_secs(1)).await;
    let (report, elapsed) = server.shut_down().await;
    assert!(read_response(&mut io).await.0.starts_with("http/1.1 200 ok"));
    assert_eq!((report.is_clean(), report.background.completed, elapsed), (true, 1, 4500));
}

#[tokio::test(start_paused = true)]
async fn the_task_of_a_connection_closed_early_still_runs() {
    let background = Background::new(Inline::new());
    let server = start(app_with_tasks(&background), GRACE, &background);
    let mut io = server.connect();
    send_get(&mut io, "/big").await;
    read_until(&mut io, "\r\n\r\n").await;
    let (report, elapsed) = server.shut_down().await;
    assert_eq!((report.open_connections, report.background.completed, elapsed), (1, 1, 9500));
    assert!(report.background.is_clean(), "{report}");
}

#[tokio::test(start_paused = true)]
async fn no_grace_closes_what_is_open() {
    let background = Background::default();
    let server = start(app(&background).0, Duration::ZERO, &background);
    let mut io = server.connect();
    send_get(&mut io, "/wait").await;
    sleep(Duration::from_millis(1)).await;
    let (report, elapsed) = server.shut_down().await;
    assert_eq!((report.open_connections, elapsed), (1, 0));
    assert_eq!(read_to_close(&mut io).await, b"");
}

#[tokio::test(start_paused = true)]
async fn the_longest_grace_does_not_overflow() {
    let background = Background::default();
    let server = start(app(&background).0, Duration::MAX, &background);
    let mut io = server.connect();
    send_get(&mut io, "/slow/1000").await;
    sleep(Duration::from_millis(1)).await;
    let (report, elapsed) = server.shut_down().await;
    assert_eq!((report.is_clean(), elapsed), (true, 999));
}

#[tokio::test(start_paused = true)]
async fn connections_after_the_signal_are_refused() {
    let background = Background::default();
    let server = start(app(&background).0, GRACE, &background);
    let mut io = server.connect();
    send_get(&mut io, "/slow/5000").await;
    sleep(Duration::from_secs(1)).await;
    let Server { connect, stop, task } = server;
    drop(stop);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(read_to_close(&mut connect()).await, b"");
    assert!(within(task).await.unwrap().is_clean());
}

#[tokio::test(start_paused = true)]
async fn shutdown_works_without_a_background() {
    let (listener, connect) = in_memory();
    let server = serve(listener, app(&Background::default()).0).shutdown(sleep(GRACE), GRACE, None);
    let server = tokio::spawn(server.into_future());
    let mut io = connect();
    send_get(&mut io, "/wait").await;
    let report = within(server).await.unwrap();
    assert_eq!(report.open_connections, 1);
    assert!(report.background.is_clean());
}

/// A make-service that is never ready.
#[derive(Clone)]
struct NeverReady;

impl<'a> tower::Service<IncomingStream<'a, MemoryListener>> for NeverReady {
    type Response = Router;
    type Error = Infallible;
    type Future = future::Pending<Result<Router, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: IncomingStream<'a, MemoryListener>) -> Self::Future {
        future::pending()
    }
}

#[tokio::test(start_paused = true)]
async fn a_make_service_that_never_ends_does_not_delay_the_shutdown() {
    let (listener, connect) = in_memory();
    let server = tokio::spawn(serve(listener, NeverReady).shutdown(sleep(GRACE), GRACE, None).into_future());
    let mut io = connect();
    sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    assert!(within(server).await.unwrap().is_clean());
    assert_eq!(start.elapsed().as_secs(), 9);
    assert_eq!(read_to_close(&mut io).await, b"");
}

/// A service for each connection, which counts its own requests.
#[derive(Clone)]
struct Counting(u32);

impl tower::Service<Request> for Counting {
    type Response = axum::response::Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request) -> Self::Future {
        Box::pin(future::ready(Ok(axum::response::Response::new(format!("{}", self.0).into()))))
    }
}

#[tokio::test]
async fn a_make_service_makes_one_service_for_each_connection() {
    let (listener, connect) = in_memory();
    let mut made = 0;
    let make = tower::service_fn(move |_: IncomingStream<'_, MemoryListener>| {
        made += 1;
        future::ready(Ok::<_, Infallible>(Counting(made)))
    });
    tokio::spawn(serve(listener, make).into_future());
    for number in 1..=3 {
        let response = crate::support::ask(&mut connect(), "/").await;
        assert!(response.ends_with(&format!("\r\n\r\n{number}")), "{response}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_graceful_shutdown_waits_without_a_limit() {
    let (listener, connect) = in_memory();
    let (app, mut outcomes) = app(&Background::default());
    let server = serve(listener, app).with_graceful_shutdown(sleep(GRACE));
    let mut server = tokio::spawn(server.into_future());
    let mut io = connect();
    send_get(&mut io, "/full/1000000").await;
    read_until(&mut io, "\r\n\r\n").await;
    assert!(timeout(HOUR, &mut server).await.is_err());
    let outcome = outcomes.next("/full/1000000").await;
    assert_eq!((outcome.end, outcome.delivery), (End::Complete, Delivery::HandedOver), "its hooks do not wait");
    io.read_exact(&mut vec![0; 1_000_000]).await.unwrap();
    within(server).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn connections_outlive_a_dropped_server() {
    let (listener, connect) = in_memory();
    let server = tokio::spawn(serve(listener, app(&Background::default()).0).into_future());
    let mut io = connect();
    send_get(&mut io, "/full/5").await;
    read_response(&mut io).await;
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    send_get(&mut io, "/full/6").await;
    assert_eq!(read_response(&mut io).await.1, 6);
    assert_eq!(read_to_close(&mut connect()).await, b"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_handler_that_blocks_its_thread_does_not_delay_a_shutdown() {
    let (listener, connect) = in_memory();
    let (entered, mut has_entered) = tokio::sync::mpsc::unbounded_channel();
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Arc::new(std::sync::Mutex::new(released));
    let block = async move || {
        entered.send(()).unwrap();
        let _ = released.lock().unwrap().recv();
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let server = serve(listener, Router::new().route("/", get(block)));
    let grace = Duration::from_millis(200);
    let server = server.shutdown(async { drop(stopped.await) }, grace, &Background::default());
    let server = tokio::spawn(server.into_future());
    let mut io = connect();
    io.write_all(b"GET / HTTP/1.1\r\nhost: site\r\n\r\n").await.unwrap();
    within(has_entered.recv()).await.unwrap();
    drop(stop);
    // Ends while the thread is still blocked.
    assert_eq!(within(server).await.unwrap().open_connections, 1);
    drop(release);
}

/// hyper runs each request of HTTP/2 in a task of its own, which may end after its connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_request_that_outlives_its_http2_connection_is_waited_for() {
    let background = Background::default();
    let (listener, connect) = in_memory();
    let (entered, mut has_entered) = tokio::sync::mpsc::unbounded_channel();
    let hook_ran = Arc::new(AtomicBool::new(false));
    let block = {
        let hook_ran = hook_ran.clone();
        async move |after: AfterResponse| {
            after.hook(move |_| hook_ran.store(true, SeqCst));
            entered.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(300)); // a computation on the event loop, in real time
        }
    };
    let app = Router::new().route("/", get(block)).layer(AfterResponseLayer::new(background.clone()));
    let (stop, stopped) = oneshot::channel::<()>();
    let server = serve(listener, app).shutdown(async { drop(stopped.await) }, GRACE, &background);
    let server = tokio::spawn(server.into_future());

    let (mut client, connection) = h2::client::handshake(connect()).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::get("http://site/").body(()).unwrap();
    let _response = client.send_request(request, true).unwrap().0;
    within(has_entered.recv()).await.unwrap();
    connection.abort(); // the client leaves
    drop(stop);
    let report = within(server).await.unwrap();
    assert!(report.is_clean(), "{report}");
    assert!(hook_ran.load(SeqCst), "the hook ran before the report");
}
