//! Every public duration, size and name, with ordinary and extreme values. Each value either works
//! or is refused with a message that names it: an error, or a panic of the setter or of `build`.
//!
//! A new setter is one row of [`durations`], [`sizes`] or [`names`]. A test looks for public
//! functions without a row.
#![allow(clippy::unwrap_used)]

use std::{convert::Infallible, fmt::Debug, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use futures_util::future::BoxFuture;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, ServiceExt, service_fn};
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background, OffloadLayer, ThreadPool,
    after_response::ResponseTaskBuilder,
    axum::{serve, serve::Serve},
    background::TaskBuilder,
    blocking_detector::BlockingDetectorLayer,
    offload::RejectWithError,
    pool::{
        Admission, CallOptions, CpuBudget, Deadline, Inline, Pool, Rayon, Runnable, ThreadPoolBuilder, TokioBlocking,
        TokioBlockingBuilder,
    },
    process::{self, KilledBy, ProcessPool, ProcessPoolBuilder, RunError, Work},
};
use tower_offload_tests::PATIENCE;

const DURATIONS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_nanos(1),
    Duration::from_millis(50),
    Duration::from_secs(86_400 * 365 * 100),
    Duration::from_secs(u64::MAX),
    Duration::MAX,
];
const SIZES: [usize; 7] = [0, 1, 2, 40_000, u32::MAX as usize + 1, usize::MAX >> 3, usize::MAX];
const NAMES: [&str; 7] = ["", "a", "a b", "\0", "näme \u{1F980}", "a\n\"{}'; DROP TABLE names; --", LONG_NAME];
/// The text of this file.
const LONG_NAME: &str = include_str!("setters.rs");

/// A setter, with a use of what it configures. Panics if the use does not work.
struct Setter<T> {
    name: &'static str,
    configure_and_use: Box<dyn Fn(T) -> BoxFuture<'static, ()>>,
    /// Returns a part of the message with which a value is refused.
    refusal: fn(T) -> Option<&'static str>,
}

fn setter<T, F>(
    name: &'static str,
    refusal: fn(T) -> Option<&'static str>,
    work: impl Fn(T) -> F + 'static,
) -> Setter<T>
where
    F: Future<Output = ()> + Send + 'static,
{
    Setter { name, configure_and_use: Box::new(move |value| Box::pin(work(value))), refusal }
}

/// Accepts every value.
fn any<T>(_: T) -> Option<&'static str> {
    None
}

/// Calls `check` with each value, and returns the deviations.
async fn deviations<T: Copy + Debug + 'static>(setters: Vec<Setter<T>>, values: &[T]) -> Vec<String> {
    let mut deviations = Vec::new();
    for Setter { name, configure_and_use, refusal } in setters {
        for value in values {
            // The work may block a thread of its own, so it gets one.
            let used = tokio::spawn(configure_and_use(*value));
            let ended = tokio::time::timeout(PATIENCE, used).await;
            let found = match ended {
                Ok(Ok(())) => None,
                Ok(Err(panic)) => Some(message(panic.into_panic())),
                Err(_) => Some("hangs".to_owned()),
            };
            let matches = match (refusal(*value), &found) {
                (None, None) => true,
                (Some(expected), Some(found)) => found.contains(expected),
                _ => false,
            };
            if !matches {
                let value = format!("{value:?}").chars().take(40).collect::<String>();
                deviations.push(format!("{name}({value}): {found:?}, expected {:?}", refusal(values[0])));
            }
        }
    }
    deviations
}

fn message(panic: Box<dyn std::any::Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => panic.downcast_ref::<&str>().map_or_else(|| "no message".to_owned(), |it| (*it).to_owned()),
    }
}

/// Uses a pool and shuts it down.
async fn use_pool(pool: impl Pool + Clone) {
    assert_eq!(pool.run(|| 1).await, Ok(1));
    let _ = format!("{pool:?} {:?}", pool.admission().stats());
    assert!(pool.shutdown(Duration::from_secs(10)).await.is_empty());
}

/// Asserts that a call with this timeout has expired or not.
fn assert_timed(timeout: Duration, ended: Result<(), impl Debug>) {
    match timeout {
        timeout if timeout <= Duration::from_nanos(1) => assert!(ended.is_err(), "{ended:?}"),
        // A busy machine may need longer.
        timeout if timeout < Duration::from_secs(10) => {}
        _ => assert!(ended.is_ok(), "{ended:?}"),
    }
}

