//! The callers.

use std::{
    hint::black_box,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{sync::Semaphore, task::JoinError};

use crate::{
    hops::Hop,
    plan::{Mode, Scene},
    platform::Counting,
};

/// What the callers have seen.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) calls: u64,
    pub(crate) elapsed: Duration,
    /// In nanoseconds.
    pub(crate) latency: Histogram<u64>,
    /// 0 unless they were to be counted.
    pub(crate) allocations: u64,
}

#[derive(Debug)]
struct Shared {
    /// Closed when the callers may begin.
    begin: Semaphore,
    end: AtomicBool,
    latency: Mutex<Histogram<u64>>,
    /// One call in so many is timed, and only then a caller looks at the clock: twice for each call would be a good part of
    /// the fastest.
    timed: u64,
    length: Duration,
}

/// Each caller is a task that calls again as soon as it is answered. Calls under way at the end are waited for, and count.
pub(crate) async fn run<H: Hop>(
    hop: &H,
    scene: Scene,
    length: Duration,
    count_allocations: bool,
) -> Result<Tally, JoinError> {
    let latency = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds that the crate allows");
    let shared = Arc::new(Shared {
        begin: Semaphore::new(0),
        end: AtomicBool::new(false),
        latency: Mutex::new(latency),
        timed: match scene.mode {
            Mode::Sequential => 1,
            Mode::Throughput => 16,
        },
        length,
    });
    let callers: Vec<_> =
        (0..scene.concurrency as u64).map(|first| tokio::spawn(calls(hop.clone(), first, shared.clone()))).collect();

    // What it takes to start them is no part of a call.
    if count_allocations {
        Counting::start();
    }
    let start = Instant::now();
    shared.begin.close();
    let mut calls = 0;
    for caller in callers {
        calls += caller.await?;
    }
    let elapsed = start.elapsed();
    let allocations = if count_allocations { Counting::stop() } else { 0 };
    let latency = shared.latency.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(Tally { calls, elapsed, latency, allocations })
}

/// Each caller begins to count elsewhere, so that at any time one of many looks at the clock.
async fn calls<H: Hop>(mut hop: H, first: u64, shared: Arc<Shared>) -> u64 {
    // An error, since nobody ever gets a permit.
    let _ = shared.begin.acquire().await;
    let end = Instant::now() + shared.length;
    let mut number = first;
    while !shared.end.load(Ordering::Relaxed) {
        if number % shared.timed == 0 {
            let before = Instant::now();
            black_box(hop.call(number).await);
            let after = Instant::now();
            let latency = u64::try_from((after - before).as_nanos()).unwrap_or(u64::MAX);
            shared.latency.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(latency);
            if after >= end {
                shared.end.store(true, Ordering::Relaxed);
            }
        } else {
            black_box(hop.call(number).await);
        }
        number += 1;
    }
    number - first
}
