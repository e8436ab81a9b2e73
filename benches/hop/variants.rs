//! The ways to run a closure on another thread.

use std::{convert::Infallible, future::ready, sync::Arc, task, thread};

use tokio::{runtime, sync::oneshot};
use tokio_rayon::AsyncThreadPool;
use tower::{Layer, Service};
use tower_offload::{
    OffloadLayer, ThreadPool,
    offload::{RejectWithError, service_fn_blocking},
    pool::{Pool, Rayon},
};
use tower_offload_benches::BoxError;
use tower_resilience_executor::{BlockingExecutor, ExecutorLayer};

use crate::{
    QUEUE_CAPACITY, Sample, THREADS,
    load::{Stage, job},
};

/// One way to run a job.
#[derive(Debug)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    /// If `true`, tokio's blocking pool has as many threads as the other pools instead of up to
    /// 512.
    pub(crate) is_capped: bool,
    /// Must be called within the runtime.
    pub(crate) measure: fn(&Stage) -> Result<Sample, BoxError>,
}

pub(crate) const VARIANTS: &[Variant] = &[
    // Runs the job in place, to measure the cost of the loop around a call.
    variant("inline", |stage| stage.measure(|number| ready(Ok::<_, Infallible>(job(number))))),
    variant("spawn_blocking", spawn_blocking),
    Variant { name: "spawn_blocking/capped", is_capped: true, measure: spawn_blocking },
    variant("tokio-rayon", |stage| {
        let threads = rayon_threads()?;
        stage.measure(move |number| infallible(threads.spawn_async(move || job(number))))
    }),
    variant("rayon+oneshot", |stage| {
        let threads = rayon_threads()?;
        stage.measure(move |number| {
            let (sender, receiver) = oneshot::channel();
            threads.spawn(move || sender.send(job(number)).expect("the caller waits"));
            receiver
        })
    }),
    variant("crossbeam+oneshot", crossbeam_oneshot),
    // The crate `blocking` has one pool for the process, of up to 500 threads.
    variant("unblock", |stage| stage.measure(|number| infallible(blocking::unblock(move || job(number))))),
    variant("second-runtime", |stage| {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
        let runtime = Arc::new(runtime);
        stage.measure(move |number| runtime.spawn(async move { job(number) }))
    }),
    // The documentation of the crate recommends `BlockingExecutor` for computation and blocking
    // calls. It drives the future of the service on a thread of `spawn_blocking`.
    variant("tower-resilience", |stage| {
        layered(stage, ExecutorLayer::new(BlockingExecutor::current()).layer(service()))
    }),
    variant("threads", |stage| bare(stage, threads()?)),
    variant("rayon", |stage| bare(stage, Rayon::builder(rayon_threads()?).queue_capacity(QUEUE_CAPACITY).build())),
    variant("offload", |stage| layered(stage, OffloadLayer::new(threads()?).reject(RejectWithError).layer(service()))),
    // Its calls are short, so nearly all of them run where they are made.
    variant("adaptive", |stage| {
        layered(stage, OffloadLayer::new(threads()?).reject(RejectWithError).adaptive().layer(service()))
    }),
];

const fn variant(name: &'static str, measure: fn(&Stage) -> Result<Sample, BoxError>) -> Variant {
    Variant { name, is_capped: false, measure }
}

fn spawn_blocking(stage: &Stage) -> Result<Sample, BoxError> {
    stage.measure(|number| tokio::task::spawn_blocking(move || job(number)))
}

/// The hand-written pool: threads that take boxed closures from a channel. They end with the last
/// sender.
fn crossbeam_oneshot(stage: &Stage) -> Result<Sample, BoxError> {
    let (jobs, queue) = crossbeam_channel::unbounded::<Box<dyn FnOnce() + Send>>();
    for _ in 0..THREADS {
        let queue = queue.clone();
        thread::Builder::new().spawn(move || queue.iter().for_each(|job| job()))?;
    }
    stage.measure(move |number| {
        let (sender, receiver) = oneshot::channel();
        let sent = jobs.send(Box::new(move || sender.send(job(number)).expect("the caller waits")));
        sent.expect("the threads live as long as the sender");
        receiver
    })
}

/// Measures a pool of this crate without a layer.
fn bare(stage: &Stage, pool: impl Pool + Clone) -> Result<Sample, BoxError> {
    stage.measure(move |number| pool.run(move || job(number)))
}

/// Measures a service that is always ready: `poll_ready` and `call` for each call.
fn layered<S>(stage: &Stage, mut service: S) -> Result<Sample, BoxError>
where
    S: Service<u64, Response = u64, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
{
    stage.measure(move |number| {
        let mut context = task::Context::from_waker(task::Waker::noop());
        assert!(service.poll_ready(&mut context).is_ready(), "the service is always ready");
        service.call(number)
    })
}

fn service() -> impl Service<u64, Response = u64, Error = Infallible, Future: Send> + Clone + Send + 'static {
    service_fn_blocking(|number| Ok(job(number)))
}

async fn infallible<F: Future>(call: F) -> Result<F::Output, Infallible> {
    Ok(call.await)
}

fn threads() -> Result<ThreadPool, BoxError> {
    Ok(ThreadPool::builder().threads(THREADS).queue_capacity(QUEUE_CAPACITY).build()?)
}

fn rayon_threads() -> Result<Arc<rayon::ThreadPool>, BoxError> {
    Ok(Arc::new(rayon::ThreadPoolBuilder::new().num_threads(THREADS).build()?))
}
