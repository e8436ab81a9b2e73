//! The open-loop generator: each request starts when it is due, even if earlier requests are still
//! open.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{runtime, sync::mpsc, task::JoinSet, time};

use super::{
    Phases,
    client::{Client, Reply, Request},
};
use crate::{BoxError, platform};

/// How the requests of a stream are spread over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrivals {
    /// Evenly spaced. A server that is not saturated hardly ever has two requests at once, which is
    /// easier to serve than real traffic.
    Constant,
    /// At random and independently of each other, like callers; the same sequence in every run.
    Poisson,
}

impl Arrivals {
    /// Returns the times before `end` at which requests are due, from the start of the run. The
    /// last step lasts forever.
    pub fn due_times(self, steps: &[Step], end: Duration) -> Vec<Duration> {
        let (mut now, mut due_times) = (0.0, Vec::new());
        // The time until the next request, in mean intervals.
        let mut gap = 0.0;
        let mut random = 0x9E37_79B9_7F4A_7C15;
        for Step { length, per_second } in steps {
            let step_end = (now + length.as_secs_f64()).min(end.as_secs_f64());
            while now + gap / per_second < step_end {
                now += gap / per_second;
                due_times.push(Duration::from_secs_f64(now));
                gap = match self {
                    Self::Constant => 1.0,
                    Self::Poisson => -uniform(&mut random).ln(),
                };
            }
            gap -= (step_end - now) * per_second;
            now = step_end;
        }
        due_times
    }
}

/// A rate, and how long it lasts.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// How long it lasts.
    pub length: Duration,
    /// Requests per second.
    pub per_second: f64,
}

/// A request that is sent repeatedly.
#[derive(Debug, Clone)]
pub(super) struct Stream {
    request: Request,
    arrivals: Arrivals,
    /// The last step lasts forever.
    steps: Vec<Step>,
}

impl Stream {
    pub(super) fn new(request: Request, arrivals: Arrivals, steps: Vec<Step>) -> Self {
        Self { request, arrivals, steps }
    }

    pub(super) fn constant(request: Request, per_second: f64) -> Self {
        Self::new(request, Arrivals::Constant, vec![Step { length: Duration::MAX, per_second }])
    }
}

/// Returns a number above 0 and at most 1: Marsaglia's xorshift, which is repeatable.
fn uniform(state: &mut u64) -> f64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    ((*state >> 11) as f64 + 1.0) / (1_u64 << 53) as f64
}

/// The outcome of one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    /// The intended start, from the start of the run.
    pub(super) due: Duration,
    /// The time from the intended start to the response. If the request did not succeed, the time
    /// to the end of the run, so that failures do not look fast.
    pub(super) latency: Duration,
    pub(super) end: End,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The run ended before the response.
    Open,
    Success,
    /// Any other response.
    Refused,
    /// The connection failed.
    Failed,
}

/// The measurements of one run.
#[derive(Debug, Clone)]
pub(super) struct Observation {
    /// The requests of both streams, in the order of their due times.
    pub(super) pings: Vec<Outcome>,
    pub(super) jobs: Vec<Outcome>,
    /// How long after its due time each request was started.
    pub(super) lateness: Histogram<u64>,
}

/// Sends pings and jobs to `address`. Ends with the phases, even if the server does not respond.
///
/// Each stream has its own connections, because pings and jobs come from different clients.
pub(super) fn run(
    address: SocketAddr,
    [pings, jobs]: [Stream; 2],
    phases: Phases,
    descriptors: usize,
) -> Result<Observation, BoxError> {
    let (warm_up, measure) = (Duration::from_millis(phases.warm_up_ms), Duration::from_millis(phases.measure_ms));
    with_priority(|| {
        let (sender, arrivals) = mpsc::unbounded_channel();
        let start = Instant::now() + Duration::from_millis(20);
        let mut due_times = Vec::new();
        for (stream, it) in [&pings, &jobs].into_iter().enumerate() {
            let due = it.arrivals.due_times(&it.steps, warm_up + measure);
            due_times.extend(due.into_iter().map(|due| (start + due, stream)));
        }
        due_times.sort_unstable();
        let requests = [pings.request.clone(), jobs.request.clone()].map(Arc::new);
        thread::scope(|scope| {
            scope.spawn(|| pace(due_times, sender));
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            // Leaves some descriptors for other uses than connections.
            let max_connections = descriptors.saturating_sub(100).max(100) / 2;
            let clients = [(); 2].map(|()| Arc::new(Client::new(address, max_connections)));
            let grace = Duration::from_millis(phases.grace_ms);
            Ok(runtime.block_on(send(requests, clients, arrivals, (start, warm_up, grace))))
        })
    })
}

