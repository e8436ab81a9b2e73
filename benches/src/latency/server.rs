//! The servers: the variants, the child's side and the parent's side.

use std::{
    convert::Infallible,
    future::ready,
    hint::black_box,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::{Child, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use axum::{Router, error_handling::HandleErrorLayer, http::StatusCode, routing::get, serve::ListenerExt};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpSocket, runtime};
use tower::ServiceBuilder;
use tower_offload::{
    OffloadLayer, ThreadPool,
    offload::ProblemJson,
    pool::{Pool, QueuePolicy, Rayon, TokioBlocking},
};
use tower_resilience_executor::{BlockingExecutor, ExecutorError, ExecutorLayer};

use crate::{
    BoxError, child,
    platform::{self, CpuQuota},
};

/// The length of the queue of connections. With 128, a usual default, a burst of new connections
/// loses SYNs, and the client waits 1 to 4 s to send them again.
const BACKLOG: u32 = 4096;

/// Maximum time for a server to exit by itself.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// How the processor time of a server is limited.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Limit {
    /// To the time of this many cores in each period, on any core. Pinned if that is not permitted.
    Quota(f64),
    /// To one core.
    Pinned,
}

/// One way to run a job.
#[derive(Debug)]
pub(super) struct Variant {
    pub(super) name: &'static str,
    /// If `true`, tokio's blocking pool has one thread per core instead of up to 512.
    is_capped: bool,
    /// Number of workers of the runtime. `None`: one per core.
    workers: Option<usize>,
    /// The processor time of a server whose time is limited.
    limit: Limit,
    /// The colour in pictures. The first ones are from a palette for colour-blind readers (Okabe
    /// and Ito).
    pub(super) colour: [u8; 3],
    /// Builds the route `/job`. Must be called within the runtime of the server.
    job: fn(Work) -> Router,
}

/// Returns a server of which runtime and pool have these sizes, for the scene with one core.
const fn sized(name: &'static str, workers: usize, colour: [u8; 3], job: fn(Work) -> Router) -> Variant {
    Variant { workers: Some(workers), ..variant(name, colour, job) }
}

/// Returns a server with one worker and one thread, whose time is limited in another way.
const fn limited(name: &'static str, limit: Limit, colour: [u8; 3], job: fn(Work) -> Router) -> Variant {
    Variant { limit, ..sized(name, 1, colour, job) }
}

const fn variant(name: &'static str, colour: [u8; 3], job: fn(Work) -> Router) -> Variant {
    Variant { name, is_capped: false, workers: None, limit: Limit::Quota(1.0), colour, job }
}

pub(super) const VARIANTS: &[Variant] = &[
    variant("inline", [0, 0, 0], inline),
    variant("spawn_blocking", [213, 94, 0], spawn_blocking),
    Variant { is_capped: true, ..variant("spawn_blocking/capped", [230, 159, 0], spawn_blocking) },
    variant("tower-resilience", [204, 121, 167], tower_resilience),
    variant("offload/threads", [0, 114, 178], |work| offload(work, fifo(ThreadPool::builder()))),
    variant("offload/rayon", [0, 158, 115], |work| {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(platform::parallelism()).build();
        let rayon = Rayon::builder(threads.expect("a new server can start threads"));
        offload(work, rayon.queue_policy(QueuePolicy::Fifo).build())
    }),
    variant("offload/tokio", [86, 180, 233], |work| {
        offload(work, TokioBlocking::builder(platform::parallelism()).queue_policy(QueuePolicy::Fifo).build())
    }),
    // Its queue has room for the calls of 80 ms on two cores.
    variant("offload/bounded", [140, 86, 20], |work| offload(work, fifo(ThreadPool::builder().queue_capacity(32)))),
    variant("offload/bursts", [213, 160, 20], |work| offload(work, ThreadPool::cpu())),
    variant("offload/adaptive", [90, 90, 200], |work| {
        inline(work).layer(OffloadLayer::new(fifo(ThreadPool::builder())).reject(ProblemJson).adaptive())
    }),
    variant("offload/nice", [0, 90, 60], |work| offload(work, fifo(ThreadPool::builder().niceness(10)))),
    variant("offload/blocking", [120, 120, 120], |work| {
        offload(work, fifo(ThreadPool::builder().min_threads(0).max_threads(64)))
    }),
    sized("1 worker + 1 thread", 1, [0, 0, 0], |work| offload(work, threads(1))),
    sized("1 worker + 1 thread, nice", 1, [90, 90, 90], |work| offload(work, nice_threads(1))),
    sized("1 worker + 2 threads", 1, [0, 114, 178], |work| offload(work, threads(2))),
    sized("1 worker + 2 threads, nice", 1, [86, 180, 233], |work| offload(work, nice_threads(2))),
    sized("2 workers + 1 thread", 2, [204, 121, 167], |work| offload(work, threads(1))),
    sized("2 workers + 2 threads", 2, [213, 94, 0], |work| offload(work, threads(2))),
    sized("2 workers + 2 threads, nice", 2, [230, 159, 0], |work| offload(work, nice_threads(2))),
    limited("1 worker + 1 thread, time of 1.5 cores", Limit::Quota(1.5), [204, 121, 167], |work| {
        offload(work, threads(1))
    }),
    limited("1 worker + 1 thread, one core", Limit::Pinned, [0, 158, 115], |work| offload(work, threads(1))),
    limited("1 worker + 1 thread, nice, one core", Limit::Pinned, [0, 90, 60], |work| offload(work, nice_threads(1))),
];