async fn use_builder(builder: ThreadPoolBuilder) {
    use_pool(builder.build().unwrap_or_else(|error| panic!("{error}"))).await;
}

async fn use_tokio_builder(configure: impl FnOnce(TokioBlockingBuilder) -> TokioBlockingBuilder) {
    use_pool(configure(TokioBlocking::builder(1)).build()).await;
}

fn rayon() -> Arc<rayon::ThreadPool> {
    Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap())
}

/// Makes a call that does not have to wait, and one that the layer may let wait.
async fn use_layer(configure: impl FnOnce(OffloadLayer) -> OffloadLayer) {
    let layer = configure(OffloadLayer::new(ThreadPool::blocking(4))).reject(RejectWithError);
    let service = layer.layer(service_fn(async |n: u32| {
        tokio::time::sleep(Duration::from_millis(1)).await; // Parks the call.
        Ok::<_, Infallible>(n)
    }));
    assert_eq!(service.clone().oneshot(1).await.unwrap(), 1);
    let both = tokio::join!(service.clone().oneshot(2), service.oneshot(3));
    assert!(both.0.is_ok() || both.1.is_ok());
}

/// Runs a task, which may time out, and one for which the background may have no room.
async fn use_background(background: Background, configure: impl for<'a> Fn(&'a Background) -> TaskBuilder<'a>) {
    configure(&background).spawn_blocking(|| ()).unwrap();
    let _ = configure(&background).spawn(async {});
    end(&background, 2).await;
}

async fn use_after_response(
    configure: impl for<'a> Fn(&'a AfterResponse) -> ResponseTaskBuilder<'a> + Clone + Send + Sync + 'static,
) {
    let background = Background::default();
    let handler = async move |after: AfterResponse| {
        configure(&after).spawn_blocking(|| ()).unwrap();
        configure(&after).spawn(async {}).unwrap();
    };
    let app = Router::new().route("/", get(handler)).layer(AfterResponseLayer::new(background.clone()));
    let response = app.oneshot(http::Request::new(axum::body::Body::empty())).await.unwrap();
    axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
    end(&background, 2).await;
}

/// Shuts a background down that was given a number of tasks.
async fn end(background: &Background, tasks: u64) {
    assert!(background.shutdown(Duration::from_secs(10)).await.is_clean());
    let stats = background.stats();
    assert_eq!(stats.completed + stats.failed + stats.cancelled + stats.rejected, tasks, "{stats:?}");
}

type App = Serve<TcpListener, axum::routing::IntoMakeService<Router>, Router>;

/// Serves one request on HTTP/1 and one on HTTP/2. A timeout may end each of them early.
async fn use_server(configure: impl FnOnce(App) -> App, grace: Duration) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route("/", get(async || "hello")).into_make_service();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = configure(serve(listener, app)).shutdown(async move { _ = stopped.await }, grace, None);
    let server = tokio::spawn(server.into_future());
    tokio::time::timeout(PATIENCE / 2, async { tokio::join!(http1(address), http2(address)) })
        .await
        .expect("each connection is answered or closed");
    drop(stop);
    server.await.unwrap();
}

async fn http1(address: SocketAddr) {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut client, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let _ = client.send_request(http::Request::new(String::new())).await;
}

async fn http2(address: SocketAddr) {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let Ok((mut client, connection)) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await else {
        return;
    };
    let connection = tokio::spawn(connection);
    let request = http::Request::get(format!("http://{address}/")).body(String::new()).unwrap();
    // With no streams allowed, the client waits for permission to send.
    let _ = tokio::time::timeout(Duration::from_millis(200), client.send_request(request)).await;
    connection.abort();
}

async fn use_detector<N>(layer: BlockingDetectorLayer<N>)
where
    N: tower_offload::blocking_detector::Naming<()>,
{
    let service = layer.layer(service_fn(async |()| {
        std::thread::sleep(Duration::from_millis(1)); // Blocks, for low thresholds.
        Ok::<_, Infallible>(())
    }));
    service.oneshot(()).await.unwrap();
}

/// A pool with an admission control of its own.
#[derive(Debug, Clone)]
struct Custom(Arc<Admission>);

impl Pool for Custom {
    fn admission(&self) -> &Admission {
        &self.0
    }

