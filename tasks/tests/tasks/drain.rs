//! The end of a process: what is open is written, or reported.

use std::{convert::Infallible, future, time::Duration};

use tower_offload_tasks::{MemoryStore, Reason, TaskState, TaskStore, Tasks};

use super::support::{Failing, LONG, Mode, SHORT, background, done, ended, hold, in_memory, record};

/// E13, E14
#[tokio::test]
async fn what_ends_within_the_grace_is_written_and_nothing_more_is_accepted() {
    let store = MemoryStore::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let held = hold(&tasks, &background).await;
    let id = held.id;
    let drained = tokio::spawn({
        let (tasks, background) = (tasks.clone(), background.clone());
        async move {
            background.drain(LONG).await;
            tasks.drain(LONG).await
        }
    });
    held.release();
    assert!(drained.await.unwrap().is_clean());
    assert!(tasks.is_closed());
    assert_eq!(store.get(id).await.unwrap().into_record().unwrap().state, TaskState::Succeeded);
    let late = tasks.track("late").run(&super::support::background(), |_| done()).await.unwrap_err();
    assert!(late.is_closed());
    assert_eq!(record(&tasks, id).await.state, TaskState::Succeeded, "what is known can be asked for");
    assert!(tasks.drain(LONG).await.is_clean(), "once more");
}

/// E15
#[tokio::test]
async fn what_the_deadline_of_the_background_cuts_off_is_cancelled_and_written() {
    let store = MemoryStore::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let held = hold(&tasks, &background).await;
    let endless = |_| future::pending::<Result<(), Infallible>>();
    let spawned = tasks.track("x").spawn(&background, endless).await.unwrap();
    let report = background.drain(Duration::ZERO).await;
    assert!(!report.is_clean());
    assert!(tasks.drain(LONG).await.is_clean());
    for id in [held.id, spawned.id()] {
        let record = store.get(id).await.unwrap().into_record().unwrap();
        assert_eq!((record.state, record.reason), (TaskState::Cancelled, Some(Reason::Shutdown)));
    }
}

#[tokio::test]
async fn what_is_not_over_at_its_own_deadline_is_reported() {
    let (tasks, background) = (in_memory(), background());
    let held = hold(&tasks, &background).await;
    assert_eq!(tasks.drain(SHORT).await.unwritten, [held.id]);
    held.release();
    assert!(tasks.drain(LONG).await.is_clean());
}

#[tokio::test]
async fn what_a_store_does_not_take_is_reported() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let held = hold(&tasks, &background).await;
    let id = held.id;
    store.set(Mode::Unavailable);
    held.release();
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
    assert_eq!(tasks.drain(SHORT).await.unwritten, [id]);
    store.set(Mode::Works);
    assert!(tasks.drain(LONG).await.is_clean());
}

#[tokio::test]
async fn what_was_never_used_is_drained_and_asks_nothing_of_its_store() {
    let store = Failing::new();
    store.set(Mode::Panics);
    assert!(Tasks::new(store).drain(LONG).await.is_clean());
}

#[tokio::test]
async fn tasks_go_on_and_are_written_when_every_handle_is_gone() {
    let store = MemoryStore::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let held = hold(&tasks, &background).await;
    let id = held.id;
    let mut subscription = tasks.subscribe(id).await.unwrap().unwrap();
    drop(tasks);
    held.release();
    while subscription.changed().await.unwrap().is_some() {}
    assert_eq!(subscription.record().state, TaskState::Succeeded);
    while store.get(id).await.unwrap().into_record().unwrap().state != TaskState::Succeeded {
        tokio::task::yield_now().await;
    }
}