/// Runs the job in the `async fn`, which is the mistake that the other variants avoid.
fn inline(work: Work) -> Router {
    Router::new().route(
        "/job",
        get(move || async move {
            work.run();
            "done"
        }),
    )
}

/// Runs the job with a hand-written `spawn_blocking`.
fn spawn_blocking(work: Work) -> Router {
    Router::new().route(
        "/job",
        get(move || async move {
            let ended = tokio::task::spawn_blocking(move || work.run()).await;
            ended.map(|()| "done").map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
        }),
    )
}

/// Runs the job in `BlockingExecutor`, which the documentation of the crate recommends for
/// computation and blocking calls. It drives the future of the handler on a thread of
/// `spawn_blocking`. Its error is not `Infallible`, which axum requires.
fn tower_resilience(work: Work) -> Router {
    let on_error = HandleErrorLayer::new(|_: ExecutorError<Infallible>| async { StatusCode::INTERNAL_SERVER_ERROR });
    let executor = ExecutorLayer::new(BlockingExecutor::current());
    inline(work).layer(ServiceBuilder::new().layer(on_error).layer(executor))
}

/// Rejects with `ProblemJson`, so that a rejection has a body like those of other services.
fn offload(work: Work, pool: impl Pool) -> Router {
    inline(work).layer(OffloadLayer::new(pool).reject(ProblemJson))
}

fn built(builder: tower_offload::pool::ThreadPoolBuilder) -> ThreadPool {
    builder.build().expect("a new server can start threads")
}

/// Builds a pool that rejects calls only if its queue is full.
fn fifo(builder: tower_offload::pool::ThreadPoolBuilder) -> ThreadPool {
    built(builder.queue_policy(QueuePolicy::Fifo))
}

fn threads(count: usize) -> ThreadPool {
    fifo(ThreadPool::builder().threads(count))
}

fn nice_threads(count: usize) -> ThreadPool {
    fifo(ThreadPool::builder().threads(count).niceness(10))
}

/// The work of a job on its thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Computes for a fixed number of iterations instead of a fixed time: a preempted job has to do
    /// the rest later, two jobs on one core take twice as long, and all servers of a session do the
    /// same work.
    Compute {
        /// Their number.
        iterations: u64,
    },
    /// Sleeps, like a call that waits for a disk or a database.
    Sleep {
        /// How long.
        milliseconds: u64,
    },
}

impl Work {
    /// Returns the computation that takes `duration` on an idle core. Measures many short tries and
    /// uses the fastest, because other load can only make a try slower.
    pub fn lasting(duration: Duration) -> Self {
        const TRIES: usize = 400;
        const SAMPLE: u64 = 100_000;
        let tries = (0..TRIES).map(|_| {
            let start = Instant::now();
            compute(SAMPLE);
            start.elapsed()
        });
        let fastest = tries.min().unwrap_or(Duration::MAX);
        let iterations = (SAMPLE as f64 * duration.as_secs_f64() / fastest.as_secs_f64()).round() as u64;
        Self::Compute { iterations }
    }

    /// Does the work on this thread.
    pub fn run(self) {
        match self {
            Self::Compute { iterations } => compute(iterations),
            Self::Sleep { milliseconds } => thread::sleep(Duration::from_millis(milliseconds)),
        }
    }
}

