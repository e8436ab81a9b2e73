//! Latches to hold the world still, and a pool of each kind.

use std::{
    convert::Infallible,
    future::Future,
    sync::{Arc, mpsc},
    time::Duration,
};

use tokio::sync::oneshot;
use tower_offload::{
    ThreadPool,
    pool::{CallError, Codel, Pool, Rayon, Run, TokioBlocking},
};

/// One pool of each kind, each with so many threads and room for so many calls to wait. Inside a runtime.
pub(crate) fn pools(threads: usize, queue_capacity: usize) -> Vec<Arc<dyn Pool>> {
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let ours = ThreadPool::builder().threads(threads).queue_capacity(queue_capacity).build().unwrap();
    let growing =
        ThreadPool::builder().min_threads(0).max_threads(threads).queue_capacity(queue_capacity).name("growing");
    vec![
        Arc::new(ours),
        Arc::new(growing.build().unwrap()),
        Arc::new(Rayon::builder(rayon).queue_capacity(queue_capacity).build()),
        Arc::new(TokioBlocking::builder(threads).queue_capacity(queue_capacity).build()),
    ]
}

/// As `pools`, each with one thread and a policy for which [`too_long`] is too long.
pub(crate) fn shedding_pools(queue_capacity: usize) -> Vec<Arc<dyn Pool>> {
    let codel = Codel::new(Duration::from_millis(1), Duration::from_millis(1));
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let builder = ThreadPool::builder().threads(1).queue_capacity(queue_capacity).queue_policy(codel);
    vec![
        Arc::new(builder.build().unwrap()),
        Arc::new(Rayon::builder(rayon).queue_policy(codel).queue_capacity(queue_capacity).build()),
        Arc::new(TokioBlocking::builder(1).queue_policy(codel).queue_capacity(queue_capacity).name("shedding").build()),
    ]
}

/// As `hold`, where a policy may shed the call that is to hold the thread: the machine may be slow.
pub(crate) async fn hold_at_last(pool: &(impl Pool + Clone)) -> Held {
    loop {
        if let Some(held) = try_hold(pool).await {
            return held;
        }
    }
}

/// Longer only makes it surer.
pub(crate) async fn too_long() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

pub(crate) fn one_thread() -> ThreadPool {
    ThreadPool::builder().threads(1).build().unwrap()
}

/// A thread of a pool, held inside sync work until it is released or dropped.
pub(crate) struct Held {
    release: mpsc::Sender<()>,
    run: Run<()>,
}

/// Holds a thread; returns when a thread is inside.
pub(crate) async fn hold(pool: &(impl Pool + Clone)) -> Held {
    try_hold(pool).await.expect("the call is carried out")
}

async fn try_hold(pool: &(impl Pool + Clone)) -> Option<Held> {
    let (entered, inside) = oneshot::channel();
    let (release, released) = mpsc::channel();
    let run = pool.run(move || {
        entered.send(()).unwrap();
        let _ = released.recv();
    });
    soon(inside).await.ok().map(|()| Held { release, run })
}

impl Held {
    /// Lets the thread go; returns when the work has ended.
    pub(crate) async fn release(self) -> Result<(), CallError> {
        drop(self.release);
        self.run.await
    }
}

/// The test's patience: nothing here takes long, so what takes that long hangs.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("this hangs")
}

/// Waits for what another thread does in its own time and tells nobody about.
pub(crate) async fn eventually(mut condition: impl FnMut() -> bool) {
    soon(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// What a test's service answers.
pub(crate) type Answer<T> = Result<T, Infallible>;
