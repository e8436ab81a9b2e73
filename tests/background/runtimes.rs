use std::thread;

use tokio::{runtime, sync::oneshot};
use tower_offload::Background;

use crate::support::{block, current_thread_runtime, panics, shut_down, with_failure_log, with_threads};

#[test]
fn futures_run_on_the_submitting_runtime_and_closures_do_not() {
    let runtime = current_thread_runtime();
    let background = with_threads(1).build();
    let here = thread::current().id();
    runtime.block_on(async {
        let (sender, receiver) = oneshot::channel();
        background.spawn(async move { sender.send(thread::current().id()).unwrap() }).unwrap();
        assert_eq!(receiver.await.unwrap(), here);
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
fn futures_run_on_the_pool_without_a_runtime() {
    let background = Background::default();
    let (sender, receiver) = oneshot::channel();
    background
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
        background.task("spawned").spawn(async move { sender.send(thread::current().id()).unwrap() }).unwrap();
        background.reserve("reserved").unwrap()
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
fn a_running_future_dropped_by_its_runtime_fails() {
    let runtime = current_thread_runtime();
    let (background, failures) = with_failure_log(with_threads(1));
    runtime.block_on(async {
        let (start, started) = oneshot::channel();
        background
            .task("cut off")
            .spawn(async move {
                start.send(()).unwrap();
                std::future::pending::<()>().await;
            })
            .unwrap();
        started.await.unwrap();
    });
    drop(runtime);
    assert_eq!(failures.entries(), ["background task 1 `cut off` was dropped by its runtime before it finished"]);
    assert_eq!(background.stats().failed, 1);
}

#[test]
fn a_cancelled_future_does_not_move_to_the_pool() {
    let runtime = current_thread_runtime();
    let background = with_threads(1).build();
    let task = {
        let _entered = runtime.enter();
        background.spawn(async { panics("a cancelled task ran") }).unwrap()
    };
    assert!(task.cancel());
    drop(runtime);
    let stats = background.stats();
    assert_eq!((stats.cancelled, stats.failed, stats.running), (1, 0, 0));
}

#[tokio::test]
async fn cancelling_a_running_future_drops_it_and_frees_its_permit() {
    let (background, failures) = with_failure_log(with_threads(1).max_running(1));
    let (start, started) = oneshot::channel();
    let task = background.spawn(async move {
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