/// Never inlined, so that the loop is the same code in all callers.
#[inline(never)]
fn compute(iterations: u64) {
    let mut state = 1_u64;
    for _ in 0..iterations {
        state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

/// The server that a child process runs.
#[derive(Debug, Serialize, Deserialize)]
pub struct ServerOrder {
    variant: String,
    work: Work,
    /// `true` if the time of the server is limited.
    is_limited: bool,
}

/// The child's side: serves until standard input closes, which happens when the parent ends.
pub fn serve(ServerOrder { variant, work, is_limited }: ServerOrder) -> Result<(), BoxError> {
    let variant = VARIANTS.iter().find(|it| it.name == variant).ok_or("there is no such variant")?;
    let quota = if is_limited { limit(variant.limit)?.map(Arc::new) } else { None };
    let cores = platform::parallelism();
    let mut builder = runtime::Builder::new_multi_thread();
    builder.worker_threads(variant.workers.unwrap_or(cores)).enable_all();
    if variant.is_capped {
        builder.max_blocking_threads(cores);
    }
    let runtime = builder.build()?;
    thread::Builder::new().name("parent watcher".to_owned()).spawn(exit_with_parent)?;
    runtime.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let listener = socket.listen(BACKLOG)?;
        println!("{}", listener.local_addr()?);
        io::stdout().flush()?;
        // Without `nodelay` a response may wait for the acknowledgement of the previous one.
        let listener = listener.tap_io(|stream| _ = stream.set_nodelay(true));
        // Empty if the server has no quota.
        let throttled = move || {
            let periods = quota.as_ref().and_then(|quota| quota.throttled_periods());
            ready(periods.map(|periods| periods.to_string()).unwrap_or_default())
        };
        let router = Router::new()
            .route("/ping", get(|| async { "pong" }))
            .route("/throttled", get(throttled))
            .merge((variant.job)(work));
        Ok(axum::serve(listener, router).await?)
    })
}

/// Limits the processor time of this process. Returns `None` if it is pinned.
fn limit(limit: Limit) -> Result<Option<CpuQuota>, BoxError> {
    if let Limit::Quota(cores) = limit {
        match CpuQuota::enter(cores) {
            Ok(quota) => return Ok(Some(quota)),
            Err(error) => eprintln!("latency: the server is pinned to one core, because it got no quota: {error}"),
        }
    }
    platform::pin(*platform::cores().first().ok_or("threads cannot be pinned")?)?;
    Ok(None)
}

fn exit_with_parent() {
    let mut ignored = [0; 64];
    while io::stdin().read(&mut ignored).is_ok_and(|count| count > 0) {}
    std::process::exit(0);
}

/// The parent's side of a server. Dropping it kills the process and waits for its exit.
#[derive(Debug)]
pub(super) struct ServerProcess {
    child: Child,
    pub(super) address: SocketAddr,
}

impl ServerProcess {
    /// Must be called on a thread of normal priority, which the server inherits.
    pub(super) fn start(variant: &str, work: Work, is_limited: bool) -> Result<Self, BoxError> {
        let mut command = child::command(&ServerOrder { variant: variant.to_owned(), work, is_limited })?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().ok_or("the server has no standard output")?;
        // From here on, an error drops this value, which kills the process.
        let mut server = Self { child, address: ([127, 0, 0, 1], 0).into() };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let line = line.trim();
        server.address = line.parse().map_err(|_| format!("the server of {variant} printed `{line}`"))?;
        Ok(server)
    }

    /// Returns the number of periods in which the server had to wait because of its quota.
    pub(super) fn throttled_periods(&self) -> Option<u64> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(EXIT_TIMEOUT)).ok()?;
        stream.write_all(b"GET /throttled HTTP/1.0\r\n\r\n").ok()?;
        let mut response = String::new();
        stream.read_to_string(&mut response).ok()?;
        response.rsplit_once("\r\n\r\n")?.1.parse().ok()
    }

    /// Returns an error if the server has exited. Otherwise its rows would show a slow server.
    pub(super) fn check_alive(&mut self) -> Result<(), BoxError> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("the server ended during the run ({status})").into()),
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        child::end(&mut self.child, EXIT_TIMEOUT);
        CpuQuota::remove(self.child.id());
    }
}