/// Runs `work` on a thread with the priority of a generator. The calling thread keeps its own
/// priority, which the servers that it starts inherit.
pub fn with_priority<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            platform::raise_priority();
            work()
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Reports each request when it is due, with its number. A sleeping thread wakes within about 50 us
/// of that time, whereas tokio's timer has a resolution of milliseconds.
pub fn pace(due_times: Vec<(Instant, usize)>, arrivals: mpsc::UnboundedSender<(Instant, usize)>) {
    platform::raise_priority();
    for (due, stream) in due_times {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if arrivals.send((due, stream)).is_err() {
            return;
        }
    }
}

async fn send(
    requests: [Arc<Request>; 2],
    clients: [Arc<Client>; 2],
    mut arrivals: mpsc::UnboundedReceiver<(Instant, usize)>,
    (start, warm_up, grace): (Instant, Duration, Duration),
) -> Observation {
    let mut outcomes = [Vec::new(), Vec::new()];
    let mut lateness = microseconds([]);
    let mut running = JoinSet::new();
    let record = |outcomes: &mut [Vec<Outcome>; 2], ended| {
        // A task that panicked has no response, and its request stays open.
        let Ok((stream, Some(index), at, reply)) = ended else { return };
        let (stream, index, at): (usize, usize, Instant) = (stream, index, at);
        let outcome: &mut Outcome = &mut outcomes[stream][index];
        outcome.latency = at.duration_since(start).saturating_sub(outcome.due);
        outcome.end = match reply {
            Ok(Reply::Success) => End::Success,
            Ok(Reply::Other(_)) => End::Refused,
            Err(_) => End::Failed,
        };
    };
    loop {
        tokio::select! {
            biased;
            arrival = arrivals.recv() => {
                let Some((due, stream)) = arrival else { break };
                let since_start = due.duration_since(start);
                // Requests due during the warm-up have no index.
                let index = (since_start >= warm_up).then(|| {
                    record_microseconds(&mut lateness, due.elapsed());
                    outcomes[stream].push(Outcome { due: since_start, latency: Duration::ZERO, end: End::Open });
                    outcomes[stream].len() - 1
                });
                let (client, request) = (clients[stream].clone(), requests[stream].clone());
                running.spawn(async move {
                    let reply = client.send(&request).await;
                    (stream, index, Instant::now(), reply)
                });
            }
            Some(ended) = running.join_next() => record(&mut outcomes, ended),
        }
    }
    let drain = async {
        while let Some(ended) = running.join_next().await {
            record(&mut outcomes, ended);
        }
    };
    let _ = time::timeout(grace, drain).await;
    let end = Instant::now().duration_since(start);
    for outcome in outcomes.iter_mut().flatten().filter(|outcome| outcome.end != End::Success) {
        outcome.latency = end.saturating_sub(outcome.due);
    }
    let [pings, jobs] = outcomes;
    Observation { pings, jobs, lateness }
}

/// Returns a histogram in microseconds. An hour is longer than any run.
pub(super) fn microseconds(durations: impl IntoIterator<Item = Duration>) -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("the bounds are valid");
    durations.into_iter().for_each(|duration| record_microseconds(&mut histogram, duration));
    histogram
}

fn record_microseconds(histogram: &mut Histogram<u64>, duration: Duration) {
    histogram.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
}

/// Measures how many jobs per second a server can do.
///
/// Each of a few callers requests the next job when its previous one is done, so that the server
/// always has work and never has a long queue. The first fifth of `length` is a warm-up.
pub(super) fn measure_capacity(address: SocketAddr, length: Duration) -> Result<f64, BoxError> {
    with_priority(|| {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let callers = 4 * platform::parallelism();
            let client = Arc::new(Client::new(address, callers));
            let done = Arc::new(AtomicU64::new(0));
            let mut running = JoinSet::new();
            for _ in 0..callers {
                let (client, done) = (client.clone(), done.clone());
                running.spawn(async move {
                    while let Ok(Reply::Success) = client.send(&Request::get("/job")).await {
                        done.fetch_add(1, Relaxed);
                    }
                });
            }
            time::sleep(length / 5).await;
            let (start, before) = (Instant::now(), done.load(Relaxed));
            time::sleep(length * 4 / 5).await;
            let jobs = (done.load(Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
            // A caller ends only if the server fails.
            if jobs > 0.0 && running.try_join_next().is_none() {
                Ok(jobs)
            } else {
                Err("the server failed while its capacity was measured".into())
            }
        })
    })
}
