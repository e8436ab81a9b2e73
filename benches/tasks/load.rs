//! The clients.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use crate::{BoxError, plan::Phases};

/// What a client does again and again.
pub(crate) trait Call: Clone + Send + Sync + 'static {
    fn call(&self) -> impl Future<Output = Result<Answer, BoxError>> + Send;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    /// There was no room.
    Refused,
}

/// What the clients have seen.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) done: u64,
    pub(crate) refused: u64,
    pub(crate) elapsed: Duration,
    /// Of those that were done, in nanoseconds.
    latency: Histogram<u64>,
}

impl Tally {
    fn new() -> Self {
        // To a percent: with more digits each client would begin with clearing half a megabyte.
        let latency = Histogram::new_with_bounds(1, 120_000_000_000, 2).expect("constant bounds that the crate allows");
        Self { done: 0, refused: 0, elapsed: Duration::ZERO, latency }
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64()
    }

    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// A closed loop: each client calls again as soon as it is answered. Calls under way at the end are waited for, and count, as does
/// the time that takes.
pub(crate) async fn closed_loop(
    call: &impl Call,
    clients: usize,
    length: Duration,
    phases: &Phases,
) -> Result<Tally, BoxError> {
    let at_most = phases.calls / clients;
    let begin = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..clients {
        running.spawn(client(call.clone(), begin + length, at_most));
    }
    let mut all = Tally::new();
    while let Some(tally) = running.join_next().await {
        let tally = tally??;
        all.done += tally.done;
        all.refused += tally.refused;
        all.latency.add(&tally.latency)?;
    }
    all.elapsed = begin.elapsed();
    Ok(all)
}

async fn client(call: impl Call, end: Instant, at_most: usize) -> Result<Tally, BoxError> {
    let mut tally = Tally::new();
    for _ in 0..at_most {
        let before = Instant::now();
        if before >= end {
            break;
        }
        match call.call().await? {
            Answer::Done => {
                tally.done += 1;
                tally.latency.saturating_record(u64::try_from(before.elapsed().as_nanos()).unwrap_or(u64::MAX));
            }
            Answer::Refused => {
                tally.refused += 1;
                tokio::task::yield_now().await;
            }
        }
    }
    Ok(tally)
}
