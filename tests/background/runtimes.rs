use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use tokio::{runtime, sync::oneshot};
use tower_offload::{
    Background, ThreadPool,
    pool::{Admission, Pool, Runnable},
};

use crate::support::{LONG, block, current_thread_runtime, panics, shut_down, with_failure_log, with_threads};

#[test]
fn closures_and_futures_run_on_the_pool_within_the_runtime() {
    let runtime = current_thread_runtime();
    let background = with_threads(1).build();
    let here = thread::current().id();
    runtime.block_on(async {
        let (sender, receiver) = oneshot::channel();
        background
            .spawn(async move {
                tokio::time::sleep(Duration::from_millis(1)).await; // uses the timer
                tokio::spawn(async {}).await.unwrap();
                sender.send(thread::current().id()).unwrap();
            })
            .unwrap();
        assert_ne!(receiver.await.unwrap(), here);
        let (sender, receiver) = oneshot::channel();
        background
            .spawn_blocking(move || {
                sender.send((thread::current().id(), runtime::Handle::try_current().is_ok())).unwrap();
            })
            .unwrap();
        let (thread, has_runtime) = receiver.await.unwrap();
        assert!(thread != here && has_runtime);
    });
}

#[test]
fn a_future_on_the_runtime_runs_on_the_submitting_one() {
    let runtime = current_thread_runtime();
    let background = with_threads(1).build();
    let here = thread::current().id();
    runtime.block_on(async {
        let (sender, receiver) = oneshot::channel();
        let work = async move { sender.send(thread::current().id()).unwrap() };
        background.task("").on_runtime().spawn(work).unwrap();
        assert_eq!(receiver.await.unwrap(), here);
        let (sender, receiver) = oneshot::channel();
        let reservation = background.reserve("").unwrap().on_runtime();
        reservation.spawn(async move { sender.send(thread::current().id()).unwrap() });
        assert_eq!(receiver.await.unwrap(), here);
    });
}

/// With the future on the runtime's only thread, this test would never get to the release.
#[test]
fn a_future_that_blocks_delays_nothing_else_on_the_runtime() {
    let background = Background::default();
    current_thread_runtime().block_on(async {
        let (release, released) = mpsc::channel::<()>();
        let (start, started) = oneshot::channel();
        background
            .spawn(async move {
                start.send(()).unwrap();
                released.recv_timeout(LONG).map_err(|_| "nothing else ran")
            })
            .unwrap();
        started.await.unwrap();
        tokio::spawn(async move { release.send(()).unwrap() }).await.unwrap();
        assert_eq!(shut_down(&background).await.completed, 1);
    });
}

#[tokio::test]
async fn polls_that_block_the_runtime_are_counted() {
    let background = with_threads(1).blocking_threshold(Duration::ZERO).build();
    let work = || async {
        tokio::task::yield_now().await;
    };
    background.task("on the runtime").on_runtime().spawn(work()).unwrap();
    background.task("on the pool").spawn(work()).unwrap();
    background.task("closure").on_runtime().spawn_blocking(|| ()).unwrap();
    assert_eq!(shut_down(&background).await.blocked_polls, 2);

    let background = with_threads(1).blocking_threshold(Duration::MAX).build();
    background.task("on the runtime").on_runtime().spawn(work()).unwrap();
    assert_eq!(shut_down(&background).await.blocked_polls, 0);
}

/// Each task waits for all others, so they all need a thread at the same time.
#[tokio::test]
async fn default_background_runs_60_blocking_tasks_at_once() {
    const TASKS: usize = 60;
    for is_async in [false, true] {
        let (background, all) = (Background::default(), Arc::new(Barrier::new(TASKS)));
        for _ in 0..TASKS {
            let all = all.clone();
            let work = move || _ = all.wait();
            if is_async { background.spawn(async move { work() }) } else { background.spawn_blocking(work) }.unwrap();
        }
        assert_eq!(shut_down(&background).await.completed, TASKS as u64);
    }
}

#[tokio::test]
async fn default_background_has_a_thread_for_each_running_task() {
    for max_running in [1, 3, 100] {
        let background = Background::builder().max_running(max_running).build();
        let all = Arc::new(Barrier::new(max_running));
        for _ in 0..2 * max_running {
            let all = all.clone();
            background.spawn_blocking(move || _ = all.wait()).unwrap();
        }
        assert_eq!(shut_down(&background).await.completed, 2 * max_running as u64);
    }
    Background::builder().max_running(usize::MAX).max_tasks(usize::MAX).build();
}

#[test]
fn futures_run_on_the_pool_without_a_runtime() {
    let background = Background::default();
    let (sender, receiver) = oneshot::channel();
    background
        .task("")
        .on_runtime()
        .spawn(async move {
            tokio::task::yield_now().await;
            sender.send(thread::current().id()).unwrap();
        })
        .unwrap();
    assert_ne!(receiver.blocking_recv().unwrap(), thread::current().id());
    assert_eq!(current_thread_runtime().block_on(shut_down(&background)).completed, 1);
}

