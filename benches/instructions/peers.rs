//! Rough counts for the ways to run a closure on another thread: 256 calls at once on
//! `current_thread`, with real threads.
//!
//! Valgrind runs one thread at a time, so the time that a thread searches or sleeps is random. The
//! counts are medians of a few runs, and are not compared with a baseline.

use std::{hint::black_box, sync::Arc, thread};

use tokio::{runtime::Builder, sync::oneshot, task::JoinSet};
use tower::{Service, ServiceExt};
use tower_offload::{ThreadPool, pool::Pool};
use tower_offload_benches::{BoxError, Spread, Table};

use crate::{
    counters,
    scenes::{Scene, layered, now, work},
};

const CONCURRENCY: u64 = 256;
const THREADS: usize = 2;
const ROUNDS: usize = 3;

/// The limits for the share of the instructions of `spawn_blocking`, the kernel's included: must
/// and aim.
const GOAL: (f64, f64) = (0.2, 0.06);

pub(crate) const SCENES: &[Scene] = &[
    peer("spawn_blocking", |calls| spawn_blocking(calls, 512)),
    peer("spawn_blocking/capped", |calls| spawn_blocking(calls, THREADS)),
    peer("rayon+oneshot", rayon_oneshot),
    peer("crossbeam+oneshot", crossbeam_oneshot),
    peer("threads", threads),
    peer("offload", offload),
];

const fn peer(name: &'static str, make: fn(u64) -> Result<(), BoxError>) -> Scene {
    Scene { name, calls: 20 * CONCURRENCY, make }
}

/// Counts all peers and prints their table and the goal.
pub(crate) fn print() -> Result<(), BoxError> {
    let mut counts = vec![Vec::new(); SCENES.len()];
    for round in 1..=ROUNDS {
        for (scene, counts) in SCENES.iter().zip(&mut counts) {
            counts.push(counters::valgrind(scene)? as f64);
        }
        eprintln!("[round {round}/{ROUNDS}]");
    }
    let spreads = counts.into_iter().filter_map(Spread::of);
    let peers: Vec<_> = SCENES.iter().zip(spreads).map(|(it, user)| (it.name, user, counters::hardware(it))).collect();
    let table = Table::new(
        "instructions per call, 256 at once on current_thread; user space: median (range); not gated",
        &peers,
        &[
            ("peer", &|(name, ..)| (*name).to_owned()),
            ("user", &|(_, user, _)| format!("{} ({}-{})", user.median, user.min, user.max)),
            ("v spawn_blocking", &|(_, user, _)| format!("{:.2}", user.median / peers[0].1.median)),
            ("with kernel", &|(.., all)| all.map_or("-".to_owned(), |all| all.to_string())),
        ],
    );
    let (must, aim) = GOAL;
    let all = |name| peers.iter().find(|peer| peer.0 == name).and_then(|peer| peer.2).map(|all| all as f64);
    let verdict = match all("threads").zip(all("spawn_blocking")).map(|(ours, theirs)| ours / theirs) {
        None => "not measured: most are of the kernel, and this machine has no counter for them".to_owned(),
        Some(ratio) if ratio <= aim => format!("{ratio:.2}, aim met"),
        Some(ratio) if ratio <= must => format!("{ratio:.2}, must met"),
        Some(ratio) => format!("{ratio:.2}, NOT MET"),
    };
    println!("\n{table}\nthreads v spawn_blocking with the kernel, <= {must} must, <= {aim} aim: {verdict}");
    Ok(())
}

/// Runs tasks that call again when a call returns, until all calls are made.
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
    for _ in 0..CONCURRENCY {
        let mut hop = hop.clone();
        let caller = async move {
            for number in 0..calls / CONCURRENCY {
                black_box(hop(number).await.map_err(Into::into)?);
            }
            Ok::<_, BoxError>(())
        };
        tasks.spawn_on(caller, runtime.handle());
    }
    runtime.block_on(tasks.join_all()).into_iter().collect()
}

fn spawn_blocking(calls: u64, max_threads: usize) -> Result<(), BoxError> {
    at_once(calls, max_threads, || Ok(|number| tokio::task::spawn_blocking(move || work(number))))
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

/// The hand-written pool: threads that take boxed closures from a channel.
fn crossbeam_oneshot(calls: u64) -> Result<(), BoxError> {
    at_once(calls, 1, || {
        let (jobs, queue) = crossbeam_channel::unbounded::<Box<dyn FnOnce() + Send>>();
        for _ in 0..THREADS {
            let queue = queue.clone();
            thread::Builder::new().spawn(move || queue.iter().for_each(|job| job()))?;
        }
        Ok(move |number| {
            let (sender, receiver) = oneshot::channel();
            // If the threads are gone, the receiver returns an error.
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
            let _ = now(service.ready()); // it is always ready
            service.call(number)
        })
    })
}

/// Returns a pool with room for all calls, because the peers have no limit.
fn pool() -> Result<ThreadPool, BoxError> {
    Ok(ThreadPool::builder().threads(THREADS).build()?)
}
