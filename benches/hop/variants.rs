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
    QUEUE_CAPACITY, Sample, Scene, THREADS,
    load::{Stage, job},
    processes,
};

/// One way to run a job.
#[derive(Debug)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    /// If `true`, tokio's blocking pool has as many threads as the other pools instead of up to
    /// 512.
    pub(crate) is_capped: bool,
    /// If `true`, the runtime hands its drivers over eagerly, an option of unstable builds of
    /// tokio.
    #[cfg(tokio_unstable)]
    pub(crate) is_eager: bool,
    /// Environment variable of the process.
    pub(crate) env: Option<(&'static str, &'static str)>,
    /// Must be called within the runtime.
    pub(crate) measure: fn(&Stage) -> Result<Sample, BoxError>,
}

/// The variant whose jobs run in other processes.
const PROCESS: &str = "process";

pub(crate) const VARIANTS: &[Variant] = &[
    // Runs the job in place, to measure the cost of the loop around a call.
    variant("inline", |stage| stage.measure(|number| ready(Ok::<_, Infallible>(job(number))))),
    variant("spawn_blocking", spawn_blocking),
    Variant { is_capped: true, ..variant("spawn_blocking/capped", spawn_blocking) },
    // Tokio's experimental queue for blocking tasks, which stable builds enable like this.
    Variant {
        is_capped: true,
        env: Some(("TOKIO_UNSTABLE_SHARDED_BLOCKING_QUEUE", "1")),
        ..variant("spawn_blocking/capped, sharded", spawn_blocking)
    },
    #[cfg(tokio_unstable)]
    Variant { is_capped: true, is_eager: true, ..variant("spawn_blocking/capped, eager handoff", spawn_blocking) },
    variant("tokio-rayon", |stage| {
        let threads = rayon_threads(stage)?;
        stage.measure(move |number| infallible(threads.spawn_async(move || job(number))))
    }),
    variant("rayon+oneshot", |stage| {
        let threads = rayon_threads(stage)?;
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
        let runtime = runtime::Builder::new_multi_thread().worker_threads(stage.scene.threads).enable_all().build()?;
        let runtime = Arc::new(runtime);
        stage.measure(move |number| runtime.spawn(async move { job(number) }))
    }),
    // The documentation of the crate recommends `BlockingExecutor` for computation and blocking
    // calls. It drives the future of the service on a thread of `spawn_blocking`.
    variant("tower-resilience", |stage| {
        layered(stage, ExecutorLayer::new(BlockingExecutor::current()).layer(service()))
    }),
    variant("threads", |stage| bare(stage, threads(stage)?)),
    variant("rayon", |stage| bare(stage, Rayon::builder(rayon_threads(stage)?).queue_capacity(QUEUE_CAPACITY).build())),
    variant("offload", |stage| {
        layered(stage, OffloadLayer::new(threads(stage)?).reject(RejectWithError).layer(service()))
    }),
    // Its calls are short, so nearly all of them run where they are made.
    variant("adaptive", |stage| {
        layered(stage, OffloadLayer::new(threads(stage)?).reject(RejectWithError).adaptive().layer(service()))
    }),
    variant(PROCESS, processes::measure),
];

const fn variant(name: &'static str, measure: fn(&Stage) -> Result<Sample, BoxError>) -> Variant {
    Variant {
        name,
        is_capped: false,
        #[cfg(tokio_unstable)]
        is_eager: false,
        env: None,
        measure,
    }
}

impl Variant {
    pub(crate) fn named(name: &str) -> Result<&'static Self, BoxError> {
        Ok(VARIANTS.iter().find(|variant| variant.name == name).ok_or("there is no such variant")?)
    }

    /// Returns `false` for a pool of many processes, each of which takes milliseconds to start.
    pub(crate) fn is_possible(&self, scene: &Scene) -> bool {
        self.name != PROCESS || scene.threads == THREADS
    }
}

fn spawn_blocking(stage: &Stage) -> Result<Sample, BoxError> {
    stage.measure(|number| tokio::task::spawn_blocking(move || job(number)))
}

/// The hand-written pool: threads that take boxed closures from a channel. They end with the last
/// sender.
fn crossbeam_oneshot(stage: &Stage) -> Result<Sample, BoxError> {
    let (jobs, queue) = crossbeam_channel::unbounded::<Box<dyn FnOnce() + Send>>();
    for _ in 0..stage.scene.threads {
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

fn threads(stage: &Stage) -> Result<ThreadPool, BoxError> {
    Ok(ThreadPool::builder().threads(stage.scene.threads).queue_capacity(QUEUE_CAPACITY).build()?)
}

fn rayon_threads(stage: &Stage) -> Result<Arc<rayon::ThreadPool>, BoxError> {
    Ok(Arc::new(rayon::ThreadPoolBuilder::new().num_threads(stage.scene.threads).build()?))
}
