//! The ways to another thread and back.

use std::{fmt, io, sync::Arc, thread};

use tokio::{
    runtime::{self, Runtime},
    sync::oneshot,
};
use tokio_rayon::AsyncThreadPool;
use tower::{Layer, Service, ServiceExt};
use tower_offload::{
    OffloadLayer, ThreadPool,
    offload::{RejectWithError, service_fn_blocking},
    pool::{Pool, Rayon},
};
use tower_resilience_executor::{BlockingExecutor, ExecutorLayer};

use crate::{
    BoxError, job,
    plan::{QUEUE_CAPACITY, THREADS},
};

/// Runs the job somewhere. Clones lead to the same place.
pub(crate) trait Hop: Clone + Send + 'static {
    fn call(&mut self, number: u64) -> impl Future<Output = u64> + Send;
}

/// No hop at all: the job where it is, which is what the loop around it costs.
#[derive(Debug, Clone)]
pub(crate) struct Inline;

impl Hop for Inline {
    async fn call(&mut self, number: u64) -> u64 {
        job::run(number)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct SpawnBlocking;

impl Hop for SpawnBlocking {
    async fn call(&mut self, number: u64) -> u64 {
        tokio::task::spawn_blocking(move || job::run(number)).await.expect("the job does not panic")
    }
}

/// The crate `blocking`, which has one pool for the process, of up to 500 threads.
#[derive(Debug, Clone)]
pub(crate) struct Unblock;

impl Hop for Unblock {
    async fn call(&mut self, number: u64) -> u64 {
        blocking::unblock(move || job::run(number)).await
    }
}

#[derive(Debug, Clone)]
pub(crate) struct TokioRayon(Arc<rayon::ThreadPool>);

impl TokioRayon {
    pub(crate) fn new() -> Result<Self, BoxError> {
        Ok(Self(Arc::new(rayon_threads()?)))
    }
}

impl Hop for TokioRayon {
    async fn call(&mut self, number: u64) -> u64 {
        self.0.spawn_async(move || job::run(number)).await
    }
}

#[derive(Debug, Clone)]
pub(crate) struct RayonOneshot(Arc<rayon::ThreadPool>);

impl RayonOneshot {
    pub(crate) fn new() -> Result<Self, BoxError> {
        Ok(Self(Arc::new(rayon_threads()?)))
    }
}

impl Hop for RayonOneshot {
    async fn call(&mut self, number: u64) -> u64 {
        let (sender, receiver) = oneshot::channel();
        self.0.spawn(move || sender.send(job::run(number)).expect("the caller waits"));
        receiver.await.expect("the job does not panic")
    }
}

/// What one writes by hand: threads that take boxed closures from a channel.
#[derive(Clone)]
pub(crate) struct CrossbeamOneshot(crossbeam_channel::Sender<Box<dyn FnOnce() + Send>>);

impl CrossbeamOneshot {
    /// The threads end when the last clone is gone.
    pub(crate) fn new() -> io::Result<Self> {
        let (sender, jobs) = crossbeam_channel::unbounded::<Box<dyn FnOnce() + Send>>();
        for _ in 0..THREADS {
            let jobs = jobs.clone();
            thread::Builder::new().spawn(move || jobs.iter().for_each(|job| job()))?;
        }
        Ok(Self(sender))
    }
}

impl Hop for CrossbeamOneshot {
    async fn call(&mut self, number: u64) -> u64 {
        let (sender, receiver) = oneshot::channel();
        let sent = self.0.send(Box::new(move || sender.send(job::run(number)).expect("the caller waits")));
        sent.expect("the threads live as long as this");
        receiver.await.expect("the job does not panic")
    }
}

impl fmt::Debug for CrossbeamOneshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CrossbeamOneshot").finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
pub(crate) struct SecondRuntime(Arc<Runtime>);

impl SecondRuntime {
    pub(crate) fn new() -> io::Result<Self> {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
        Ok(Self(Arc::new(runtime)))
    }
}

impl Hop for SecondRuntime {
    async fn call(&mut self, number: u64) -> u64 {
        self.0.spawn(async move { job::run(number) }).await.expect("the job does not panic")
    }
}

/// A pool of ours without any layer.
#[derive(Debug, Clone)]
pub(crate) struct Bare<P>(P);

impl Bare<ThreadPool> {
    pub(crate) fn threads() -> Result<Self, BoxError> {
        Ok(Self(threads()?))
    }
}

impl Bare<Rayon> {
    pub(crate) fn rayon() -> Result<Self, BoxError> {
        Ok(Self(Rayon::builder(rayon_threads()?).queue_capacity(QUEUE_CAPACITY).build()))
    }
}

impl<P: Pool + Clone> Hop for Bare<P> {
    async fn call(&mut self, number: u64) -> u64 {
        self.0.run(move || job::run(number)).await.expect("there is room for all calls")
    }
}

/// A layer around a service that is always ready.
#[derive(Debug, Clone)]
pub(crate) struct Layered<S>(S);

/// Our layer on our threads.
pub(crate) fn offload() -> Result<impl Hop, BoxError> {
    Ok(Layered(OffloadLayer::new(threads()?).reject(RejectWithError).layer(service())))
}

/// With the executor that its documentation names for computation and blocking calls: a thread of `spawn_blocking`, which
/// drives the service's future. Call it inside the runtime.
pub(crate) fn tower_resilience() -> impl Hop {
    Layered(ExecutorLayer::new(BlockingExecutor::current()).layer(service()))
}

impl<S> Hop for Layered<S>
where
    S: Service<u64, Response = u64, Error: fmt::Debug, Future: Send> + Clone + Send + 'static,
{
    async fn call(&mut self, number: u64) -> u64 {
        let ready = self.0.ready().await.expect("the service is always ready");
        ready.call(number).await.expect("there is room for all calls")
    }
}

fn service()
-> impl Service<u64, Response = u64, Error = std::convert::Infallible, Future: Send> + Clone + Send + 'static {
    service_fn_blocking(|number| Ok(job::run(number)))
}

fn threads() -> Result<ThreadPool, BoxError> {
    Ok(ThreadPool::builder().threads(THREADS).queue_capacity(QUEUE_CAPACITY).build()?)
}

fn rayon_threads() -> Result<rayon::ThreadPool, BoxError> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(THREADS).build()?)
}
