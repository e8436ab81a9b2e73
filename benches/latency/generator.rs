//! The open-loop generator: requests start when they are due, whatever became of those before.

use std::{
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{runtime, sync::mpsc, task::JoinSet, time};

use crate::latency::{
    BoxError,
    arrivals::Schedule,
    client::{Answer, Client, Order},
    plan::Phases,
    platform,
    stop::Stop,
    tally::{Tally, microseconds, record},
};

/// One order, given again and again.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) order: Order,
    pub(crate) schedule: Schedule,
}

/// What one run of the generator has seen.
#[derive(Debug, Clone)]
pub(crate) struct Observation {
    /// One for each stream, in their order.
    pub(crate) tallies: Vec<Tally>,
    /// How long after its due time a request was started.
    pub(crate) lateness: Histogram<u64>,
}

struct Arrival {
    stream: usize,
    due: Instant,
}

struct Outcome {
    stream: usize,
    /// None if it was due during the warm-up.
    number: Option<usize>,
    at: Instant,
    answer: Result<Answer, BoxError>,
}

/// Sends the streams to `address` and ends, whatever the server does, when the phases are over.
///
/// Each stream has connections of its own, as clients that ping are not those that order jobs.
pub(crate) fn run(
    address: SocketAddr,
    streams: &[Stream],
    phases: Phases,
    max_connections: usize,
    stop: &Stop,
) -> Result<Observation, BoxError> {
    let clients = streams.iter().map(|_| Arc::new(Client::new(address, max_connections / streams.len()))).collect();
    urgently(|| {
        let (sender, arrivals) = mpsc::unbounded_channel();
        let start = Instant::now() + Duration::from_millis(20);
        thread::scope(|scope| {
            scope.spawn(|| pace(streams, start, phases.warm_up + phases.measure, sender));
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                tokio::select! {
                    observation = send(streams, clients, arrivals, start, phases) => Ok(observation),
                    () = stop.wanted() => Err("interrupted".into()),
                }
            })
        })
    })
}

/// On a thread of its own with the priority of a generator: this one stays ordinary, so that the servers it starts are.
pub(crate) fn urgently<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            platform::raise_priority();
            work()
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Tells what is due, when it is due. A thread that sleeps is exact to some 50 us; tokio's timer counts in milliseconds.
fn pace(streams: &[Stream], start: Instant, length: Duration, arrivals: mpsc::UnboundedSender<Arrival>) {
    platform::raise_priority();
    let mut schedules: Vec<Schedule> = streams.iter().map(|stream| stream.schedule.clone()).collect();
    while let Some((stream, schedule)) = schedules.iter_mut().enumerate().min_by_key(|(_, it)| it.next()) {
        if schedule.next() >= length {
            return;
        }
        let due = start + schedule.next();
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if arrivals.send(Arrival { stream, due }).is_err() {
            return;
        }
        schedule.advance();
    }
}

async fn send(
    streams: &[Stream],
    clients: Vec<Arc<Client>>,
    mut arrivals: mpsc::UnboundedReceiver<Arrival>,
    start: Instant,
    phases: Phases,
) -> Observation {
    let mut tallies = vec![Tally::new(start); streams.len()];
    let mut lateness = microseconds();
    let orders: Vec<Arc<Order>> = streams.iter().map(|stream| Arc::new(stream.order.clone())).collect();
    let mut requests = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            arrival = arrivals.recv() => {
                let Some(Arrival { stream, due }) = arrival else { break };
                let number = (due >= start + phases.warm_up).then(|| {
                    record(&mut lateness, due.elapsed());
                    tallies[stream].offer(due)
                });
                let (client, order) = (clients[stream].clone(), orders[stream].clone());
                requests.spawn(async move {
                    let answer = client.send(&order).await;
                    Outcome { stream, number, at: Instant::now(), answer }
                });
            }
            Some(outcome) = requests.join_next() => take(&mut tallies, outcome),
        }
    }
    let drain = async {
        while let Some(outcome) = requests.join_next().await {
            take(&mut tallies, outcome);
        }
    };
    // Whoever is late then is counted at its age.
    let _ = time::timeout(phases.grace, drain).await;
    let now = Instant::now();
    tallies.iter_mut().for_each(|tally| tally.close(now));
    Observation { tallies, lateness }
}

fn take(tallies: &mut [Tally], outcome: Result<Outcome, tokio::task::JoinError>) {
    // A task that panicked has no answer, and its request stays open.
    if let Ok(Outcome { stream, number: Some(number), at, answer }) = outcome {
        tallies[stream].answer(number, at, &answer);
    }
}
