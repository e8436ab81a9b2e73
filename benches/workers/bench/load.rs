//! The clients: an open loop that uses a connection for each request, and connections that wait.

use std::{
    io,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::{self, Runtime},
    sync::mpsc,
    task::JoinSet,
    time,
};
use tower_offload_benches::{
    BoxError,
    latency::{pace, with_priority},
    platform,
};

/// Time for the last responses of a run. A request that is open after it counts as lost.
const GRACE: Duration = Duration::from_secs(2);

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The run ended before the response.
    Open,
    /// By this process.
    Answered(u32),
    /// No connection was opened.
    Refused,
    /// The connection ended before the response.
    Lost,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    /// The intended start, from the start of the run.
    pub(super) due: Duration,
    /// From the due time until the generator sent the request.
    pub(super) late: Duration,
    /// From the due time until the response.
    pub(super) latency: Duration,
    pub(super) end: End,
}

impl Outcome {
    /// Returns the process that has answered.
    pub(super) fn worker(&self) -> Option<u32> {
        if let End::Answered(worker) = self.end { Some(worker) } else { None }
    }
}

/// Sends a request at each of these times after `start`.
pub(super) fn run(address: SocketAddr, due: &[Duration], start: Instant) -> Result<Vec<Outcome>, BoxError> {
    let outcome = |due: &Duration| Outcome { due: *due, late: Duration::ZERO, latency: Duration::ZERO, end: End::Open };
    let mut outcomes: Vec<Outcome> = due.iter().map(outcome).collect();
    let due_times = due.iter().enumerate().map(|(index, due)| (start + *due, index)).collect();
    with_priority(|| {
        let (sender, mut arrivals) = mpsc::unbounded_channel();
        thread::scope(|scope| {
            scope.spawn(move || pace(due_times, sender));
            new_runtime()?.block_on(async {
                let mut running = JoinSet::new();
                while let Some((due, index)) = arrivals.recv().await {
                    outcomes[index].late = due.elapsed();
                    running.spawn(async move {
                        let end = exchange(address, "/job").await;
                        (index, due.elapsed(), end)
                    });
                }
                let record = async {
                    while let Some(ended) = running.join_next().await {
                        let Ok((index, latency, end)) = ended else { continue };
                        (outcomes[index].latency, outcomes[index].end) = (latency, end);
                    }
                };
                let _ = time::timeout(GRACE, record).await;
            });
            Ok(outcomes)
        })
    })
}

/// Measures how many requests per second a server answers to a few callers, which request the next
/// page when they have the previous one. The first fifth of `length` is a warm-up.
pub(super) fn capacity(address: SocketAddr, length: Duration) -> Result<f64, BoxError> {
    with_priority(|| {
        new_runtime()?.block_on(async {
            let start = Instant::now();
            let (warm, end) = (start + length / 5, start + length);
            let mut callers = JoinSet::new();
            for _ in 0..4 * platform::parallelism() {
                callers.spawn(async move {
                    let mut answered = 0;
                    while Instant::now() < end {
                        let is_answered = matches!(exchange(address, "/job").await, End::Answered(_));
                        answered += u32::from(is_answered && Instant::now() >= warm);
                    }
                    answered
                });
            }
            let answered: u32 = callers.join_all().await.into_iter().sum();
            let capacity = f64::from(answered) / (start.elapsed() - length / 5).as_secs_f64();
            if answered > 0 { Ok(capacity) } else { Err("the server answers no request".into()) }
        })
    })
}

/// Opens connections one after the other, while the server has no other work, and keeps them open.
/// Returns the worker that has accepted each of them.
pub(super) fn keep_open(address: SocketAddr, count: usize) -> Result<Vec<u32>, BoxError> {
    new_runtime()?.block_on(async {
        let (mut open, mut workers) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let mut stream = TcpStream::connect(address).await?;
            send(&mut stream, "/pid", "keep-alive").await?;
            workers.push(receive(&mut stream).await?);
            open.push(stream);
        }
        Ok(workers)
    })
}

/// Connections whose requests were sent and which no worker has accepted.
pub(super) struct Queued {
    runtime: Runtime,
    streams: Vec<TcpStream>,
}

impl Queued {
    pub(super) fn open(address: SocketAddr, count: usize) -> Result<Self, BoxError> {
        let runtime = new_runtime()?;
        let streams = runtime.block_on(async {
            let mut streams = Vec::new();
            for _ in 0..count {
                let mut stream = TcpStream::connect(address).await?;
                send(&mut stream, "/pid", "close").await?;
                streams.push(stream);
            }
            Ok::<_, BoxError>(streams)
        })?;
        Ok(Self { runtime, streams })
    }

    /// Waits for the responses, and returns their number.
    pub(super) fn answered(self) -> usize {
        let Self { runtime, streams } = self;
        runtime.block_on(async {
            let mut answered = 0;
            for mut stream in streams {
                let received = time::timeout(GRACE, receive(&mut stream)).await;
                answered += usize::from(received.is_ok_and(|received| received.is_ok()));
            }
            answered
        })
    }
}

fn new_runtime() -> io::Result<Runtime> {
    runtime::Builder::new_current_thread().enable_all().build()
}

/// Sends a request on a connection of its own.
async fn exchange(address: SocketAddr, path: &str) -> End {
    let mut stream = match TcpStream::connect(address).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return End::Refused,
        Err(_) => return End::Lost,
    };
    let answered = async {
        send(&mut stream, path, "close").await?;
        receive(&mut stream).await
    };
    answered.await.map_or(End::Lost, End::Answered)
}

async fn send(stream: &mut TcpStream, path: &str, connection: &str) -> io::Result<()> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: workers\r\nconnection: {connection}\r\n\r\n");
    stream.write_all(request.as_bytes()).await
}

/// Reads a response, and returns its body: the process id of the worker.
async fn receive(stream: &mut TcpStream) -> io::Result<u32> {
    let mut response = Vec::with_capacity(256);
    loop {
        if stream.read_buf(&mut response).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = std::str::from_utf8(&response).map_err(io::Error::other)?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if length == Some(body.len()) {
            let is_ok = head.starts_with("HTTP/1.1 200 ");
            return if is_ok { body.parse().map_err(io::Error::other) } else { Err(io::Error::other("not a 200")) };
        }
    }
}