    fn schedule(&self, runnable: Runnable) {
        tokio::spawn(async { runnable.run() });
    }
}

/// The `main` of the processes of [`processes`]. In an ordinary test run it returns at once.
#[test]
fn process_worker() {
    process::init::<Echo>();
}

/// Work that returns this number, or waits until it is cancelled.
#[derive(Serialize, Deserialize)]
enum Echo {
    Now(u8),
    OnceCancelled(u8),
}

impl Work for Echo {
    const KIND: &'static str = "echo";
    type Output = u8;
    type Error = ();

    fn run(self, context: &process::Context) -> Result<u8, ()> {
        match self {
            Self::Now(number) => Ok(number),
            Self::OnceCancelled(number) => {
                while !context.is_cancelled() {
                    std::thread::sleep(Duration::from_millis(1)); // the work gets no notification
                }
                Ok(number)
            }
        }
    }
}

fn processes() -> ProcessPoolBuilder {
    ProcessPool::builder().processes(1).arguments(["process_worker", "--exact", "--nocapture"])
}

/// Runs two jobs, one after the other, and shuts the pool down.
async fn use_processes(builder: ProcessPoolBuilder) {
    let pool = builder.build().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(pool.run(Echo::Now(1)).await, Ok(1));
    assert_eq!(pool.run(Echo::Now(2)).await, Ok(2));
    assert!(pool.shutdown(Duration::from_secs(10)).await.is_empty());
}

/// Runs a job that ends once it is asked to, or is killed.
async fn use_timeout(builder: ProcessPoolBuilder, timeout: Duration) {
    let pool = builder.build().unwrap_or_else(|error| panic!("{error}"));
    let ended = pool.run(Echo::OnceCancelled(1)).timeout(timeout).await;
    assert!(matches!(ended, Ok(1) | Err(RunError::Killed { by: KilledBy::Timeout })), "{ended:?}");
    assert!(pool.shutdown(Duration::from_secs(10)).await.is_empty());
}

fn zero(value: usize) -> Option<&'static str> {
    (value == 0).then_some("at least 1")
}