#[test]
fn futures_run_on_the_pool_after_their_runtime_shut_down() {
    let runtime = current_thread_runtime();
    let (background, failures) = with_failure_log(with_threads(1).max_running(2));
    let (sender, receiver) = oneshot::channel();
    let reserved = {
        let _entered = runtime.enter();
        // Nothing drives this runtime, so the future is not polled before the runtime shuts down.
        let work = async move { sender.send(thread::current().id()).unwrap() };
        background.task("spawned").on_runtime().spawn(work).unwrap();
        background.reserve("reserved").unwrap().on_runtime()
    };
    drop(runtime);
    assert_ne!(receiver.blocking_recv().unwrap(), thread::current().id());
    let (sender, receiver) = oneshot::channel();
    reserved.spawn(async move { sender.send(()).unwrap() });
    receiver.blocking_recv().unwrap();
    assert_eq!(current_thread_runtime().block_on(shut_down(&background)).completed, 2);
    assert!(failures.entries().is_empty());
}

#[test]
fn a_running_future_is_lost_with_its_runtime() {
    for on_runtime in [false, true] {
        let runtime = current_thread_runtime();
        let (background, failures) = with_failure_log(with_threads(1));
        runtime.block_on(async {
            let (start, started) = oneshot::channel();
            let task = background.task("cut off");
            let task = if on_runtime { task.on_runtime() } else { task };
            task.spawn(async move {
                start.send(()).unwrap();
                std::future::pending::<()>().await;
            })
            .unwrap();
            started.await.unwrap();
        });
        drop(runtime);
        assert_eq!(current_thread_runtime().block_on(shut_down(&background)).failed, 1);
        let cause = "because its runtime or pool shut down";
        assert_eq!(
            failures.entries(),
            [format!("background task 1 `cut off` was dropped before it finished, {cause}")]
        );
    }
}

#[test]
fn a_cancelled_future_does_not_move_to_the_pool() {
    let runtime = current_thread_runtime();
    let background = with_threads(1).build();
    let task = {
        let _entered = runtime.enter();
        background.task("").on_runtime().spawn(async { panics("a cancelled task ran") }).unwrap()
    };
    assert!(task.cancel());
    drop(runtime);
    let stats = background.stats();
    assert_eq!((stats.cancelled, stats.failed, stats.running), (1, 0, 0));
}

#[tokio::test]
async fn cancelling_a_running_future_drops_it_and_frees_its_permit() {
    for on_runtime in [false, true] {
        let (background, failures) = with_failure_log(with_threads(1).max_running(1));
        let (start, started) = oneshot::channel();
        let task = background.task("");
        let task = if on_runtime { task.on_runtime() } else { task };
        let task = task.spawn(async move {
            start.send(()).unwrap();
            std::future::pending::<()>().await;
        });
        started.await.unwrap();
        assert!(task.unwrap().cancel());
        block(&background, "next").await.release();
        let stats = shut_down(&background).await;
        assert_eq!((stats.cancelled, stats.failed), (1, 0));
        assert!(failures.entries().is_empty());
    }
}

/// A pool that runs its first runnable within `schedule`, and each later one on a new thread.
#[derive(Debug)]
struct FirstInline {
    admission: Admission,
    has_run: AtomicBool,
}

impl Pool for FirstInline {
    fn admission(&self) -> &Admission {
        &self.admission
    }

    fn schedule(&self, runnable: Runnable) {
        if self.has_run.swap(true, SeqCst) {
            thread::spawn(move || runnable.run());
        } else {
            runnable.run();
        }
    }
}

/// The thread of the first task is also the one that dispatches.
#[test]
fn a_task_that_runs_within_its_submission_may_wait_for_another() {
    let pool = FirstInline { admission: Admission::new("first inline", 8), has_run: AtomicBool::new(false) };
    let background = Background::new(pool);
    let (inner, (sender, has_run)) = (background.clone(), mpsc::channel());
    let outer = move || {
        let (run, ran) = mpsc::channel();
        inner.spawn_blocking(move || run.send(()).unwrap()).unwrap();
        sender.send(ran.recv_timeout(LONG)).unwrap();
    };
    background.spawn_blocking(outer).unwrap();
    assert_eq!(has_run.recv().unwrap(), Ok(()));
}

/// The task that watches for the end of the runtime ends before the call on the pool does.
#[tokio::test]
async fn a_future_that_has_ended_is_not_cancelled_on_the_pool() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let background = Background::new(pool.clone());
    let (reach, reached) = oneshot::channel();
    let (proceed, proceeds) = mpsc::channel::<()>();
    let reservation = background.reserve("").unwrap().on_completion(move |_| {
        reach.send(()).unwrap();
        let _ = proceeds.recv();
    });
    reservation.spawn(async {});
    reached.await.unwrap();
    while runtime::Handle::current().metrics().num_alive_tasks() > 0 {
        tokio::task::yield_now().await;
    }
    drop(proceed);
    shut_down(&background).await;
    assert!(pool.shutdown(LONG).await.is_empty());
    let stats = pool.stats();
    assert_eq!((stats.completed, stats.abandoned), (1, 0));
}
