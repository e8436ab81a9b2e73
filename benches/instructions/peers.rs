//! What is counted roughly: 256 calls at once on `current_thread`, here and there by real threads. Valgrind lets one thread
//! run at a time, so how long one of them searches or sleeps is chance; the median of a few runs, and no gate.

use std::{hint::black_box, sync::Arc, thread};

use tokio::{runtime::Builder, sync::oneshot, task::JoinSet};
use tower::{Service, ServiceExt};
use tower_offload::{ThreadPool, pool::Pool};

use crate::{
    BoxError, callgrind, hardware,
    scenes::{Scene, layered, now, work},
};

const AT_ONCE: u64 = 256;
const THREADS: usize = 2;
const ROUNDS: usize = 3;

pub(crate) const SCENES: &[Scene] = &[
    peer("spawn_blocking", |calls| spawn_blocking(calls, 512)),
    peer("spawn_blocking/capped", |calls| spawn_blocking(calls, THREADS)),
    peer("rayon+oneshot", rayon_oneshot),
    peer("crossbeam+oneshot", crossbeam_oneshot),
    peer("threads", threads),
    peer("offload", offload),
];

const fn peer(name: &'static str, make: fn(u64) -> Result<(), BoxError>) -> Scene {
    Scene { name, calls: 20 * AT_ONCE, make }
}

/// Instructions a call.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// In user space: the median, the lowest and the highest of the rounds.
    pub(crate) user: [u64; 3],
    /// Those of the kernel as well, where the processor counts.
    pub(crate) all: Option<u64>,
}

pub(crate) fn count() -> Result<Vec<Peer>, BoxError> {
    let mut counted = vec![Vec::new(); SCENES.len()];
    for round in 1..=ROUNDS {
        for (scene, counts) in SCENES.iter().zip(&mut counted) {
            counts.push(callgrind::per_call(scene)?);
        }
        eprintln!("[round {round}/{ROUNDS}]");
    }
    let peers = SCENES.iter().zip(counted).map(|(scene, mut counts)| {
        counts.sort_unstable();
        let user = [counts[ROUNDS / 2], counts[0], counts[ROUNDS - 1]];
        Peer { name: scene.name, user, all: hardware::per_call(scene) }
    });
    Ok(peers.collect())
}

/// Tasks that call again when they are answered, until all calls are made.
fn at_once<H, C, E>(
    calls: u64,
    blocking_threads: usize,
    hop: impl FnOnce() -> Result<H, BoxError>,
) -> Result<(), BoxError>
where
    H: FnMut(u64) -> C + Clone + Send + 'static,
    C: Future<Output = Result<u64, E>> + Send,
    E: Into<BoxError>,
{
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(blocking_threads).build()?;
    let (hop, mut tasks) = (hop()?, JoinSet::new());
    for _ in 0..AT_ONCE {
        let mut hop = hop.clone();
        let caller = async move {
            for number in 0..calls / AT_ONCE {
                black_box(hop(number).await.map_err(Into::into)?);
            }
            Ok::<_, BoxError>(())
        };
        tasks.spawn_on(caller, runtime.handle());
    }
    runtime.block_on(tasks.join_all()).into_iter().collect()
}

fn spawn_blocking(calls: u64, at_most: usize) -> Result<(), BoxError> {
    at_once(calls, at_most, || Ok(|number| tokio::task::spawn_blocking(move || work(number))))
}

fn rayon_oneshot(calls: u64) -> Result<(), BoxError> {
    at_once(calls, 1, || {
        let threads = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(THREADS).build()?);
        Ok(move |number| {
            let (sender, receiver) = oneshot::channel();
            threads.spawn(move || sender.send(work(number)).unwrap_or_default());
            receiver
        })
    })
}

/// What one writes by hand: threads that take boxed closures from a channel.
fn crossbeam_oneshot(calls: u64) -> Result<(), BoxError> {
    at_once(calls, 1, || {
        let (jobs, queue) = crossbeam_channel::unbounded::<Box<dyn FnOnce() + Send>>();
        for _ in 0..THREADS {
            let queue = queue.clone();
            thread::Builder::new().spawn(move || queue.iter().for_each(|job| job()))?;
        }
        Ok(move |number| {
            let (sender, receiver) = oneshot::channel();
            // Should the threads be gone, the receiver tells.
            let _ = jobs.send(Box::new(move || sender.send(work(number)).unwrap_or_default()));
            receiver
        })
    })
}

fn threads(calls: u64) -> Result<(), BoxError> {
    at_once(calls, 1, || {
        let pool = pool()?;
        Ok(move |number| pool.run(move || work(number)))
    })
}

fn offload(calls: u64) -> Result<(), BoxError> {
    at_once(calls, 1, || {
        let mut service = layered(pool()?);
        Ok(move |number| {
            let _ = now(service.ready()); // it always is
            service.call(number)
        })
    })
}

/// With room for all calls: the others have no bound.
fn pool() -> Result<ThreadPool, BoxError> {
    Ok(ThreadPool::builder().threads(THREADS).build()?)
}
