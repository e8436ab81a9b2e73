//! Cancellation before a task starts, while it runs, and after its end.

use std::{convert::Infallible, future};

use tokio::sync::oneshot;
use tower_offload::{Background, ThreadPool};
use tower_offload_tasks::{Progress, Reason, Record, TaskState, Tasks};

use super::support::{background, done, ended, hold, in_memory};

async fn cancel(tasks: &Tasks, id: tower_offload_tasks::TaskId) -> Record {
    tasks.cancel(id).await.unwrap().into_record().unwrap()
}

#[tokio::test]
async fn queued_task_is_cancelled_at_once_and_never_runs() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let background = Background::builder().pool(pool).max_running(1).build();
    let tasks = in_memory();
    let held = hold(&tasks, &background).await;
    let never = |_| -> Result<(), Infallible> { panic!("it ran") };
    let queued = tasks.track("x").spawn_blocking(&background, never).await.unwrap();
    let record = cancel(&tasks, queued.id()).await;
    assert_eq!((record.state, record.reason), (TaskState::Cancelled, Some(Reason::Requested)));
    assert!(record.cancel_requested_at.is_some() && record.started_at.is_none());
    assert_eq!(background.stats().queued, 0, "the queue has room again");
    assert_eq!(cancel(&tasks, queued.id()).await, record, "a second call changes nothing");
    held.release();
}

#[tokio::test]
async fn running_future_is_dropped() {
    let (tasks, background) = (in_memory(), background());
    let (enter, entered) = oneshot::channel();
    let (alive, dropped) = oneshot::channel::<()>();
    let work = |_| async move {
        let _alive = alive;
        enter.send(()).unwrap();
        future::pending::<Result<(), Infallible>>().await
    };
    let id = tasks.track("x").spawn(&background, work).await.unwrap().id();
    entered.await.unwrap();
    assert!(cancel(&tasks, id).await.cancel_requested_at.is_some());
    assert!(dropped.await.is_err());
    let record = ended(&tasks, id).await;
    assert_eq!((record.state, record.reason), (TaskState::Cancelled, Some(Reason::Requested)));
}

#[tokio::test]
async fn running_closure_sees_the_request_and_decides_how_it_ends() {
    assert_cancelled_closure_ends_as(|| Err("stopped early"), TaskState::Cancelled, Some(Reason::Requested)).await;
    assert_cancelled_closure_ends_as(|| Ok(7), TaskState::Succeeded, None).await;
    assert_cancelled_closure_ends_as(|| panic!("at the end"), TaskState::Failed, None).await;
}

async fn assert_cancelled_closure_ends_as(
    end: fn() -> Result<u32, &'static str>,
    state: TaskState,
    reason: Option<Reason>,
) {
    let (tasks, background) = (in_memory(), background());
    let (enter, entered) = oneshot::channel();
    let work = move |progress: Progress| {
        enter.send(()).unwrap();
        while !progress.is_cancelled() || !tower_offload::background::cancelled() {
            std::thread::yield_now();
        }
        end()
    };
    let id = tasks.track("x").spawn_blocking(&background, work).await.unwrap().id();
    entered.await.unwrap();
    cancel(&tasks, id).await;
    let record = ended(&tasks, id).await;
    assert_eq!((record.state, record.reason), (state, reason));
    assert_eq!(record.failure.is_some(), state != TaskState::Succeeded, "the error is kept");
}

#[tokio::test]
async fn finished_task_does_not_change() {
    let (tasks, background) = (in_memory(), background());
    let id = tasks.track("x").spawn_blocking(&background, |_| done()).await.unwrap().id();
    let finished = ended(&tasks, id).await;
    assert_eq!(cancel(&tasks, id).await, finished);
    assert_eq!(finished.cancel_requested_at, None);
}

#[tokio::test]
async fn task_cancelled_by_name_in_the_background_is_cancelled() {
    let (tasks, background) = (in_memory(), background());
    let pending = |_| future::pending::<Result<(), Infallible>>();
    let id = tasks.track("endless").spawn(&background, pending).await.unwrap().id();
    assert_eq!(background.cancel("endless"), 1);
    let record = ended(&tasks, id).await;
    assert_eq!((record.state, record.cancel_requested_at), (TaskState::Cancelled, None));
}
