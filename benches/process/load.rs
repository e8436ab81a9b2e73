//! The pools of this crate.

use std::{
    marker::PhantomData,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::task::JoinSet;
use tower_offload::{
    ThreadPool,
    pool::Pool,
    process::{self, Context, KilledBy, ProcessPool, RunError, Work},
};
use tower_offload_benches::BoxError;

use crate::{NO_SPARE, Order, PROCESSES, SIZE, Sample, TEXT, THREADS, Task};

/// Timeout for the end of the processes, which have no job left.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout of a job that must be killed, long enough for it to begin.
const JOB_TIMEOUT: Duration = Duration::from_millis(20);

/// Serves jobs if this is a worker process. Otherwise returns at once.
pub(crate) fn init() {
    type Inputs = (Input<Vec<u8>>, Input<String>);
    type Outputs = (Output<Vec<u8>>, Output<String>);
    process::init::<(Number, Inputs, Outputs, Endless)>();
}

#[derive(Serialize, Deserialize)]
struct Number(u64);

impl Work for Number {
    const KIND: &'static str = "number";
    type Output = u64;
    type Error = String;

    fn run(self, _: &Context) -> Result<u64, String> {
        Ok(multiply(self.0))
    }
}

fn multiply(number: u64) -> u64 {
    std::hint::black_box(number.wrapping_mul(31))
}

/// `SIZE` bytes. Each byte of a `Vec<u8>` is handled alone, because serde has one rule for all
/// vectors, and a `String` is copied.
trait Data: AsRef<[u8]> + Serialize + DeserializeOwned + Send + 'static {
    const INPUT: &'static str;
    const OUTPUT: &'static str;
    fn create() -> Self;
}

impl Data for Vec<u8> {
    const INPUT: &'static str = "input";
    const OUTPUT: &'static str = "output";
    fn create() -> Self {
        vec![7; SIZE]
    }
}

impl Data for String {
    const INPUT: &'static str = "input, text";
    const OUTPUT: &'static str = "output, text";
    fn create() -> Self {
        "7".repeat(SIZE)
    }
}

#[derive(Serialize, Deserialize)]
struct Input<D>(D);

impl<D: Data> Work for Input<D> {
    const KIND: &'static str = D::INPUT;
    type Output = usize;
    type Error = String;

    fn run(self, _: &Context) -> Result<usize, String> {
        Ok(self.0.as_ref().len())
    }
}

#[derive(Serialize, Deserialize)]
struct Output<D>(PhantomData<D>);

impl<D: Data> Work for Output<D> {
    const KIND: &'static str = D::OUTPUT;
    type Output = D;
    type Error = String;

    fn run(self, _: &Context) -> Result<D, String> {
        Ok(D::create())
    }
}

/// Must be killed.
#[derive(Serialize, Deserialize)]
struct Endless;

impl Work for Endless {
    const KIND: &'static str = "endless";
    type Output = ();
    type Error = String;

    fn run(self, _: &Context) -> Result<(), String> {
        loop {
            std::thread::park();
        }
    }
}

pub(crate) fn run(order: &Order) -> Result<Sample, BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match (order.scene.task, order.variant.as_str()) {
            (Task::Number, THREADS) => {
                let pool = ThreadPool::builder().threads(PROCESSES).build()?;
                measure(order, move || pool.run(|| multiply(7))).await
            }
            (Task::Number, _) => processes(order, || Number(7)).await,
            (Task::Input, TEXT) => processes(order, || Input(String::create())).await,
            (Task::Input, _) => processes(order, || Input(Vec::<u8>::create())).await,
            (Task::Output, TEXT) => processes(order, || Output::<String>(PhantomData)).await,
            (Task::Output, _) => processes(order, || Output::<Vec<u8>>(PhantomData)).await,
            (Task::Start, _) => start(order.phases.starts).await,
            (Task::Replacement, variant) => replace(usize::from(variant != NO_SPARE), order.phases.starts).await,
        }
    })
}

/// Measures jobs on a pool of processes.
async fn processes<W: Work<Error = String>>(
    order: &Order,
    work: impl Fn() -> W + Clone + Send + 'static,
) -> Result<Sample, BoxError> {
    let pool = ProcessPool::builder().processes(PROCESSES).build()?;
    let call = {
        let pool = pool.clone();
        move || {
            let call = pool.run(work());
            async { call.await.map_err(|error| error.to_string()) }
        }
    };
    let sample = measure(order, call).await;
    // The processor time of processes that are not reaped counts as that of others.
    pool.shutdown(SHUTDOWN_TIMEOUT).await;
    sample
}

/// Measures callers that call again as soon as a call returns.
async fn measure<F, T, E>(order: &Order, call: impl Fn() -> F + Clone + Send + 'static) -> Result<Sample, BoxError>
where
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Into<BoxError> + Send + 'static,
{
    let mut sample = None;
    for length in [order.phases.warm_up, order.phases.measure] {
        let (mut callers, begin) = (JoinSet::new(), Instant::now());
        for _ in 0..order.scene.in_flight {
            callers.spawn(call_repeatedly(call.clone(), begin + length));
        }
        let mut latencies = Vec::new();
        while let Some(caller) = callers.join_next().await {
            latencies.extend(caller??);
        }
        sample = Some(Sample::new(latencies, begin.elapsed()));
    }
    sample.ok_or_else(|| "nothing was measured".into())
}

async fn call_repeatedly<F, T, E>(call: impl Fn() -> F, end: Instant) -> Result<Vec<Duration>, BoxError>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    let mut latencies = Vec::new();
    loop {
        let begin = Instant::now();
        if begin >= end {
            return Ok(latencies);
        }
        call().await.map_err(Into::into)?;
        latencies.push(begin.elapsed());
    }
}

/// Starts pools of one process, one after the other, and measures the time to their first result.
async fn start(count: usize) -> Result<Sample, BoxError> {
    let mut times = Vec::new();
    for _ in 0..count {
        let begin = Instant::now();
        let pool = ProcessPool::builder().processes(1).spares(0).build()?;
        let result = pool.run(Number(7)).await;
        times.push(begin.elapsed());
        pool.shutdown(SHUTDOWN_TIMEOUT).await;
        result.map_err(|error| error.to_string())?;
    }
    let elapsed = times.iter().sum();
    Ok(Sample::new(times, elapsed))
}

/// Has the process of a job killed, and measures the time from its timeout to the result of the
/// next job, which waits for a process.
async fn replace(spares: usize, count: usize) -> Result<Sample, BoxError> {
    let pool = ProcessPool::builder().processes(1).spares(spares).grace(Duration::ZERO).build()?;
    let mut times = Vec::new();
    for _ in 0..count {
        while pool.stats().idle < 1 + spares {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let begin = Instant::now();
        let (killed, next) = tokio::join!(pool.run(Endless).timeout(JOB_TIMEOUT), pool.run(Number(7)));
        times.push(begin.elapsed().saturating_sub(JOB_TIMEOUT));
        next.map_err(|error| error.to_string())?;
        if !matches!(killed, Err(RunError::Killed { by: KilledBy::Timeout })) {
            return Err(format!("a job without end has ended: {killed:?}").into());
        }
    }
    pool.shutdown(SHUTDOWN_TIMEOUT).await;
    let elapsed = times.iter().sum();
    Ok(Sample::new(times, elapsed))
}