fn durations() -> Vec<Setter<Duration>> {
    vec![
        setter("ThreadPoolBuilder::keep_alive", any, |value| {
            use_builder(ThreadPool::builder().min_threads(0).max_threads(2).keep_alive(value))
        }),
        setter("Pool::shutdown", any, async |value| {
            let pool = ThreadPool::cpu();
            pool.run(|| ()).await.unwrap();
            assert!(pool.shutdown(value).await.is_empty());
        }),
        setter("Admission::shutdown", any, async |value| {
            assert!(Admission::new("custom", 1).shutdown(value).await.is_empty());
        }),
        setter("OffloadLayer::wait", any, async |value| use_layer(|layer| layer.max_in_flight(1).wait(value)).await),
        setter("OffloadLayer::timeout", any, async |value| {
            let layer = OffloadLayer::new(ThreadPool::cpu()).reject(RejectWithError);
            let layer = layer.timeout_request(move |(): &()| Some(value));
            assert_timed(value, layer.layer(service_fn(async |()| Ok::<_, Infallible>(()))).oneshot(()).await);
        }),
        setter("OffloadLayer::timeout, waiting", any, async |value| {
            let layer = OffloadLayer::new(ThreadPool::cpu()).reject(RejectWithError).max_in_flight(1);
            let layer = layer.wait(Duration::from_secs(10)).timeout_request(move |(): &()| Some(value));
            let service = layer.layer(service_fn(async |()| {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Ok::<_, Infallible>(())
            }));
            let (first, second) = tokio::join!(service.clone().oneshot(()), service.oneshot(()));
            assert_timed(value, first);
            assert_timed(value, second);
        }),
        setter("CallOptions::timeout", any, async |value| {
            assert_timed(value, ThreadPool::cpu().run_with(CallOptions::new().timeout(value), || ()).await);
        }),
        setter("Deadline::after", any, async |value| {
            let deadline = Deadline::after(value);
            assert!(deadline.remaining().is_none_or(|left| left <= value));
            let pool = ThreadPool::cpu();
            assert_timed(value, deadline.scope(async { pool.run(|| ()).await }).await);
            assert_timed(value, deadline.sync_scope(|| pool.run(|| ())).await);
        }),
        setter("TaskBuilder::timeout", any, async |value| {
            use_background(Background::default(), move |it| it.task("timed").timeout(value)).await;
        }),
        setter("Reservation::timeout", any, async |value| {
            let background = Background::default();
            background.reserve("timed").unwrap().timeout(value).spawn(async {});
            end(&background, 1).await;
        }),
        setter("Reservation::default_timeout", any, async |value| {
            let background = Background::default();
            background.reserve("timed").unwrap().default_timeout(value).spawn_blocking(|| ());
            end(&background, 1).await;
        }),
        setter("BackgroundBuilder::blocking_threshold", any, async |value| {
            let background = Background::builder().blocking_threshold(value).build();
            use_background(background, |it| it.task("task").on_runtime()).await;
        }),
        setter("Background::shutdown", any, async |value| {
            let background = Background::default();
            assert!(background.shutdown(value).await.is_clean());
        }),
        setter("ResponseTaskBuilder::timeout", any, async |value| {
            use_after_response(move |after| after.task("timed").timeout(value)).await;
        }),
        setter("Serve::header_read_timeout", any, async |value| {
            use_server(|server| server.header_read_timeout(value), Duration::ZERO).await;
        }),
        setter("Serve::http2_keep_alive_interval", any, async |value| {
            use_server(|server| server.http2_keep_alive_interval(value), Duration::ZERO).await;
        }),
        setter("Serve::http2_keep_alive_timeout", any, async |value| {
            use_server(|server| server.http2_keep_alive_timeout(value), Duration::ZERO).await;
        }),
        setter("Serve::shutdown", any, async |value| use_server(|server| server, value).await),
        setter("BlockingDetectorLayer::threshold", any, async |value| {
            use_detector(BlockingDetectorLayer::new().threshold(value).named("named")).await;
        }),
        setter(
            "ProcessPoolBuilder::max_age",
            |age| age.is_zero().then_some("`max_age` must not be zero"),
            |value| use_processes(processes().max_age(value)),
        ),
        setter("ProcessPoolBuilder::grace", any, |value| {
            use_timeout(processes().grace(value), Duration::from_millis(1))
        }),
        setter(
            "ProcessPoolBuilder::start_timeout",
            |timeout| match timeout {
                Duration::ZERO => Some("must not be zero"),
                _ => (timeout <= Duration::from_nanos(1)).then_some("not ready in time"),
            },
            async |value| {
                let builder = processes().start_timeout(value);
                // A busy machine may need longer than the shortest one that works.
                if value == Duration::from_millis(50) {
                    let error = builder.build().err().map(|error| error.to_string());
                    assert!(error.as_ref().is_none_or(|error| error.contains("not ready in time")), "{error:?}");
                } else {
                    use_processes(builder).await;
                }
            },
        ),
        setter("process::Run::timeout", any, async |value| {
            if value < Duration::from_secs(10) {
                use_timeout(processes(), value).await;
            } else {
                let pool = processes().build().unwrap();
                assert_eq!(pool.run(Echo::Now(1)).timeout(value).await, Ok(1));
            }
        }),
        setter("ProcessPool::shutdown", any, async |value| {
            let pool = processes().build().unwrap();
            assert_eq!(pool.run(Echo::Now(1)).await, Ok(1));
            assert!(pool.shutdown(value).await.is_empty());
        }),
    ]
}

