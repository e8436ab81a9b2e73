//! Latches to hold the world still.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use tokio::sync::oneshot;
use tower_offload::{
    Background, ThreadPool,
    background::{Builder, Stats, TaskHandle},
};

/// Longer than any test takes that passes.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) fn on_threads(threads: usize) -> Builder {
    Background::builder().pool(ThreadPool::builder().threads(threads).build().unwrap())
}

/// A sync task that is held inside until it is released or dropped.
pub(crate) struct Held {
    pub(crate) task: TaskHandle,
    release: Option<mpsc::Sender<()>>,
}

impl Held {
    pub(crate) fn release(mut self) {
        self.release = None;
    }
}

pub(crate) async fn hold(background: &Background, name: &'static str) -> Held {
    let (release, released) = mpsc::channel::<()>();
    let (entered, inside) = oneshot::channel();
    let task = background.task(name).run(move || {
        entered.send(()).unwrap();
        let _ = released.recv();
    });
    inside.await.unwrap();
    Held { task: task.unwrap(), release: Some(release) }
}

/// What happened, in order.
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

/// A background that logs its failures.
pub(crate) fn logging(builder: Builder) -> (Background, Log) {
    let log = Log::default();
    let failures = log.clone();
    (builder.on_failure(move |failure| failures.add(failure)).build(), log)
}

/// A panic whose type is that of a task.
#[track_caller]
pub(crate) fn panics(with: &str) {
    panic!("{with}");
}

/// Drains, and tells what was done since the beginning.
pub(crate) async fn drained(background: &Background) -> Stats {
    let report = background.drain(LONG).await;
    assert!(report.orphaned.is_empty(), "{report}");
    background.stats()
}
