//! Exact counts: calls that run on one thread, with the same steps in the same order each time.

use std::{
    convert::Infallible,
    hint::black_box,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tower::{Layer, Service, ServiceExt, service_fn};
use tower_offload::{
    OffloadLayer,
    offload::{RejectWithError, service_fn_blocking},
    pool::{Inline, Pool, Rayon},
};

use tower_offload_benches::BoxError;

use crate::{
    peers,
    responses::{self, Protocol},
};

/// A way to make calls. A child process finds it by its name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    /// The number of calls to count. It is large enough that one-time costs do not matter.
    pub(crate) calls: u64,
    pub(crate) make: fn(u64) -> Result<(), BoxError>,
}

/// The scenes that are compared with the baseline.
pub(crate) const EXACT: &[Scene] = &[
    exact("run, inline", run_inline),
    exact("offload, inline", offload_inline),
    exact("offload, inline, one wake", offload_inline_with_a_wake),
    exact("run, queue and worker", run_queued),
    exact("offload, queue and worker", offload_queued),
    exact("run, queue of 256", run_many_queued),
    exact("refused by a full queue", refused),
    exact("cancelled in the queue", cancelled),
    exact("http1 response, plain", |calls| responses::plain(Protocol::Http1, calls)),
    exact("http1 response, tracked", |calls| responses::tracked(Protocol::Http1, calls)),
    exact("http1 response, tracked, hook", |calls| responses::hook(Protocol::Http1, calls)),
    exact("http2 response, plain", |calls| responses::plain(Protocol::Http2, calls)),
    exact("http2 response, tracked", |calls| responses::tracked(Protocol::Http2, calls)),
    exact("http2 response, tracked, hook", |calls| responses::hook(Protocol::Http2, calls)),
];

const fn exact(name: &'static str, make: fn(u64) -> Result<(), BoxError>) -> Scene {
    Scene { name, calls: 2048, make }
}

impl Scene {
    pub(crate) fn named(name: &str) -> Result<&'static Self, BoxError> {
        let found = EXACT.iter().chain(peers::SCENES).find(|scene| scene.name == name);
        found.ok_or_else(|| format!("there is no scene `{name}`").into())
    }
}

/// The job of every call, which does almost nothing.
pub(crate) fn work(number: u64) -> u64 {
    black_box(number.wrapping_mul(31).wrapping_add(1))
}

/// A rayon pool whose only thread is this one, so that it works only during [`Self::step`].
///
/// The counts include the admission, the queue and the loop of the worker, and no wake-up of a
/// thread.
#[derive(Debug)]
struct Stepped {
    threads: Arc<rayon::ThreadPool>,
    pool: Rayon,
}

impl Stepped {
    fn new(queue_capacity: usize) -> Result<Self, BoxError> {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build()?;
        let threads = Arc::new(threads);
        Ok(Self { pool: Rayon::builder(threads.clone()).queue_capacity(queue_capacity).build(), threads })
    }

    /// Runs all queued calls.
    fn step(&self) {
        while self.threads.yield_now() == Some(rayon::Yield::Executed) {}
    }

    /// Polls the call, runs the queued calls, and polls again.
    fn finish<F: Future>(&self, call: F) -> Result<F::Output, BoxError> {
        let (mut call, mut cx) = (pin!(call), Context::from_waker(Waker::noop()));
        if call.as_mut().poll(&mut cx).is_ready() {
            return Err("the call was ready before it ran".into());
        }
        self.step();
        match call.poll(&mut cx) {
            Poll::Ready(output) => Ok(output),
            Poll::Pending => Err("the call was not ready after it ran".into()),
        }
    }
}

/// Polls a call once and returns its output. Returns an error if it is not ready.
pub(crate) fn now<F: Future>(call: F) -> Result<F::Output, BoxError> {
    match pin!(call).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Ok(output),
        Poll::Pending => Err("the call was not ready at once".into()),
    }
}

fn run_inline(calls: u64) -> Result<(), BoxError> {
    let pool = Inline::new();
    for number in 0..calls {
        black_box(now(pool.run(move || work(number)))??);
    }
    Ok(())
}

fn offload_inline(calls: u64) -> Result<(), BoxError> {
    let mut service = layered(Inline::new());
    for number in 0..calls {
        black_box(now(now(service.ready())??.call(number))??);
    }
    Ok(())
}

fn offload_inline_with_a_wake(calls: u64) -> Result<(), BoxError> {
    let service = service_fn(async |number: u64| {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(work(number))
    });
    let mut service = OffloadLayer::new(Inline::new()).reject(RejectWithError).layer(service);
    for number in 0..calls {
        black_box(now(now(service.ready())??.call(number))??);
    }
    Ok(())
}

fn run_queued(calls: u64) -> Result<(), BoxError> {
    let stepped = Stepped::new(8)?;
    for number in 0..calls {
        black_box(stepped.finish(stepped.pool.run(move || work(number)))??);
    }
    Ok(())
}

fn offload_queued(calls: u64) -> Result<(), BoxError> {
    let stepped = Stepped::new(8)?;
    let mut service = layered(stepped.pool.clone());
    for number in 0..calls {
        black_box(stepped.finish(now(service.ready())??.call(number))??);
    }
    Ok(())
}

fn run_many_queued(calls: u64) -> Result<(), BoxError> {
    let stepped = Stepped::new(256)?;
    let mut queued = Vec::with_capacity(256);
    for number in 0..calls {
        let mut call = stepped.pool.run(move || work(number));
        let _ = Pin::new(&mut call).poll(&mut Context::from_waker(Waker::noop()));
        queued.push(call);
        if queued.len() == 256 {
            stepped.step();
            for call in queued.drain(..) {
                black_box(now(call)??);
            }
        }
    }
    Ok(())
}

fn refused(calls: u64) -> Result<(), BoxError> {
    let stepped = Stepped::new(1)?;
    let mut service = layered(stepped.pool.clone());
    let _held = stepped.pool.run(|| ());
    for number in 0..calls {
        black_box(now(now(service.ready())??.call(number))?).expect_err("there is no room");
    }
    Ok(())
}

fn cancelled(calls: u64) -> Result<(), BoxError> {
    let stepped = Stepped::new(8)?;
    let mut service = layered(stepped.pool.clone());
    for number in 0..calls {
        drop(now(service.ready())??.call(number));
        stepped.step(); // removes the entry from the queue
    }
    Ok(())
}

/// Wraps a service that is always ready in the whole layer.
pub(crate) fn layered(
    pool: impl Pool,
) -> impl Service<u64, Response = u64, Error = BoxError, Future: Send> + Clone + Send + 'static {
    OffloadLayer::new(pool)
        .reject(RejectWithError)
        .layer(service_fn_blocking(|number| Ok::<_, Infallible>(work(number))))
}
