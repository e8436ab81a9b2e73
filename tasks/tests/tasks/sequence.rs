//! Tasks of one sequence, one at a time.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tower_offload::{Background, ThreadPool};
use tower_offload_tasks::{Failure, MemoryStore, Progress, Reason, TaskId, TaskState, Tasks};

use super::support::{LONG, background, done, ended, in_memory, record};

/// Names of tasks, in the order in which they ran.
type Log = Arc<Mutex<Vec<&'static str>>>;

async fn submit(tasks: &Tasks, background: &Background, key: &'static str, name: &'static str, log: &Log) -> TaskId {
    let log = log.clone();
    let work = move |_: Progress| {
        log.lock().unwrap().push(name);
        if name == "fails" { Err(Failure::new("no", "no")) } else { Ok(()) }
    };
    tasks.track(name).sequence(key).spawn_blocking(background, work).await.unwrap().id()
}

/// Starts a task that blocks its sequence until the sender is dropped.
async fn hold_sequence(tasks: &Tasks, background: &Background, key: &'static str) -> std::sync::mpsc::Sender<()> {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (enter, entered) = tokio::sync::oneshot::channel();
    let work = move |_| {
        enter.send(()).unwrap();
        let _ = released.recv();
        done()
    };
    let _ = tasks.track("head").sequence(key).spawn_blocking(background, work).await.unwrap();
    entered.await.unwrap();
    release
}

#[tokio::test]
async fn tracked_tasks_of_a_sequence_run_in_the_order_of_acceptance() {
    let (tasks, background, log) = (in_memory(), background(), Log::default());
    let head = hold_sequence(&tasks, &background, "customer:7").await;
    let first = submit(&tasks, &background, "customer:7", "first", &log).await;
    let fails = submit(&tasks, &background, "customer:7", "fails", &log).await;
    let cancelled = submit(&tasks, &background, "customer:7", "cancelled", &log).await;
    let last = submit(&tasks, &background, "customer:7", "last", &log).await;
    let other = submit(&tasks, &background, "customer:8", "other", &log).await;
    assert_eq!(ended(&tasks, other).await.state, TaskState::Succeeded, "others run meanwhile");
    assert_eq!(record(&tasks, first).await.state, TaskState::Queued);
    tasks.cancel(cancelled).await.unwrap();
    assert_eq!(ended(&tasks, cancelled).await.state, TaskState::Cancelled);

    drop(head);
    assert_eq!(ended(&tasks, last).await.state, TaskState::Succeeded);
    assert_eq!(record(&tasks, fails).await.state, TaskState::Failed);
    assert_eq!(*log.lock().unwrap(), ["other", "first", "fails", "last"]);
}

#[tokio::test]
async fn a_full_sequence_rejects_tracked_tasks_and_leaves_no_record() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let background = Background::builder().pool(pool).max_tasks(2).build();
    let tasks = Tasks::new(MemoryStore::new());
    let head = hold_sequence(&tasks, &background, "a").await;
    let error = tasks.track("report").sequence("a").spawn_blocking(&background, |_| done()).await.unwrap_err();
    assert!(error.is_full() && !error.is_invalid(), "{error}");
    let log = Log::default();
    submit(&tasks, &background, "b", "other", &log).await;
    assert_eq!(tasks.stats().rejected, 1);
    drop(head);
    assert!(tasks.shutdown(LONG).await.is_clean());
    assert_eq!((background.stats().rejected, background.stats().skipped), (1, 0));
}

#[tokio::test]
async fn tasks_that_wait_for_their_sequence_end_with_the_background() {
    let (tasks, background, log) = (in_memory(), background(), Log::default());
    let head = hold_sequence(&tasks, &background, "a").await;
    let waits = submit(&tasks, &background, "a", "waits", &log).await;
    let report = background.shutdown(Duration::from_millis(1)).await;
    assert_eq!((report.cancelled, report.still_running.len()), (1, 1));
    let record = ended(&tasks, waits).await;
    assert_eq!((record.state, record.reason), (TaskState::Cancelled, Some(Reason::Shutdown)));
    assert!(log.lock().unwrap().is_empty());
    drop(head);
}
