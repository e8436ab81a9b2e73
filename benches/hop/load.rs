//! The callers, and the job that they run on other threads.

use std::{
    cell::Cell,
    hint::black_box,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{runtime::Runtime, sync::Semaphore, task::JoinSet};
use tower_offload_benches::{
    BoxError,
    platform::{self, CountingAllocator},
};

use crate::{Mode, Phases, Pin, Sample, Scene};

/// The number of a job that keeps its thread busy for a while, so that the next job needs another
/// thread.
const PAUSE: u64 = u64::MAX;

const ANYWHERE: usize = usize::MAX;

/// The core of the threads that run jobs. It is set before the first job, if at all.
static CORE: AtomicUsize = AtomicUsize::new(ANYWHERE);

thread_local! {
    static IS_PINNED: Cell<bool> = const { Cell::new(false) };
}

/// The job of every variant, which does almost nothing.
pub(crate) fn job(number: u64) -> u64 {
    pin_to_core_of_jobs();
    if number == PAUSE {
        thread::sleep(Duration::from_millis(5));
    }
    black_box(number.wrapping_mul(31).wrapping_add(1))
}

/// Pins this thread, unless it is pinned or the scene pins none.
pub(crate) fn pin_to_core_of_jobs() {
    let core = CORE.load(Relaxed);
    if core != ANYWHERE && !IS_PINNED.get() {
        pin_this_thread(core);
    }
}

/// Returns the core of the runtime and that of the threads that run jobs, for [`Pin::Cross`].
pub(crate) fn cores_across() -> Result<(usize, usize), BoxError> {
    let [here, there, ..] = platform::cores()[..] else { return Err("threads cannot be pinned".into()) };
    Ok((here, there))
}

/// Pins this thread to one core, and every other thread to the next core with the first job that it
/// runs.
///
/// Threads must not inherit their core. Some variants start threads at any time, from a thread on
/// the wrong core; and a pool that is built on a pinned thread detects only one core.
fn pin_across_cores() -> Result<(), BoxError> {
    let (here, there) = cores_across()?;
    pin_this_thread(here);
    CORE.store(there, Relaxed);
    Ok(())
}

#[cold]
fn pin_this_thread(core: usize) {
    // The parent process has checked that the cores exist, and a job has nowhere to report an
    // error.
    let _ = platform::pin(core);
    IS_PINNED.set(true);
}

/// Runs [`job`] on another thread. Clones use the same threads.
pub(crate) trait Hop: Clone + Send + 'static {
    fn call(&mut self, number: u64) -> impl Future<Output = Result<u64, BoxError>> + Send;
}

impl<H, F, E> Hop for H
where
    H: FnMut(u64) -> F + Clone + Send + 'static,
    F: Future<Output = Result<u64, E>> + Send,
    E: Into<BoxError>,
{
    async fn call(&mut self, number: u64) -> Result<u64, BoxError> {
        self(number).await.map_err(Into::into)
    }
}

/// The runtime that a variant is measured in.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) runtime: Runtime,
    pub(crate) scene: Scene,
    pub(crate) phases: Phases,
}

/// The measurements of the callers.
struct Tally {
    calls: u64,
    elapsed: Duration,
    /// Latencies in nanoseconds.
    latency: Histogram<u64>,
    /// Number of allocations. 0 unless they were counted.
    allocations: u64,
}

/// State that the callers share.
struct Shared {
    /// Closed when the callers may begin.
    begin: Semaphore,
    end: AtomicBool,
    latency: Mutex<Histogram<u64>>,
    /// One call in `timed` is timed. The caller reads the clock only for that call, because reading
    /// it twice per call would be a large part of the fastest calls.
    timed: u64,
    length: Duration,
}

impl Stage {
    pub(crate) fn measure(&self, hop: impl Hop) -> Result<Sample, BoxError> {
        if self.scene.pin == Pin::Cross {
            pin_across_cores()?;
        }
        let Phases { warm_up, count, measure } = self.phases;
        self.runtime.block_on(async {
            start_all_threads(&hop, self.scene.threads).await?;
            self.load(&hop, warm_up, false).await?;
            let counted = self.load(&hop, count, true).await?;
            let timed = self.load(&hop, measure, false).await?;
            Ok(Sample {
                p50_us: timed.latency.value_at_quantile(0.5) as f64 / 1e3,
                p99_us: timed.latency.value_at_quantile(0.99) as f64 / 1e3,
                ops_per_s: timed.calls as f64 / timed.elapsed.as_secs_f64(),
                allocs_per_op: counted.allocations as f64 / counted.calls.max(1) as f64,
            })
        })
    }

    /// Runs callers that call again as soon as a call returns. Calls in progress at the end are
    /// awaited and counted.
    async fn load(&self, hop: &impl Hop, length: Duration, count_allocations: bool) -> Result<Tally, BoxError> {
        let shared = Arc::new(Shared {
            begin: Semaphore::new(0),
            end: AtomicBool::new(false),
            latency: Mutex::new(Histogram::new_with_bounds(1, 60_000_000_000, 3)?),
            timed: match self.scene.mode {
                Mode::Sequential => 1,
                Mode::Throughput => 16,
            },
            length,
        });
        // Each caller begins with a different number, so that at any time only one in many reads
        // the clock.
        let callers = (0..self.scene.concurrency as u64)
            .map(|first| tokio::spawn(call_repeatedly(hop.clone(), first, shared.clone())));
        let callers: Vec<_> = callers.collect();

        if count_allocations {
            CountingAllocator::start();
        }
        let start = Instant::now();
        shared.begin.close();
        let mut calls = 0;
        for caller in callers {
            calls += caller.await??;
        }
        let elapsed = start.elapsed();
        let allocations = if count_allocations { CountingAllocator::stop() } else { 0 };
        let latency = shared.latency.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Tally { calls, elapsed, latency, allocations })
    }
}

async fn call_repeatedly(mut hop: impl Hop, first: u64, shared: Arc<Shared>) -> Result<u64, BoxError> {
    // An error means that the semaphore was closed, which is the signal to begin.
    let _ = shared.begin.acquire().await;
    let end = Instant::now() + shared.length;
    let mut number = first;
    while !shared.end.load(Relaxed) {
        if number % shared.timed == 0 {
            let before = Instant::now();
            black_box(hop.call(number).await?);
            let after = Instant::now();
            let latency = u64::try_from((after - before).as_nanos()).unwrap_or(u64::MAX);
            shared.latency.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(latency);
            if after >= end {
                shared.end.store(true, Relaxed);
            }
        } else {
            black_box(hop.call(number).await?);
        }
        number += 1;
    }
    Ok(number - first)
}

/// Runs as many jobs at once as there are threads. Each is long enough that no thread gets two, so
/// that all threads have run a job and are pinned.
async fn start_all_threads(hop: &impl Hop, threads: usize) -> Result<(), BoxError> {
    let mut jobs = JoinSet::new();
    for _ in 0..threads {
        let mut hop = hop.clone();
        jobs.spawn(async move { hop.call(PAUSE).await.map(drop) });
    }
    jobs.join_all().await.into_iter().collect()
}
