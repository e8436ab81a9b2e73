//! Ten thousand panics, and the threads are still those they were.

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

/// As long as no job takes.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("this hangs")
}

/// All threads of the pool: so many calls that wait for one another are on as many threads.
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

/// Threads of this process with that name, where it can be told: other tests have threads too.
fn named(name: &str) -> Option<usize> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    Some(names.filter(|it| it.starts_with(name)).count())
}

/// As a panic, but prints nothing.
fn panics() {
    resume_unwind(Box::new("planned"));
}

/// Half of them closures, half futures that panic when they are woken. `name` is that of the threads.
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
    // A limit of tokio's own: a thread that we have just given back is not idle yet for tokio, which would start another.
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
