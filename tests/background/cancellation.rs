use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use tower_offload::{
    Background, Pool,
    pool::{Admission, Runnable},
};

use crate::support::{LONG, current_thread_runtime, panics, shut_down, with_failure_log, with_threads};

/// A pool that cancels the task named `cancelled` after it got its permit and before it starts.
#[derive(Debug)]
struct CancellingPool {
    admission: Admission,
    background: OnceLock<Background>,
}

impl Pool for CancellingPool {
    fn admission(&self) -> &Admission {
        &self.admission
    }

    fn schedule(&self, runnable: Runnable) {
        assert_eq!(self.background.get().unwrap().cancel("cancelled"), 1);
        runnable.run();
    }
}

#[test]
fn a_task_cancelled_between_dispatch_and_start_never_runs() {
    let submissions: [fn(&Background); 2] = [
        |background| drop(background.task("cancelled").spawn_blocking(|| panics("ran")).unwrap()),
        |background| drop(background.task("cancelled").spawn(async { panics("ran") }).unwrap()),
    ];
    for submit in submissions {
        let pool = Arc::new(CancellingPool { admission: Admission::new("cancelling", 1), background: OnceLock::new() });
        let (background, failures) = with_failure_log(Background::builder().pool(pool.clone()));
        pool.background.set(background.clone()).unwrap();
        submit(&background); // outside a runtime, so both kinds run on the pool
        let stats = current_thread_runtime().block_on(shut_down(&background));
        assert_eq!((stats.cancelled, stats.completed, stats.failed), (1, 0, 0));
        assert!(failures.entries().is_empty(), "{:?}", failures.entries());
    }
}

#[tokio::test]
async fn cancelling_the_last_reservation_ends_a_shutdown() {
    let background = with_threads(1).build();
    let reservation = background.reserve("").unwrap();
    let mut shutdown = Box::pin(background.shutdown(LONG));
    assert!(futures_util::poll!(&mut shutdown).is_pending());
    assert!(reservation.handle().cancel());
    let Poll::Ready(report) = futures_util::poll!(&mut shutdown) else { panic!("the shutdown was not notified") };
    assert_eq!(report.cancelled, 1);
    assert!(!report.is_clean());
}

/// A pool that keeps its runnables until `run_all` is called. If `is_eager` is set, `schedule` also
/// runs them all, the new one last.
#[derive(Debug)]
struct LazyPool {
    admission: Admission,
    waiting: Mutex<Vec<Runnable>>,
    is_eager: AtomicBool,
}

impl LazyPool {
    fn run_all(&self) {
        let runnables = std::mem::take(&mut *self.waiting.lock().unwrap());
        runnables.into_iter().for_each(Runnable::run);
    }
}

impl Pool for LazyPool {
    fn admission(&self) -> &Admission {
        &self.admission
    }

    fn schedule(&self, runnable: Runnable) {
        self.waiting.lock().unwrap().push(runnable);
        if self.is_eager.load(SeqCst) {
            self.run_all();
        }
    }
}

/// A thread may reach a task after the shutdown has timed out and before the task is aborted.
#[test]
fn a_task_reached_while_a_shutdown_times_out_is_cancelled() {
    let pool = Arc::new(LazyPool {
        admission: Admission::new("lazy", 2),
        waiting: Mutex::default(),
        is_eager: AtomicBool::new(false),
    });
    let (background, failures) = with_failure_log(Background::builder().pool(pool.clone()));
    background.task("running").spawn(std::future::pending::<()>()).unwrap();
    pool.run_all();
    background.task("dispatched").spawn_blocking(|| panics("ran")).unwrap();
    // Aborting `running` schedules a runnable, and the pool then also runs `dispatched`.
    pool.is_eager.store(true, SeqCst);
    let report = current_thread_runtime().block_on(background.shutdown(Duration::ZERO));
    let names: Vec<_> = report.still_running.iter().map(|task| &*task.name).collect();
    assert_eq!((report.cancelled, names), (1, vec!["running"]));
    assert!(failures.entries().is_empty(), "{:?}", failures.entries());
    assert_eq!(background.stats().cancelled, 2);
}
