use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::runtime;
use tower_offload::{
    Background, Pool,
    pool::{Admission, Runnable},
};

use crate::support::{drained, logging, panics};

fn small() -> runtime::Runtime {
    runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// A pool on which a task is cancelled after it got its permit and before it begins.
#[derive(Debug)]
struct Meddling {
    gate: Admission,
    background: OnceLock<Background>,
}

impl Pool for Meddling {
    fn admission(&self) -> &Admission {
        &self.gate
    }

    fn schedule(&self, job: Runnable) {
        assert_eq!(self.background.get().unwrap().cancel("cancelled"), 1);
        job.run();
    }
}

#[test]
fn what_is_cancelled_between_its_permit_and_its_beginning_never_runs_e4() {
    let works: [fn(&Background); 2] = [
        |background| drop(background.task("cancelled").run(|| panics("ran")).unwrap()),
        |background| drop(background.task("cancelled").spawn(async { panics("ran") }).unwrap()),
    ];
    for work in works {
        let pool = Arc::new(Meddling { gate: Admission::new("meddling", 1), background: OnceLock::new() });
        let (background, failures) = logging(Background::builder().pool(pool.clone()));
        pool.background.set(background.clone()).unwrap();
        work(&background); // outside of any runtime: on the pool, both of them
        let stats = small().block_on(drained(&background));
        assert_eq!((stats.cancelled, stats.completed, stats.failed), (1, 0, 0));
        assert!(failures.entries().is_empty(), "{:?}", failures.entries());
    }
}

/// A pool that leaves its jobs lying until it is hurried. Then each new one comes after all that wait.
#[derive(Debug)]
struct Lazy {
    gate: Admission,
    waiting: Mutex<Vec<Runnable>>,
    hurried: AtomicBool,
}

impl Lazy {
    fn run_all(&self) {
        let jobs = std::mem::take(&mut *self.waiting.lock().unwrap());
        jobs.into_iter().for_each(Runnable::run);
    }
}

impl Pool for Lazy {
    fn admission(&self) -> &Admission {
        &self.gate
    }

    fn schedule(&self, job: Runnable) {
        self.waiting.lock().unwrap().push(job);
        if self.hurried.load(SeqCst) {
            self.run_all();
        }
    }
}

/// Between a drain's deadline and the word to each task there is a moment in which a thread may come to it.
#[test]
fn what_a_thread_comes_to_at_the_deadline_of_a_drain_is_cancelled_and_no_failure() {
    let pool =
        Arc::new(Lazy { gate: Admission::new("lazy", 2), waiting: Mutex::default(), hurried: AtomicBool::new(false) });
    let (background, failures) = logging(Background::builder().pool(pool.clone()));
    background.task("running").spawn(std::future::pending::<()>()).unwrap();
    pool.run_all();
    background.task("unbegun").run(|| panics("ran")).unwrap();
    pool.hurried.store(true, SeqCst); // to drop the first, which it does when it is told, it runs what waits
    let report = small().block_on(background.drain(Duration::ZERO));
    assert_eq!((report.cancelled, &*report.orphaned[0].name, report.orphaned.len()), (1, "running", 1));
    assert!(failures.entries().is_empty(), "{:?}", failures.entries());
    assert_eq!(background.stats().cancelled, 2);
}
