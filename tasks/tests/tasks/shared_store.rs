//! Several `Tasks` of one process on one store.

use std::{convert::Infallible, future};

use tokio::{runtime::Runtime, sync::oneshot, time::timeout};
use tower_offload_tasks::{MemoryStore, Reason, SqlStore, TaskState, TaskStore, Tasks};
use tower_offload_tests::eventually;

use super::{
    sqlite_store::Folder,
    support::{LONG, background, done, ended, hold, record},
};

/// Each accepts, sees and cancels tasks, and the end of one does not affect the other.
async fn work_side_by_side<S: TaskStore + Clone>(store: S) {
    let background = background();
    let (first, second) = (Tasks::new(store.clone()), Tasks::new(store));
    let held = hold(&first, &background).await;
    second.start().await.unwrap();
    for tasks in [&first, &second] {
        let task = tasks.track("x").spawn_blocking(&background, |_| done()).await.unwrap();
        assert_eq!(ended(tasks, task.id()).await.state, TaskState::Succeeded);
    }
    assert_eq!(timeout(LONG, running(&second, held.id)).await.unwrap(), TaskState::Running);

    let pending = |_| future::pending::<Result<(), Infallible>>();
    let endless = first.track("endless").spawn(&background, pending).await.unwrap();
    second.cancel(endless.id()).await.unwrap();
    let cancelled = timeout(LONG, ended(&second, endless.id())).await.expect("the request is not seen");
    assert_eq!((cancelled.state, cancelled.reason), (TaskState::Cancelled, Some(Reason::Requested)));

    assert!(second.shutdown(LONG).await.is_clean());
    drop(second);
    let third = Tasks::new(first.store::<S>().unwrap().clone());
    third.start().await.unwrap();
    assert_eq!(record(&first, held.id).await.state, TaskState::Running);
    let id = held.id;
    held.release();
    assert_eq!(ended(&first, id).await.state, TaskState::Succeeded);
    assert!(first.shutdown(LONG).await.is_clean());
    assert_eq!(record(&third, id).await.state, TaskState::Succeeded);
    assert_eq!((first.stats().fenced, third.stats().fenced), (0, 0));
}

/// Waits until the start of a task of another `Tasks` is written.
async fn running(tasks: &Tasks, id: tower_offload_tasks::TaskId) -> TaskState {
    loop {
        match record(tasks, id).await.state {
            TaskState::Queued => tokio::task::yield_now().await,
            state => return state,
        }
    }
}

#[tokio::test]
async fn two_tasks_on_one_memory_store_work_side_by_side() {
    work_side_by_side(MemoryStore::new()).await;
}

#[tokio::test]
async fn two_tasks_on_one_sqlite_store_work_side_by_side() {
    let folder = Folder::new();
    let store = SqlStore::open(&format!("sqlite:{}", folder.file().display())).await.unwrap();
    work_side_by_side(store).await;
}

/// The runtime and every handle are gone before the final record is written.
fn next_loses_what_a_gone_runtime_left<S: TaskStore + Clone>(store: &S) {
    let id = {
        let (runtime, background, tasks) = (Runtime::new().unwrap(), background(), Tasks::new(store.clone()));
        let id = runtime.block_on(async {
            let (enter, entered) = oneshot::channel();
            let work = |_| async {
                enter.send(()).unwrap();
                future::pending::<Result<(), Infallible>>().await
            };
            let task = tasks.track("x").spawn(&background, work).await.unwrap();
            entered.await.unwrap();
            task.id()
        });
        runtime.shutdown_background();
        drop(tasks);
        id
    };
    Runtime::new().unwrap().block_on(async {
        let mut state = TaskState::Running;
        // The callback of the task may still hold the first `Tasks`.
        eventually("the task has ended", async || {
            let next = Tasks::new(store.clone());
            next.start().await.unwrap();
            state = record(&next, id).await.state;
            state.is_final()
        })
        .await;
        assert_eq!(state, TaskState::Lost);
    });
}

#[test]
fn memory_store_loses_tasks_whose_runtime_is_gone() {
    next_loses_what_a_gone_runtime_left(&MemoryStore::new());
}

#[test]
fn sqlite_store_loses_tasks_whose_runtime_is_gone() {
    let (folder, runtime) = (Folder::new(), Runtime::new().unwrap());
    let url = format!("sqlite:{}", folder.file().display());
    let store = runtime.block_on(SqlStore::open(&url)).unwrap();
    next_loses_what_a_gone_runtime_left(&store);
}