fn sizes() -> Vec<Setter<usize>> {
    fn threads(value: usize) -> Option<&'static str> {
        match value {
            0 => Some("at least 1"),
            value if value > 32_767 => Some("limit of 32767"),
            _ => None,
        }
    }
    vec![
        setter("ThreadPoolBuilder::threads", threads, |value| use_builder(ThreadPool::builder().threads(value))),
        setter(
            "ThreadPoolBuilder::min_threads",
            |value| threads(value).filter(|_| value > 0),
            |value| use_builder(ThreadPool::builder().min_threads(value)),
        ),
        setter("ThreadPoolBuilder::max_threads", threads, |value| {
            use_builder(ThreadPool::builder().max_threads(value))
        }),
        setter("ThreadPool::blocking", threads, async |value| use_pool(ThreadPool::blocking(value)).await),
        setter(
            "CpuBudget::of",
            // 0 cores are 1.
            |value| threads(value).filter(|_| value > 0),
            |value| use_builder(CpuBudget::of(value).pool()),
        ),
        setter("ThreadPoolBuilder::queue_capacity", zero, |value| {
            use_builder(ThreadPool::builder().queue_capacity(value))
        }),
        setter(
            "ThreadPoolBuilder::stack_size",
            |value| (value >= usize::MAX >> 3).then_some("did not start a thread"),
            |value| {
                // Less than a thread needs is rounded up, and 4 GiB of address space are available.
                use_builder(ThreadPool::builder().threads(1).stack_size(value))
            },
        ),
        setter("TokioBlocking::new", zero, async |value| use_pool(TokioBlocking::new(value)).await),
        setter("TokioBlockingBuilder::queue_capacity", zero, async |value| {
            use_tokio_builder(|builder| builder.queue_capacity(value)).await;
        }),
        setter("RayonBuilder::queue_capacity", zero, async |value| {
            use_pool(Rayon::builder(rayon()).queue_capacity(value).build()).await;
        }),
        setter("Admission::new", zero, async |value| {
            use_pool(Custom(Arc::new(Admission::new("custom", value)))).await;
        }),
        setter("OffloadLayer::max_in_flight", zero, async |value| use_layer(|layer| layer.max_in_flight(value)).await),
        setter("OffloadLayer::max_in_flight, reserved", zero, async |value| {
            use_layer(|layer| layer.max_in_flight(value).backpressure()).await;
        }),
        setter("OffloadLayer::max_in_flight_per_key", zero, async |value| {
            use_layer(|layer| layer.max_in_flight_per_key(value)).await;
            let layer = OffloadLayer::new(ThreadPool::blocking(4)).reject(RejectWithError);
            let layer = layer.max_in_flight_per_key(value).fair_by_request(|n: &u32| *n);
            let service = layer.layer(service_fn(async |n: u32| Ok::<_, Infallible>(n)));
            assert_eq!(service.oneshot(1).await.unwrap(), 1);
        }),
        setter("OffloadLayer::max_waiting", any, async |value| {
            use_layer(|layer| layer.max_in_flight(1).wait(Duration::from_secs(10)).max_waiting(value)).await;
        }),
        setter("BackgroundBuilder::max_tasks", zero, async |value| {
            use_background(Background::builder().max_tasks(value).build(), |it| it.task("task")).await;
        }),
        setter("BackgroundBuilder::max_awaiting_response", zero, async |value| {
            use_background(Background::builder().max_awaiting_response(value).build(), |it| it.task("task")).await;
        }),
        setter("BackgroundBuilder::max_running", zero, async |value| {
            use_background(Background::builder().max_running(value).build(), |it| it.task("task")).await;
        }),
        setter("ResponseTaskBuilder::concurrent", zero, async |value| {
            use_after_response(move |after| after.task("task").concurrent(value)).await;
        }),
        setter("Serve::http2_max_concurrent_streams", any, async |value| {
            let value = u32::try_from(value).unwrap_or(u32::MAX);
            use_server(|server| server.http2_max_concurrent_streams(value), Duration::ZERO).await;
        }),
        setter(
            "ProcessPoolBuilder::processes",
            |value| match value {
                0 => Some("at least 1"),
                value if value > 2 => Some("must not exceed 10000"),
                _ => None,
            },
            |value| use_processes(processes().processes(value)),
        ),
        setter(
            "ProcessPoolBuilder::spares",
            |value| (value > 2).then_some("must not exceed 10000"),
            |value| use_processes(processes().spares(value)),
        ),
        setter("ProcessPoolBuilder::queue_capacity", zero, |value| use_processes(processes().queue_capacity(value))),
        setter("ProcessPoolBuilder::max_jobs", zero, |value| use_processes(processes().max_jobs(value as u64))),
        setter(
            "ProcessPoolBuilder::max_memory",
            |value| match value {
                0 => Some("at least 1"),
                _ if !cfg!(target_os = "linux") => Some("requires Linux"),
                // A process needs more.
                1..=40_000 => Some("at least what a process without a job has"),
                _ => None,
            },
            |value| use_processes(processes().max_memory(value as u64)),
        ),
        setter(
            "ProcessPoolBuilder::max_frame_size",
            |value| (value != 40_000).then_some("from 1 KiB to 1 GiB"),
            |value| use_processes(processes().max_frame_size(value)),
        ),
    ]
}

