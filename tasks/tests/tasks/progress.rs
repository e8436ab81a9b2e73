//! Progress of running tasks.

use tokio::sync::oneshot;
use tower_offload_tasks::{MemoryStore, Progress, TaskState, TaskStore, Tasks};

use super::support::{Failing, background, done, ended, in_memory, record};

#[tokio::test]
async fn states_are_observed_in_order_and_once_each() {
    let (tasks, background) = (in_memory(), background());
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let first = tasks.track("first").spawn_blocking(&background, move |_| gone.recv()).await.unwrap();
    let second = tasks.track("x").spawn_blocking(&background, |_| done()).await.unwrap();
    let mut subscription = tasks.subscribe(first.id()).await.unwrap().unwrap();
    let mut seen = vec![subscription.record().clone()];
    go.send(()).unwrap();
    while let Some(record) = subscription.changed().await.unwrap() {
        seen.push(record.clone());
    }
    assert!(seen.windows(2).all(|pair| pair[0].version < pair[1].version), "{seen:?}");
    let mut states: Vec<_> = seen.iter().map(|record| record.state).collect();
    assert_eq!(states.pop(), Some(TaskState::Succeeded));
    states.dedup();
    assert!(
        [&[TaskState::Queued, TaskState::Running][..], &[TaskState::Running], &[TaskState::Queued]].contains(&&*states)
    );
    assert_eq!(seen.last().unwrap().version, 3, "there are no other changes");
    assert!(subscription.changed().await.unwrap().is_none(), "none after the final one");
    ended(&tasks, second.id()).await;
}

#[tokio::test]
async fn progress_is_visible_at_once_and_clamped() {
    let (tasks, background) = (in_memory(), background());
    let (give, progress) = oneshot::channel::<Progress>();
    let (go, gone) = oneshot::channel::<()>();
    let work = |progress: Progress| async move {
        give.send(progress).unwrap();
        gone.await
    };
    let id = tasks.track("x").spawn(&background, work).await.unwrap().id();
    let progress = progress.await.unwrap();
    assert_eq!(progress.id(), id);
    let mut subscription = tasks.subscribe(id).await.unwrap().unwrap();
    for (reported, expected) in [(0.5, 0.5), (7.0, 1.0), (-1.0, 0.0), (f64::NAN, 0.0)] {
        progress.value(reported);
        assert_eq!(record(&tasks, id).await.progress, Some(expected));
    }
    assert_eq!(subscription.changed().await.unwrap().unwrap().progress, Some(0.0), "only the newest");
    progress.message("half\0way");
    assert_eq!(subscription.changed().await.unwrap().unwrap().message.as_deref(), Some("half\u{fffd}way"));
    progress.set(0.6, "x".repeat(5000));
    let now = record(&tasks, id).await;
    assert_eq!((now.progress, now.message.unwrap().len(), now.state), (Some(0.6), 1024, TaskState::Running));

    go.send(()).unwrap();
    let finished = ended(&tasks, id).await;
    progress.set(0.9, "after the end");
    assert_eq!(record(&tasks, id).await, finished);
}

/// With the clock paused, progress becomes due only when no task has work.
#[tokio::test(start_paused = true)]
async fn a_thousand_reports_are_one_write_of_the_newest() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let (give, progress) = oneshot::channel::<Progress>();
    let work = |progress: Progress| async move {
        give.send(progress).unwrap();
        std::future::pending::<Result<(), std::convert::Infallible>>().await
    };
    let id = tasks.track("x").spawn(&background, work).await.unwrap().id();
    let progress = progress.await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await; // until the start is written
    let before = store.batches().len();
    for step in 0..1000 {
        progress.value(f64::from(step) / 1000.0);
        tokio::task::yield_now().await;
    }
    assert_eq!(store.batches().len(), before);
    tokio::time::sleep(std::time::Duration::from_millis(251)).await;
    assert_eq!(store.batches().len(), before + 1);
    assert_eq!(store.inner.get(id).await.unwrap().into_record().unwrap().progress, Some(0.999));
}

/// A client that accepts one task after the other waits for one commit each time: the start and the
/// end of a task are written with the next accept.
#[tokio::test(start_paused = true)]
async fn start_and_end_of_a_task_share_the_batch_of_the_next_one() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    for _ in 0..20 {
        let work = |_| async { Ok::<_, std::convert::Infallible>(()) };
        let _accepted = tasks.track("x").spawn(&background, work).await.unwrap();
    }
    background.shutdown(super::support::LONG).await;
    assert!(tasks.shutdown(super::support::LONG).await.is_clean());
    assert_eq!(store.batches().len(), 21, "one for each accept, and one for the last end");
}

#[tokio::test]
async fn progress_handle_may_outlive_its_tasks() {
    let (tasks, background) = (Tasks::new(MemoryStore::new()), background());
    let (give, progress) = oneshot::channel::<Progress>();
    let id = tasks
        .track("x")
        .spawn_blocking(&background, |progress| give.send(progress).map_err(|_| ""))
        .await
        .unwrap()
        .id();
    let progress = progress.await.unwrap();
    ended(&tasks, id).await;
    drop((tasks, background));
    progress.set(0.5, "ignored");
    assert!(progress.is_cancelled());
}
