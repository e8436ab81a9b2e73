//! Tasks that block until they are released, and logs of events.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use tokio::{runtime, sync::oneshot};
use tower_offload::{
    Background, ThreadPool,
    background::{BackgroundBuilder, BackgroundStats, TaskHandle},
};

/// Longer than any passing test takes.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) fn with_threads(threads: usize) -> BackgroundBuilder {
    Background::builder().pool(ThreadPool::builder().threads(threads).build().unwrap())
}

pub(crate) fn current_thread_runtime() -> runtime::Runtime {
    runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A closure that blocks until it is released or this value is dropped.
pub(crate) struct Blocked {
    pub(crate) task: TaskHandle,
    release: Option<mpsc::Sender<()>>,
}

impl Blocked {
    pub(crate) fn new(task: TaskHandle, release: mpsc::Sender<()>) -> Self {
        Self { task, release: Some(release) }
    }

    pub(crate) fn release(mut self) {
        self.release = None;
    }
}

/// Submits a [`Blocked`] closure, and waits until it has started.
pub(crate) async fn block(background: &Background, name: &'static str) -> Blocked {
    let (release, released) = mpsc::channel::<()>();
    let (start, started) = oneshot::channel();
    let task = background.task(name).spawn_blocking(move || {
        start.send(()).unwrap();
        let _ = released.recv();
    });
    started.await.unwrap();
    Blocked::new(task.unwrap(), release)
}

/// Events in the order in which they happened.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn add(&self, entry: impl ToString) {
        self.0.lock().unwrap().push(entry.to_string());
    }

    pub(crate) fn entries(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// Builds a background that logs its failures.
pub(crate) fn with_failure_log(builder: BackgroundBuilder) -> (Background, Log) {
    let log = Log::default();
    let failures = log.clone();
    (builder.on_failure(move |failure| failures.add(failure)).build(), log)
}

/// Panics, with the return type of a task.
#[track_caller]
pub(crate) fn panics(with: &str) {
    panic!("{with}");
}

/// Shuts the background down and returns its final counters.
pub(crate) async fn shut_down(background: &Background) -> BackgroundStats {
    let report = background.shutdown(LONG).await;
    assert!(report.still_running.is_empty(), "{report}");
    background.stats()
}