fn names() -> Vec<Setter<&'static str>> {
    vec![
        setter(
            "ThreadPoolBuilder::name",
            |name| name.contains('\0').then_some("must not contain a NUL byte"),
            |value| use_builder(ThreadPool::builder().name(value)),
        ),
        setter(
            "ProcessPoolBuilder::name",
            |name| name.contains('\0').then_some("must not contain a NUL byte"),
            |value| use_processes(processes().name(value)),
        ),
        setter("TokioBlockingBuilder::name", any, async |value| {
            use_tokio_builder(|builder| builder.name(value)).await;
        }),
        setter("RayonBuilder::name", any, async |value| use_pool(Rayon::builder(rayon()).name(value).build()).await),
        setter("Admission::new", any, async |value| use_pool(Custom(Arc::new(Admission::new(value, 1)))).await),
        setter("Background::task", any, async |value| {
            use_background(Background::default(), move |it| it.task(value)).await;
        }),
        setter("Background::reserve and cancel", any, async |value| {
            let background = Background::default();
            let reserved = background.reserve(value).unwrap();
            let cancelled = background.cancel(value);
            reserved.spawn(async {});
            end(&background, 1).await;
            // The empty name is that of tasks without one.
            let expected = usize::from(!value.is_empty());
            assert_eq!((cancelled, background.stats().cancelled), (expected, expected as u64));
        }),
        setter("AfterResponse::task", any, async |value| {
            use_after_response(move |after| {
                assert_eq!(after.cancel("another name"), 0);
                after.task(value)
            })
            .await;
        }),
        setter("BlockingDetectorLayer::named", any, async |value| {
            use_detector(BlockingDetectorLayer::new().threshold(Duration::ZERO).named(value)).await;
        }),
        setter("BlockingDetectorLayer::route_request", any, async |value| {
            use_detector(BlockingDetectorLayer::new().threshold(Duration::ZERO).route_request(move |(): &()| value))
                .await;
        }),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_duration_works_or_is_refused_with_a_message() {
    assert_eq!(deviations(durations(), &DURATIONS).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_size_works_or_is_refused_with_a_message() {
    assert_eq!(deviations(sizes(), &SIZES).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_name_works_or_is_refused_with_a_message() {
    assert_eq!(deviations(names(), &NAMES).await, [""; 0]);
}

#[tokio::test]
async fn niceness_out_of_range_is_refused_with_a_message() {
    for niceness in [i32::MIN, -21, 20, i32::MAX] {
        let error = ThreadPool::builder().niceness(niceness).build().unwrap_err();
        assert!(error.is_configuration() && error.to_string().contains("use -20 to 19"), "{error}");
    }
    use_builder(ThreadPool::builder().niceness(19)).await;
    use_pool(Inline::new()).await;
}

/// Searches the sources for public functions with a parameter of one of the types above.
#[test]
fn every_public_setter_has_a_row() {
    const TYPES: [&str; 9] = [
        ": Duration",
        ": usize",
        ": u32",
        ": i32",
        "impl Into<String>",
        "impl Into<Arc<str>>",
        "impl Into<Cow<",
        "impl Into<Option<Duration>>",
        ": &str",
    ];
    let rows: Vec<_> = durations()
        .iter()
        .map(|it| it.name)
        .chain(sizes().iter().map(|it| it.name))
        .chain(names().iter().map(|it| it.name))
        .collect();
    // Tested below, by the rows of `TokioBlocking::new`, or with real processes in `tests/process`.
    let others =
        ["niceness", "builder", "try_new", "progress", "workers", "drain_timeout", "kill_timeout", "take_listener"];
    let has_row = |function: &str| {
        others.contains(&function)
            || rows.iter().any(|row| row.split([' ', ',']).any(|word| word.rsplit("::").next() == Some(function)))
    };
    let mut missing = Vec::new();
    let mut directories = vec![std::path::PathBuf::from("../src")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            for line in std::fs::read_to_string(&path).unwrap().lines() {
                let line = line.trim_start();
                let signature =
                    ["pub fn ", "pub const fn ", "pub async fn "].iter().find_map(|start| line.strip_prefix(start));
                let Some(signature) = signature else { continue };
                let parameters = signature.split(" -> ").next().unwrap_or_default();
                let function = signature.split(['(', '<']).next().unwrap_or_default();
                if TYPES.iter().any(|kind| parameters.contains(kind)) && !has_row(function) && !function.is_empty() {
                    missing.push(format!("{}: {function}", path.display()));
                }
            }
        }
    }
    assert_eq!(missing, [""; 0]);
}
