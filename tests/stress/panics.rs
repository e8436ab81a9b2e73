//! Panics of the work leave all threads of a pool alive.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::{Arc, Barrier},
    thread::{self, ThreadId},
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use tokio::runtime::Builder;
use tower::{Layer, ServiceExt, service_fn};
use tower_offload::{
    CallError, OffloadLayer, ThreadPool,
    pool::{Pool, Rayon, TokioBlocking},
};

const THREADS: usize = 2;
const PANICS: usize = 10_000;
const AT_ONCE: usize = 50;
const LONG: Duration = Duration::from_secs(3600);

/// Fails if the future takes longer than any call does.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("the calls hang")
}

/// Returns the ids of all threads of the pool. One call per thread waits for all others, so each
/// runs on a thread of its own.
async fn threads(pool: &(impl Pool + Clone)) -> BTreeSet<String> {
    let barrier = Arc::new(Barrier::new(THREADS));
    let ids = (0..THREADS).map(|_| {
        let barrier = barrier.clone();
        pool.run(move || {
            barrier.wait();
            thread::current().id()
        })
    });
    let ids = soon(join_all(ids)).await;
    ids.into_iter().map(|id: Result<ThreadId, _>| format!("{:?}", id.unwrap())).collect()
}

/// Returns the number of threads of this process with that name, on systems that report it.
fn named(name: &str) -> Option<usize> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    Some(names.filter(|it| it.starts_with(name)).count())
}

/// Panics without running the panic hook.
fn panics() {
    resume_unwind(Box::new("planned"));
}

/// Runs closures that panic, and futures that panic after they were woken. `name` is the
/// name of the threads.
async fn survives(pool: &(impl Pool + Clone), name: &str) {
    let before = (threads(pool).await, named(name));
    assert_eq!(before.0.len(), THREADS);
    assert!(before.1.is_none_or(|threads| threads == THREADS), "{name}: {before:?}");
    let service = service_fn(async |()| {
        tokio::task::yield_now().await;
        panics();
        Ok::<_, CallError>(())
    });
    let layer = OffloadLayer::new(pool.clone()).reject_with(Err);
    let service = layer.layer(service);
    for _ in 0..PANICS / 2 / AT_ONCE {
        let closures = (0..AT_ONCE).map(|_| AssertUnwindSafe(pool.run(panics)).catch_unwind());
        let futures = (0..AT_ONCE).map(|_| AssertUnwindSafe(service.clone().oneshot(())).catch_unwind());
        let (closures, futures) = soon(async { tokio::join!(join_all(closures), join_all(futures)) }).await;
        assert!(closures.iter().all(Result::is_err));
        assert!(futures.iter().all(Result::is_err));
    }
    let stats = pool.admission().stats();
    assert_eq!((stats.panicked, stats.in_flight), (PANICS as u64, 0), "{name}");
    assert_eq!((threads(pool).await, named(name)), before, "{name}");
}

#[test]
fn ten_thousand_panics_leave_every_thread_alive() {
    let mut runtime = Builder::new_current_thread();
    // The number of tokio's threads is limited too, because tokio starts a new thread while the
    // thread that a worker has just left is not idle yet.
    let runtime = runtime.thread_name("panics-tokio").thread_keep_alive(LONG).max_blocking_threads(THREADS);
    let runtime = runtime.enable_all().build().unwrap();
    runtime.block_on(async {
        let fixed = ThreadPool::builder().name("panics-fixed").threads(THREADS).build().unwrap();
        survives(&fixed, "panics-fixed").await;
        assert_eq!(fixed.threads(), THREADS);

        let growing = ThreadPool::builder().name("panics-growing").min_threads(0).max_threads(THREADS);
        let growing = growing.keep_alive(LONG).build().unwrap();
        survives(&growing, "panics-growing").await;
        assert_eq!(growing.threads(), THREADS);

        let rayon = rayon::ThreadPoolBuilder::new().num_threads(THREADS).thread_name(|_| "panics-rayon".to_owned());
        survives(&Rayon::new(rayon.build().unwrap()), "panics-rayon").await;
        survives(&TokioBlocking::new(THREADS), "panics-tokio").await;
    });
}
