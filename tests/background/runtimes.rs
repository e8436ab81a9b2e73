use std::thread;

use tokio::{runtime, sync::oneshot};
use tower_offload::Background;

use crate::support::{drained, hold, logging, on_threads, panics};

fn small() -> runtime::Runtime {
    runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn async_work_runs_on_the_runtime_of_its_registration_and_sync_work_does_not() {
    let runtime = small();
    let background = on_threads(1).build();
    let here = thread::current().id();
    runtime.block_on(async {
        let (tell, told) = oneshot::channel();
        background.spawn(async move { tell.send(thread::current().id()).unwrap() }).unwrap();
        assert_eq!(told.await.unwrap(), here);
        let (tell, told) = oneshot::channel();
        background
            .run(move || tell.send((thread::current().id(), runtime::Handle::try_current().is_ok())).unwrap())
            .unwrap();
        let (there, has_runtime) = told.await.unwrap();
        assert!(there != here && has_runtime);
    });
}

#[test]
fn outside_of_any_runtime_async_work_runs_on_the_pool() {
    let background = Background::default();
    let (tell, told) = oneshot::channel();
    background
        .spawn(async move {
            tokio::task::yield_now().await;
            tell.send(thread::current().id()).unwrap();
        })
        .unwrap();
    assert_ne!(told.blocking_recv().unwrap(), thread::current().id());
    assert_eq!(small().block_on(drained(&background)).completed, 1);
}

#[test]
fn if_the_runtime_is_gone_at_the_start_the_pool_takes_over() {
    let gone = small();
    let (background, failures) = logging(on_threads(1).max_running(2));
    let (tell, told) = oneshot::channel();
    let reserved = {
        let _inside = gone.enter();
        // Spawned on a runtime that nobody drives, so it has not begun when that goes.
        background.task("spawned").spawn(async move { tell.send(thread::current().id()).unwrap() }).unwrap();
        background.reserve("reserved").unwrap()
    };
    drop(gone);
    assert_ne!(told.blocking_recv().unwrap(), thread::current().id());
    let (tell, told) = oneshot::channel();
    reserved.spawn(async move { tell.send(()).unwrap() });
    told.blocking_recv().unwrap();
    assert_eq!(small().block_on(drained(&background)).completed, 2);
    assert!(failures.entries().is_empty());
}

#[test]
fn a_task_whose_runtime_goes_while_it_runs_is_reported() {
    let gone = small();
    let (background, failures) = logging(on_threads(1));
    gone.block_on(async {
        let (entered, inside) = oneshot::channel();
        background
            .task("cut off")
            .spawn(async move {
                entered.send(()).unwrap();
                std::future::pending::<()>().await;
            })
            .unwrap();
        inside.await.unwrap();
    });
    drop(gone);
    assert_eq!(failures.entries(), ["background task 1 `cut off` was dropped by its runtime before it ended"]);
    assert_eq!(background.stats().failed, 1);
}

#[test]
fn a_cancelled_task_of_a_runtime_that_is_gone_does_not_run() {
    let gone = small();
    let background = on_threads(1).build();
    let task = {
        let _inside = gone.enter();
        background.spawn(async { panics("ran") }).unwrap()
    };
    assert!(task.cancel());
    drop(gone);
    let stats = background.stats();
    assert_eq!((stats.cancelled, stats.failed, stats.running), (1, 0, 0));
}

#[tokio::test]
async fn a_running_async_task_is_dropped_when_it_is_cancelled_and_makes_room() {
    let (background, failures) = logging(on_threads(1).max_running(1));
    let (entered, inside) = oneshot::channel();
    let task = background.spawn(async move {
        entered.send(()).unwrap();
        std::future::pending::<()>().await;
    });
    inside.await.unwrap();
    assert!(task.unwrap().cancel());
    hold(&background, "next").await.release();
    let stats = drained(&background).await;
    assert_eq!((stats.cancelled, stats.failed), (1, 0));
    assert!(failures.entries().is_empty());
}
