//! The clients.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tower_offload_benches::BoxError;

use crate::{Order, Sample};

/// The call that a client repeats. Each client has a clone.
pub(crate) trait Call: Clone + Send + 'static {
    fn call(&mut self) -> impl Future<Output = Result<Outcome, BoxError>> + Send;
}

impl<C, F> Call for C
where
    C: FnMut() -> F + Clone + Send + 'static,
    F: Future<Output = Result<Outcome, BoxError>> + Send,
{
    fn call(&mut self) -> impl Future<Output = Result<Outcome, BoxError>> + Send {
        self()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// The call was rejected because there was no room.
    Refused,
}

/// The measurements of the clients.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) done: u64,
    refused: u64,
    pub(crate) elapsed: Duration,
    /// Latencies of the completed calls, in nanoseconds.
    latency: Histogram<u64>,
}

impl Tally {
    pub(crate) fn new() -> Result<Self, BoxError> {
        // Two digits are exact to a percent. With more digits, each client would first clear half a
        // megabyte.
        let latency = Histogram::new_with_bounds(1, 120_000_000_000, 2)?;
        Ok(Self { done: 0, refused: 0, elapsed: Duration::ZERO, latency })
    }

    /// Adds a completed call.
    pub(crate) fn add(&mut self, latency: Duration) {
        self.done += 1;
        self.latency.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn sample(&self) -> Sample {
        let quantile_us = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1e3;
        Sample {
            per_second: self.done as f64 / self.elapsed.as_secs_f64(),
            p50_us: Some(quantile_us(0.5)),
            p99_us: Some(quantile_us(0.99)),
            refused: self.refused,
            ..Sample::default()
        }
    }
}

/// Runs the warm-up, then the measured time.
pub(crate) async fn measure(call: &impl Call, order: &Order) -> Result<Sample, BoxError> {
    closed_loop(call, order, order.phases.warm_up).await?;
    Ok(closed_loop(call, order, order.phases.measure).await?.sample())
}

/// Runs clients that call again as soon as a call returns. Calls in progress at the end are awaited
/// and counted.
pub(crate) async fn closed_loop(call: &impl Call, order: &Order, length: Duration) -> Result<Tally, BoxError> {
    let clients = order.scene.clients;
    let begin = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..clients {
        running.spawn(client(call.clone(), begin + length, order.phases.max_calls / clients));
    }
    let mut all = Tally::new()?;
    while let Some(tally) = running.join_next().await {
        let tally = tally??;
        all.done += tally.done;
        all.refused += tally.refused;
        all.latency.add(&tally.latency)?;
    }
    all.elapsed = begin.elapsed();
    Ok(all)
}

async fn client(mut call: impl Call, end: Instant, max_calls: usize) -> Result<Tally, BoxError> {
    let mut tally = Tally::new()?;
    for _ in 0..max_calls {
        let before = Instant::now();
        if before >= end {
            break;
        }
        match call.call().await? {
            Outcome::Done => {
                tally.add(before.elapsed());
            }
            Outcome::Refused => {
                tally.refused += 1;
                tokio::task::yield_now().await;
            }
        }
    }
    Ok(tally)
}
