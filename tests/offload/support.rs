//! One pool of each kind, and helpers that hold threads and wait for states.

use std::{
    convert::Infallible,
    future::Future,
    sync::{Arc, mpsc},
    thread::ThreadId,
    time::Duration,
};

use tokio::sync::oneshot;
use tower_offload::{
    ThreadPool,
    pool::{CallError, Pool, Rayon, Run, TokioBlocking},
};

/// Returns one pool of each kind. Must be called inside a runtime.
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

/// Makes calls through a layer, faster than the pool runs them, until the pool is overloaded.
pub(crate) async fn overload(pool: &(impl Pool + Clone), mut call: impl FnMut()) {
    while pool.admission().stats().overloads == 0 {
        (0..3).for_each(|_| call());
        // Time must pass, since windows of an overload are measured in it.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) fn one_thread() -> ThreadPool {
    ThreadPool::builder().threads(1).build().unwrap()
}

/// A pool thread that is blocked until this value is released or dropped.
pub(crate) struct Held {
    release: mpsc::Sender<()>,
    run: Run<()>,
}

/// Blocks a thread of the pool. Returns when the thread has entered the work.
pub(crate) async fn hold(pool: &(impl Pool + Clone)) -> Held {
    let (entered, inside) = oneshot::channel();
    let (release, released) = mpsc::channel();
    let run = pool.run(move || {
        entered.send(()).unwrap();
        let _ = released.recv();
    });
    soon(inside).await.expect("the pool accepts the call");
    Held { release, run }
}

impl Held {
    /// Unblocks the thread. Returns when the work has ended.
    pub(crate) async fn release(self) -> Result<(), CallError> {
        drop(self.release);
        self.run.await
    }
}

/// Awaits `future` and fails the test if it hangs.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("the future completes within 30 s")
}

/// Waits for a condition that another thread makes true without a notification.
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

/// Result of a test service.
pub(crate) type TestResult<T> = Result<T, Infallible>;

/// Sends the id of the thread that drops it.
pub(crate) struct OnDrop(pub(crate) Option<oneshot::Sender<ThreadId>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            let _ = sender.send(std::thread::current().id());
        }
    }
}
