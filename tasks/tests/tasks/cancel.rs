//! Cancellation: before work begins, while it runs, when it is over.

use std::{convert::Infallible, future};

use tokio::sync::oneshot;
use tower_offload::{Background, ThreadPool};
use tower_offload_tasks::{Progress, Reason, Record, TaskState, Tasks};

use super::support::{background, done, ended, hold, in_memory};

async fn cancel(tasks: &Tasks, id: tower_offload_tasks::TaskId) -> Record {
    tasks.cancel(id).await.unwrap().into_record().unwrap()
}

#[tokio::test]
async fn a_task_in_the_queue_is_cancelled_at_once_and_never_runs() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let background = Background::builder().pool(pool).max_running(1).build();
    let tasks = in_memory();
    let held = hold(&tasks, &background).await;
    let never = |_| -> Result<(), Infallible> { panic!("it ran") };
    let queued = tasks.track("x").run(&background, never).await.unwrap();
    let record = cancel(&tasks, queued.id()).await;
    assert_eq!((record.state, record.reason), (TaskState::Cancelled, Some(Reason::Requested)));
    assert!(record.cancel_requested_at.is_some() && record.started_at.is_none());
    assert_eq!(background.stats().queued, 0, "its place is free");
    assert_eq!(cancel(&tasks, queued.id()).await, record, "idempotent");
    held.release();
}

#[tokio::test]
async fn async_work_that_runs_is_dropped() {
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

/// E9
#[tokio::test]
async fn sync_work_is_told_and_says_itself_how_it_ends() {
    is_cancelled_and_ends(|| Err("stopped early"), TaskState::Cancelled, Some(Reason::Requested)).await;
    is_cancelled_and_ends(|| Ok(7), TaskState::Succeeded, None).await;
    is_cancelled_and_ends(|| panic!("at the end"), TaskState::Failed, None).await;
}

async fn is_cancelled_and_ends(end: fn() -> Result<u32, &'static str>, state: TaskState, reason: Option<Reason>) {
    let (tasks, background) = (in_memory(), background());
    let (enter, entered) = oneshot::channel();
    let work = move |progress: Progress| {
        enter.send(()).unwrap();
        while !progress.is_cancelled() || !tower_offload::background::cancelled() {
            std::thread::yield_now();
        }
        end()
    };
    let id = tasks.track("x").run(&background, work).await.unwrap().id();
    entered.await.unwrap();
    cancel(&tasks, id).await;
    let record = ended(&tasks, id).await;
    assert_eq!((record.state, record.reason), (state, reason));
    assert_eq!(record.failure.is_some(), state != TaskState::Succeeded, "what it said is kept");
}

#[tokio::test]
async fn a_task_that_is_over_stays_as_it_is() {
    let (tasks, background) = (in_memory(), background());
    let id = tasks.track("x").run(&background, |_| done()).await.unwrap().id();
    let over = ended(&tasks, id).await;
    assert_eq!(cancel(&tasks, id).await, over);
    assert_eq!(over.cancel_requested_at, None);
}

#[tokio::test]
async fn work_that_others_cancel_by_its_name_is_cancelled() {
    let (tasks, background) = (in_memory(), background());
    let endless = |_| future::pending::<Result<(), Infallible>>();
    let id = tasks.track("endless").spawn(&background, endless).await.unwrap().id();
    assert_eq!(background.cancel("endless"), 1);
    let record = ended(&tasks, id).await;
    assert_eq!((record.state, record.cancel_requested_at), (TaskState::Cancelled, None));
}
